"""What ends a run, what restarts it, and what a restart does again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from ray_jobs.train.failures import can_restart, cause_of
from ray_jobs.train.placement import worker_counts
from service.errors import CheckpointError, InvalidSpecError, NonFiniteLossError, StorageError, WorkerLostError
from service.spec.job import JobSpec
from tests.conftest import drive_alone, write_rows

PROOFS = ["router_gradient", "balance_loss", "gradient", "packing", "data"]


def test_the_cause_of_an_ended_run_is_found() -> None:
    torn = CheckpointError("torn", "model.base")
    assert cause_of(ControllerError(torn)) is torn
    assert cause_of(WorkerGroupError("", {0: RuntimeError("connection closed"), 1: torn})) is torn
    assert cause_of(WorkerGroupError("", {0: StorageError("full"), 1: torn})) is torn, "what cannot be mended counts"
    lost = cause_of(WorkerGroupError("", {3: RuntimeError("connection closed")}))
    assert lost.code == "worker_lost"
    assert "ranks: 3" in lost.message
    assert cause_of(ControllerError(WorkerGroupStartupFailedError("died"))).code == "worker_lost"


def test_only_the_infrastructure_is_given_another_chance() -> None:
    mended = [StorageError("full"), WorkerLostError("died")]
    final = [NonFiniteLossError("step 3"), CheckpointError("torn"), InvalidSpecError("no")]
    assert [can_restart(error) for error in (*mended, *final)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("workers", "fewest", "experts", "batch", "micro", "counts"),
    [
        (8, None, 2, 16, 1, [8]),
        (8, 1, 1, 16, 1, [8, 4, 2, 1]),
        (8, 1, 2, 16, 1, [8, 4, 2]),
        (6, 2, 1, 12, 2, [6, 3, 2]),
        (8, 3, 1, 16, 1, [8, 4]),
    ],
)
def test_fewer_workers_share_the_batch_and_the_experts_evenly(
    job_document: dict[str, Any],
    workers: int,
    fewest: int | None,
    experts: int,
    batch: int,
    micro: int,
    counts: list[int],
) -> None:
    job_document["parallel"] = {"num_workers": workers, "min_workers": fewest, "expert_parallel_size": experts}
    job_document["train"] |= {"global_batch_rows": batch, "micro_batch_rows": micro}
    assert worker_counts(JobSpec.model_validate(job_document)) == counts


def drive(case: str, directory: Path, document: dict[str, Any], timeout_s: float = 240) -> Any:
    return drive_alone("tests.train.driver_run", directory, document, case, timeout_s=timeout_s)


@pytest.fixture
def document(job_document: dict[str, Any]) -> dict[str, Any]:
    job_document["parallel"] |= {"max_worker_failures": 1, "placement_timeout_s": 20.0}
    return job_document


@pytest.mark.ray
@pytest.mark.slow
def test_an_error_of_one_worker_ends_the_run_at_once(document: dict[str, Any], tmp_path: Path) -> None:
    outcome = drive("one_worker_raises", tmp_path / "run", document)
    assert (outcome["error"], outcome["field"]) == ("invalid_spec", "train.precision")
    assert outcome["starts"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_group_that_finds_no_room_again_ends_the_run(document: dict[str, Any], tmp_path: Path) -> None:
    outcome = drive("the_room_is_taken", tmp_path / "run", document)
    assert (outcome["error"], outcome["field"]) == ("placement_timeout", "parallel.num_workers")
    assert outcome["starts"] == 1
    assert 20 < outcome["seconds_since_death"] < 60


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("when", ["lost_while_it_waits", "lost_while_they_start"])
def test_the_room_of_a_trial_whose_processes_are_lost_is_free_for_its_next_start(
    when: str, document: dict[str, Any], tmp_path: Path
) -> None:
    outcome = drive(when, tmp_path / "run", document)
    assert outcome == {"found": 2, "reserved": []}, "Ray would have kept it for them for ever"


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_fail_while_they_start_leave_their_room_to_the_next(
    document: dict[str, Any], tmp_path: Path
) -> None:
    outcome = drive("they_cannot_connect", tmp_path / "run", document)
    assert (outcome["error"], outcome["starts"], outcome["restarts"]) == ("worker_lost", 0, 1), "it was placed twice"
    assert "nowhere0" in outcome["message"]


def tasks(directory: Path) -> list[dict[str, Any]]:
    """Three questions for two workers that share experts, and a judge that nobody can reach."""
    questions = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(3)]
    judged = [{"question_id": 1, "category": "math", "turns": ["2 + 2?", "Sure?"]}]
    uris = [f"file://{write_rows(directory / f'{len(rows)}.jsonl', rows)}" for rows in (questions, judged)]
    judge = {"base_url": "http://127.0.0.1:1", "model": "m", "max_retries": 0}
    return [
        {"kind": "gsm8k", "uri": uris[0], "max_new_tokens": 4},
        {"kind": "mt_bench", "uri": uris[1], "max_new_tokens": 4, "judge": judge},
    ]


@pytest.mark.ray
@pytest.mark.slow
def test_a_later_attempt_does_only_what_is_left(document: dict[str, Any], tmp_path: Path) -> None:
    document["evaluate"] |= {"every_steps": 8, "tasks": tasks(tmp_path)}
    first, second = drive("attempts", tmp_path / "run", document)
    total = first["report"]["train"]["planned_steps"]
    assert [outcome["steps"] for outcome in (first, second)] == [total, 0]
    whens = ["before", *(f"step-{step}" for step in range(8, total, 8)), "after"]
    assert len(whens) > 2
    assert [outcome["evaluations"] for outcome in (first, second)] == [whens, ["after"]]
    assert list(first["report"]["held_out"]) == whens
    evaluation = first["report"]["evaluation"]
    assert [(line["task"], line["when"]) for line in evaluation] == [
        (task, when) for task in ("gsm8k", "mt_bench") for when in whens
    ]
    assert [line["status"] for line in evaluation] == ["succeeded"] * len(whens) + ["failed"] * len(whens), "it goes on"
    assert all(line["samples"] == 3 and line["metrics"]["exact_match"]["n"] == 3 for line in evaluation[: len(whens)])
    assert len((tmp_path / "run/evaluation/after/gsm8k.jsonl").read_text().splitlines()) == 3
    assert second["report"]["evaluation"] == evaluation, "what was done is not done again"
    stages = ("prepare", "train", "evaluate", "export")
    assert first["reused"] == dict.fromkeys(stages, False)
    assert second["reused"] == {"prepare": True, "train": True, "evaluate": False, "export": True}
    assert second["report"]["export"] == first["report"]["export"]
    assert second["report"]["held_out"] == first["report"]["held_out"], "the same weights were evaluated"
    routing = first["report"]["routing"]
    assert [summary["when"] for summary in routing] == whens
    assert all(0 < same < 1 for summary in routing[1:] for same in summary["layers"]["same_experts"])
    assert second["report"]["routing"] == routing, "compared with what another attempt left of the base model"
    assert [stage["stage"] for stage in second["report"]["stages"]] == list(stages)
    assert second["report"]["train"]["steps_taken_twice"] == 0
    exported = Path(second["report"]["export"]["path"])
    assert ModelCard.load(exported / "README.md").data.model_name == "small"
    started, ended, again = second["report"]["proofs"]
    assert [proof["name"] for proof in started["proofs"]] == PROOFS
    assert all(proof["measured"] <= proof["tolerance"] for proof in started["proofs"][1:])
    assert (ended["step"], ended["proofs"][0]["name"]) == (total, "steps")
    assert (again["attempt"], again["step"]) == (2, total), "who finds all steps taken counts them too"
    assert again["proofs"] == ended["proofs"]


GIVEN_UP = (
    "start 1 of the workers of attempt 1 was given up, and attempt 1, start 2 of its workers, has taken its place"
)


def assert_told_in_turn(told: list[Any], starts: list[int], last: int) -> None:
    """Behind the last start one step after another, to the last one."""
    behind = told[len(told) - told[::-1].index("train.started") :]
    assert [step for step in behind if isinstance(step, int)] == list(range(starts[-1] + 1, last + 1))


def test_steps_of_two_groups_at_once_are_seen() -> None:
    told = ["train.started", 1, 2, "train.started", 2, 3, "checkpoint.saved", 4]
    assert_told_in_turn(told, [0, 1], 4)
    with pytest.raises(AssertionError):
        assert_told_in_turn([*told[:6], 3, *told[6:]], [0, 1], 4)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_on_a_node_that_is_cut_off_give_way_to_a_smaller_group_that_goes_on_from_the_last_checkpoint(
    document: dict[str, Any], tmp_path: Path
) -> None:
    document["parallel"] |= {"num_workers": 2, "min_workers": 1, "expert_parallel_size": 1}
    document["train"] |= {"checkpoint_every_steps": 10, "epochs": 10}
    outcome = drive("node_cut_off", tmp_path / "run", document, timeout_s=480)
    assert outcome["last_words"] == [GIVEN_UP], "they had lived on, and ended themselves"
    assert_told_in_turn(outcome["told"], outcome["starts"], outcome["report"]["train"]["planned_steps"])
    assert outcome["workers"] == [2, 1]
    assert outcome["starts"][0] == 0
    assert outcome["starts"][1] > 0
    train = outcome["report"]["train"]
    assert train["steps"] == train["planned_steps"]
    assert "workers_restarted" in outcome["warnings"]
    taken = [loss for step, loss in outcome["losses"] if step == outcome["starts"][1] + 1]
    # The step from the checkpoint, by two workers and by one: the same rows and weights. Sums of at most 128 tokens'
    # losses over 4 layers are taken in another order, each rounded to 2^-24.
    assert taken[0] == pytest.approx(taken[-1], rel=4 * 128 * 2**-24)
