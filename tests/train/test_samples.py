from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from moe.generate import generate
from moe.init import initialize
from moe.model import HybridModel
from ray_jobs.data.tokenise import train_bpe
from ray_jobs.evaluate.samples import answer
from service.errors import InvalidSpecError
from tests.moe.conftest import TINY

PROMPTS = ["What is 3 plus 1?", "Hi", "What is 3 plus 1?"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    train_bpe(["What is 3 plus 1? It is 4."] * 5, 300, tmp_path)
    return PreTrainedTokenizerFast.from_pretrained(tmp_path)


def model_of(tokenizer: PreTrainedTokenizerFast, max_positions: int = 4096) -> HybridModel:
    model = HybridModel(replace(TINY, vocab_size=len(tokenizer), max_positions=max_positions, initializer_range=0.5))
    initialize(model, seed=0)
    return model


def test_prompts_are_answered_together_as_each_is_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.set_num_threads(1)
    model = model_of(tokenizer)
    samples = answer(model, tokenizer, PROMPTS, 6)
    assert [sample["prompt"] for sample in samples] == PROMPTS
    assert samples[0] == samples[2] != samples[1]
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    (expected,) = generate(model, [tokens], 6, [tokenizer.eos_token_id])
    assert samples[1]["completion"] == tokenizer.decode(expected, skip_special_tokens=True) != ""


def test_the_end_of_sequence_ends_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    model = model_of(tokenizer)
    torch.nn.init.zeros_(model.lm_head.weight)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    assert [sample["completion"] for sample in answer(model, tokenizer, PROMPTS, 6)] == ["", "", ""]


def test_a_prompt_beyond_the_positions_is_the_specs_fault(tokenizer: PreTrainedTokenizerFast) -> None:
    model = model_of(tokenizer, max_positions=20)
    with pytest.raises(InvalidSpecError, match="tokens with the chat template, but the model 20 positions") as caught:
        answer(model, tokenizer, ["Hi", "What is 3 plus 1? " * 5], 6)
    assert caught.value.field == "evaluate.prompts.1"
