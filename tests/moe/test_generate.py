"""Answers of a batch, against recomputing everything for each prompt alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import moe.attention
import moe.generate
import moe.model
from moe.attention import Documents, LayerCache, Spans
from moe.dispatch import ExpertParallel
from moe.generate import generate
from moe.model import HybridModel, PackedBatch
from moe.sampling import Sampling
from tests.moe.conftest import TINY, tiny_model
from tests.moe.test_attention import described_kernel
from tests.moe.test_parity import RELATIVE_TOLERANCE
from tests.processes import run_processes

PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2]]
NUM_NEW = 8
RANDOM = Sampling(temperature=2.0, top_k=20, top_p=0.95)


def next_logits(model: HybridModel, tokens: list[int]) -> Tensor:
    """Without a cache."""
    hidden_TD, _ = model(PackedBatch(torch.tensor(tokens), Documents.from_lengths([len(tokens)]), (len(tokens),)))
    logits_V: Tensor = model.lm_head(hidden_TD[-1])
    return logits_V


def expected_answers(model: HybridModel) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in PROMPTS]
    for _ in range(NUM_NEW):
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            answer.append(int(next_logits(model, prompt + answer).argmax()))
    return answers


def test_each_answer_of_a_batch_is_that_of_recomputing_its_prompt_alone(model: HybridModel) -> None:
    expected = expected_answers(model)
    assert generate(model, PROMPTS, NUM_NEW, []) == expected
    assert [generate(model, [prompt], NUM_NEW, [])[0] for prompt in PROMPTS] == expected


def test_any_stop_token_ends_its_answer_and_no_other(model: HybridModel) -> None:
    expected = expected_answers(model)
    stops = {expected[0][2], expected[1][3]}
    ends = [next((at for at, token in enumerate(answer) if token in stops), NUM_NEW) for answer in expected]
    assert len(set(ends)) == 3, "else sequences do not leave the batch one by one"
    assert generate(model, PROMPTS, NUM_NEW, stops) == [
        answer[:end] for answer, end in zip(expected, ends, strict=True)
    ]


def test_the_kernel_for_gpus_is_asked_for_the_same_answers(model: HybridModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = expected_answers(model)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", described_kernel)
    monkeypatch.setattr(moe.attention, "_has_varlen_kernel", lambda q_THK: True)
    monkeypatch.setattr(moe.attention, "document_attention", None)
    assert generate(model, PROMPTS, NUM_NEW, [expected[1][3]]) == [expected[0], expected[1][:3], expected[2]]


@torch.no_grad()
def logit_error(model: HybridModel) -> float:
    """Of the first two prompts in all steps, relative to the largest logit; the third leaves after three."""
    model.config = replace(TINY, max_positions=len(PROMPTS[2]) + 3)
    steps: list[Tensor] = []
    hook = model.lm_head.register_forward_hook(lambda _module, _arguments, logits_NV: steps.append(logits_NV))
    answers = generate(model, PROMPTS, NUM_NEW, [])
    hook.remove()
    assert [len(logits_NV) for logits_NV in steps] == [3] * 3 + [2] * 5
    errors = []
    for place in (0, 1):
        for num_before, logits_NV in enumerate(steps):
            expected_V = next_logits(model, PROMPTS[place] + answers[place][:num_before])
            errors.append(float((logits_NV[place] - expected_V).abs().max() / expected_V.abs().max()))
    return max(errors)


def test_logits_are_those_of_recomputing_everything(model: HybridModel) -> None:
    # each is as far from the oracle as the parity test allows
    assert logit_error(model) < 2 * RELATIVE_TOLERANCE


def _new_tokens_one_position_ahead(patch: pytest.MonkeyPatch) -> None:
    """A shift of all tokens would be invisible to rotary attention."""
    rotary_table, calls = moe.model.rotary_table, count()
    patch.setattr(
        moe.model,
        "rotary_table",
        lambda config, positions_T, dtype: rotary_table(config, positions_T + (next(calls) > 0), dtype),
    )


def _new_token_does_not_see_itself(patch: pytest.MonkeyPatch) -> None:
    calls = count()

    def shortened(lengths: tuple[int, ...], device: torch.device, slot_size: int) -> Spans:
        less = next(calls) > 0
        return Spans(tuple(length - less for length in lengths), device, slot_size)

    patch.setattr(moe.generate, "Spans", shortened)


def _slots_swapped_when_one_leaves(patch: pytest.MonkeyPatch) -> None:
    keep = LayerCache.keep
    patch.setattr(LayerCache, "keep", lambda self, slots_N: keep(self, slots_N.flip(0)))


def _the_wrong_slot_leaves(patch: pytest.MonkeyPatch) -> None:
    keep = LayerCache.keep
    patch.setattr(LayerCache, "keep", lambda self, slots_N: keep(self, slots_N + 1))


@pytest.mark.parametrize(
    "mutate",
    [
        _new_tokens_one_position_ahead,
        _new_token_does_not_see_itself,
        _slots_swapped_when_one_leaves,
        _the_wrong_slot_leaves,
    ],
)
def test_the_comparison_notices(
    mutate: Callable[[pytest.MonkeyPatch], None], model: HybridModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert logit_error(model) > 100 * RELATIVE_TOLERANCE


def test_prompt_and_answer_stay_within_the_positions(model: HybridModel) -> None:
    expected = expected_answers(model)
    model.config = replace(TINY, max_positions=11)
    assert generate(model, PROMPTS, NUM_NEW, []) == [expected[0][:6], expected[1], []]
    assert generate(model, PROMPTS[2:], NUM_NEW, []) == [[]]


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "message"),
    [
        ([[1], []], 1, "prompt 1 is empty"),
        ([[1] * 11, [1] * 12], 1, "prompt 1 has 12 tokens, but the model 11 positions"),
        ([[1]], -1, "max_new_tokens must not be negative, is -1"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(
    prompts: list[list[int]], max_new_tokens: int, message: str, model: HybridModel
) -> None:
    model.config = replace(TINY, max_positions=11)
    with pytest.raises(ValueError, match=message):
        generate(model, prompts, max_new_tokens, [])


def test_nothing_asked_nothing_answered(model: HybridModel) -> None:
    assert generate(model, [], NUM_NEW, []) == []
    assert generate(model, PROMPTS, 0, []) == [[], [], []]


def test_sampled_answers_follow_from_the_seed_and_greedy_ones_from_nothing(model: HybridModel) -> None:
    def sampled(seed: int, sampling: Sampling = RANDOM) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, PROMPTS, NUM_NEW, [], sampling=sampling, generator=generator)

    assert sampled(0) == sampled(0)
    assert sampled(0) != sampled(1)
    assert sampled(0, Sampling(temperature=1e-6)) == generate(model, PROMPTS, NUM_NEW, [])


def _generate_own(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = tiny_model(ExpertParallel(dist.group.WORLD))
    own = ([PROMPTS[0], PROMPTS[2]], [PROMPTS[1]])[rank]
    limit = (NUM_NEW, 3)[rank]
    generator = torch.Generator().manual_seed(rank)
    answers = [
        generate(model, own, limit, []),
        generate(model, own[:rank], NUM_NEW, []),
        generate(model, own, limit, [], sampling=RANDOM, generator=generator),
    ]
    torch.save(answers, f"{directory}/answers-{rank}")
    dist.destroy_process_group()


def test_processes_that_share_experts_answer_prompts_of_their_own(model: HybridModel, tmp_path: Path) -> None:
    """One ends after three tokens, then one has no prompt at all: it goes along, or the other waits for its experts."""
    run_processes(_generate_own, str(tmp_path), number=2)
    first, second = (torch.load(tmp_path / f"answers-{rank}") for rank in range(2))
    expected = expected_answers(model)

    def sampled(prompts: list[list[int]], limit: int, seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        return generate(model, prompts, limit, [], sampling=RANDOM, generator=generator)

    assert first == [[expected[0], expected[2]], [], sampled([PROMPTS[0], PROMPTS[2]], NUM_NEW, 0)]
    assert second == [[expected[1][:3]], [expected[1]], sampled([PROMPTS[1]], 3, 1)]
