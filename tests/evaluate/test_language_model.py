"""The model as tasks ask it, against the slow and obvious oracle, and spread over processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedTokenizerFast

from moe.dispatch import ExpertParallel
from moe.generate import generate
from moe.hf import checkpoint_slices
from moe.reference import reference_logits
from moe.sampling import Sampling
from ray_jobs.evaluate import language_model as language_model_module
from ray_jobs.evaluate.language_model import Answer, LanguageModel, Likelihood
from ray_jobs.evaluate.relay import Relay
from ray_jobs.evaluate.workers import WorkFailedError, on_all, on_first, rank
from tests.evaluate.conftest import model_of
from tests.moe.test_parity import RELATIVE_TOLERANCE
from tests.processes import run_processes

PAIRS = [([3, 1, 4, 1, 5], [9, 2]), ([6], [5]), ([5, 3, 5], [8, 9, 7, 9]), ([2], [7, 1, 8]), ([1, 1], [1])]
CONVERSATIONS = [[{"role": "user", "content": text}] for text in ("Hi", "What is 3 plus 1?", "4", "What?", "1 plus")]


def slow_likelihood(model: LanguageModel, context: list[int], text: list[int]) -> tuple[float, bool, float]:
    """Log probability token by token, of the pair alone; whether all are greedy; and the largest logit."""
    weights = dict(checkpoint_slices(model.model))
    logits_TV = reference_logits(model.model.config, weights, context + text)
    total, greedy, largest = 0.0, True, 0.0
    for place, token in enumerate(text, len(context)):
        logits_V = logits_TV[place - 1]
        total += float(logits_V.double().log_softmax(-1)[token])
        greedy &= int(logits_V.argmax()) == token
        largest = max(largest, float(logits_V.abs().max()))
    return total, greedy, largest


@torch.no_grad()
def likelihood_error(model: LanguageModel) -> float:
    """Worst over the pairs, in units of what the logits' own parity allows."""
    worst = 0.0
    for (context, text), found in zip(PAIRS, model.likelihoods(PAIRS), strict=True):
        total, greedy, largest = slow_likelihood(model, context, text)
        assert found.is_greedy == greedy
        # a logit off by d moves a log-softmax by 2 d at most, and there is one for each token
        worst = max(worst, abs(found.log_probability - total) / (2 * len(text) * largest * RELATIVE_TOLERANCE))
    return worst


def test_likelihoods_are_those_of_one_token_at_a_time(language_model: LanguageModel) -> None:
    assert likelihood_error(language_model) < 1


