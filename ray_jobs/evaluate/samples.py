"""Greedy answers to a few prompts, for the reader of the report."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from moe.generate import generate
from moe.model import HybridModel


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
    """
    samples = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer_tokens = generate(model, tokens, max_new_tokens, tokenizer.eos_token_id)
        samples.append({"prompt": prompt, "completion": tokenizer.decode(answer_tokens, skip_special_tokens=True)})
    return samples
