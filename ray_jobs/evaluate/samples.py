"""Greedy answers to a few prompts, for the reader of the report."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from moe.model import HybridModel
from ray_jobs.evaluate.language_model import LanguageModel
from service.errors import InvalidSpecError


def answer(
    model: HybridModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], max_new_tokens: int
) -> list[dict[str, str]]:
    """Answer each prompt as a conversation's first turn; all workers must call, and all get the same.

    Args:
        model: not modified.
        tokenizer: with a chat template; its end-of-sequence token ends an answer.
        prompts: user turns.
        max_new_tokens: length limit of an answer.

    Returns:
        `prompt` and `completion` of each.

    Raises:
        InvalidSpecError: a prompt is longer than the model's positions.
    """
    language_model = LanguageModel(model, tokenizer, batch_size=max(1, len(prompts)))
    tokens = [language_model.prompt([{"role": "user", "content": prompt}]) for prompt in prompts]
    limit = model.config.max_positions
    for index, prompt_tokens in enumerate(tokens):
        if len(prompt_tokens) > limit:
            message = f"has {len(prompt_tokens)} tokens with the chat template, but the model {limit} positions"
            raise InvalidSpecError(message, f"evaluate.prompts.{index}")
    answers = language_model.continue_tokens(tokens, max_new_tokens)
    return [{"prompt": prompt, "completion": said.text} for prompt, said in zip(prompts, answers, strict=True)]