def test_the_comparison_notices_a_token_too_many(
    language_model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitting = language_model_module._fitting
    monkeypatch.setattr(
        language_model_module, "_fitting", lambda context, text, limit: ([0, *fitting(context, text, limit)[0]], text)
    )
    with pytest.raises(AssertionError):
        assert likelihood_error(language_model) < 100


def test_a_greedy_continuation_is_known_as_one(language_model: LanguageModel) -> None:
    [tokens] = generate(language_model.model, [[3, 1, 4]], 3, [])
    [found, other] = language_model.likelihoods([([3, 1, 4], tokens), ([3, 1, 4], [*tokens[:2], tokens[2] ^ 1])])
    assert found.is_greedy
    assert not other.is_greedy
    assert other.log_probability < found.log_probability < 0


def test_a_context_beyond_the_positions_loses_its_beginning(language_model: LanguageModel) -> None:
    object.__setattr__(language_model.model.config, "max_positions", 6)
    long, short = language_model.likelihoods([([9, 9, 9, 3, 1, 4, 1], [5, 9]), ([3, 1, 4, 1], [5, 9])])
    assert long.log_probability == pytest.approx(short.log_probability, rel=1e-6)
    with pytest.raises(ValueError, match="pair 1 has 1 and 6 tokens; the model takes 6"):
        language_model.likelihoods([PAIRS[0], ([1], [1] * 6)])
    with pytest.raises(ValueError, match="pair 0 has 0 and 1 tokens"):
        language_model.likelihoods([([], [1])])


def test_answers_come_in_the_order_of_the_questions(language_model: LanguageModel) -> None:
    answers = language_model.answer(CONVERSATIONS, 6)
    for messages, answer in zip(CONVERSATIONS, answers, strict=True):
        assert language_model.answer([messages], 6) == [answer]
    assert len({answer.text for answer in answers}) > 2
    assert language_model.answer([], 6) == language_model.likelihoods([]) == []


def test_an_answer_says_why_it_ended(language_model: LanguageModel, tokenizer: PreTrainedTokenizerFast) -> None:
    assert {answer.finish for answer in language_model.answer(CONVERSATIONS, 2)} == {"length"}
    torch.nn.init.zeros_(language_model.model.lm_head.weight)
    language_model.tokenizer.eos_token, kept = tokenizer.convert_ids_to_tokens(0), tokenizer.eos_token
    assert set(language_model.answer(CONVERSATIONS, 2)) == {Answer("", "stop")}
    language_model.tokenizer.eos_token = kept
    object.__setattr__(language_model.model.config, "max_positions", len(language_model.prompt(CONVERSATIONS[0])) + 1)
    finishes = [answer.finish for answer in language_model.answer(CONVERSATIONS, 2)]
    assert finishes[0] == "length", "one position is left"
    assert finishes[1] == "too_long"


def test_sampled_answers_follow_from_the_seed(language_model: LanguageModel) -> None:
    def sampled(seed: int) -> list[Answer]:
        return language_model.answer(CONVERSATIONS, 6, Sampling(2.0), seed)

    assert sampled(0) == sampled(0) != sampled(1)


def _one_process(process: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=process, world_size=2)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    result: dict[str, Any] = {"ranks": on_all(rank), "first": on_first(rank), "reasons": []}
    for name, parallel in (("apart", ExpertParallel()), ("shared", ExpertParallel(dist.group.WORLD))):
        model = LanguageModel(model_of(tokenizer, parallel=parallel), tokenizer, batch_size=2)
        result[name] = {
            "answers": model.answer(CONVERSATIONS, 6),
            "single": model.answer(CONVERSATIONS[:1], 6),
            "likelihoods": model.likelihoods(PAIRS),
            "one": model.likelihoods(PAIRS[:1]),
        }
    relay = Relay(model)
    result["relayed"] = relay.serve(lambda: relay.ask("likelihoods", PAIRS[:1]))
    result["refused"] = _reason(lambda: relay.serve(lambda: relay.ask("likelihoods", [([], [1])])))
    for failing in (0, 1):
        result["reasons"].append(_reason(lambda failing=failing: on_all(lambda: 1 // (rank() - failing))))  # type: ignore[misc]
    Path(f"{directory}/result-{process}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def _reason(work: Callable[[], object]) -> str | None:
    try:
        work()
    except WorkFailedError as error:
        return str(error)
    return None


def test_processes_share_the_work_and_get_all_of_it(
    language_model: LanguageModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Five questions for two processes, then one: those without must go along, for they hold experts."""
    tokenizer.save_pretrained(tmp_path)
    run_processes(_one_process, str(tmp_path), number=2)
    first, second = (json.loads((tmp_path / f"result-{process}.json").read_text()) for process in range(2))
    relayed = first.pop("relayed")
    assert (relayed, second.pop("relayed")) == ([pytest.approx(first["shared"]["one"][0])], None)
    assert first == second
    for results in (first["apart"], first["shared"]):
        assert results["answers"] == [list(answer) for answer in language_model.answer(CONVERSATIONS, 6)]
        assert results["single"] == results["answers"][:1]
        for found, expected in zip(results["likelihoods"], language_model.likelihoods(PAIRS), strict=True):
            assert Likelihood(*found) == pytest.approx(expected, rel=1e-5)
        assert results["one"][0] == pytest.approx(results["likelihoods"][0], rel=1e-5)
    assert (first["ranks"], first["first"]) == ([0, 1], 0)
    assert first["refused"].startswith("ValueError: pair 0 has 0 and 1 tokens")
    assert first["reasons"] == ["ZeroDivisionError: integer division or modulo by zero"] * 2, "whoever fails"
