"""Greedy answers to a few prompts, for the reader of the report."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from moe.generate import generate
from moe.model import HybridModel
from ray_jobs.evaluate.mode import evaluating
from service.errors import InvalidSpecError


def answer(
    model: HybridModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], max_new_tokens: int
) -> list[dict[str, str]]:
    """Answer each prompt as a conversation's first turn, all in one batch; all workers must call, and all get the same.

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
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    tokens = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for messages in conversations
    ]
    limit = model.config.max_positions
    for index, prompt_tokens in enumerate(tokens):
        if len(prompt_tokens) > limit:
            message = f"has {len(prompt_tokens)} tokens with the chat template, but the model {limit} positions"
            raise InvalidSpecError(message, f"evaluate.prompts.{index}")
    with evaluating(model):
        answers = generate(model, tokens, max_new_tokens, [tokenizer.eos_token_id])
    return [
        {"prompt": prompt, "completion": tokenizer.decode(answer_tokens, skip_special_tokens=True)}
        for prompt, answer_tokens in zip(prompts, answers, strict=True)
    ]
