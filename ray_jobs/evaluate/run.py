"""All tasks of an evaluation, one after another, and the files that they leave.

    evaluation/<when>/<task>.jsonl    every sample, a line each
    evaluation/<when>/<task>.json     the summary, written last: it says that the task was done

A task that fails does so on all workers at once, says why in its summary, and neither ends the job nor keeps the other
tasks from running: hours of training are not thrown away because a judge is away. What can be known before training (a
missing file, a row of another kind) is an error of the job before training, by `read_tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from ray_jobs.evaluate.gsm8k import Gsm8k
from ray_jobs.evaluate.harness import LmEval
from ray_jobs.evaluate.humaneval import HumanEval
from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.mt_bench import MtBench
from ray_jobs.evaluate.multiple_choice import MultipleChoice
from ray_jobs.evaluate.results import TaskResult
from ray_jobs.evaluate.workers import WorkFailedError, on_first, rank
from ray_jobs.run_directory import RunDirectory, write_file
from service.spec.evaluate import (
    EvaluateSpec,
    Gsm8kTask,
    HumanEvalTask,
    LmEvalTask,
    MtBenchTask,
    MultipleChoiceTask,
    Task,
)

_DIRECTORY = "evaluation"


class RunnableTask(Protocol):
    """A task whose questions are read."""

    def run(self, model: LanguageModel, seed: int) -> TaskResult:
        """Ask and judge; all workers must call.

        Raises:
            WorkFailedError: on all workers at once.
        """


def open_task(spec: Task, field: str) -> RunnableTask:
    """Read a task's questions.

    Args:
        spec: the task's.
        field: its path in the job's spec, for errors.

    Raises:
        SleddogError: they cannot be read.
    """
    match spec:
        case Gsm8kTask():
            return Gsm8k(spec, field)
        case HumanEvalTask():
            return HumanEval(spec, field)
        case MultipleChoiceTask():
            return MultipleChoice(spec, field)
        case MtBenchTask():
            return MtBench(spec, field)
        case LmEvalTask():
            return LmEval(spec, field)


def read_tasks(spec: EvaluateSpec) -> list[RunnableTask]:
    """All tasks, in order, questions read: so that what is wrong with them is known before training.

    Raises:
        SleddogError: a task's questions cannot be read.
    """
    return [open_task(task, f"evaluate.tasks.{index}") for index, task in enumerate(spec.tasks)]


def evaluate_tasks(
    spec: EvaluateSpec,
    model: LanguageModel,
    run: RunDirectory,
    *,
    when: str,
    step: int,
    seed: int,
    tell: Callable[..., None],
) -> None:
    """Run the tasks that an earlier start has not run; all workers must call.

    Args:
        spec: of the evaluation.
        model: as it is now; not modified.
        run: the run directory.
        when: `before`, `step-<n>` or `after`.
        step: optimiser steps done.
        seed: the job's.
        tell: is told each task's summary, as keyword arguments, on every worker.
    """
    for index, task in enumerate(spec.tasks):
        summary_file = _file(when, task.label, "json")
        if on_first(partial(_is_done, run, summary_file, step)):
            continue
        result = _run(task, f"evaluate.tasks.{index}", model, seed)
        head = {"task": task.label, "kind": task.kind, "when": when, "step": step}
        summary = head | result.summary()
        tell(**summary)
        if rank() == 0:
            lines = [json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n" for sample in result.samples]
            write_file(run.join(_file(when, task.label, "jsonl")), "".join(lines).encode("utf-8", "replace"))
            run.write_json(summary_file, summary)


def read_summaries(run: RunDirectory, spec: EvaluateSpec, whens: Sequence[str]) -> list[dict[str, Any]]:
    """What the tasks came to, in order of task and time.

    Args:
        run: the run directory.
        spec: of the evaluation.
        whens: all times of evaluation, in order.
    """
    found = [run.read_json(_file(when, task.label, "json")) for task in spec.tasks for when in whens]
    return [summary for summary in found if summary is not None]


def _run(spec: Task, field: str, model: LanguageModel, seed: int) -> TaskResult:
    try:
        task = on_first(lambda: open_task(spec, field))
        return task.run(model, seed)
    except WorkFailedError as error:
        return TaskResult([], {}, failure=str(error))


def _file(when: str, label: str, extension: str) -> str:
    return f"{_DIRECTORY}/{when}/{label}.{extension}"


def _is_done(run: RunDirectory, name: str, step: int) -> bool:
    summary = run.read_json(name)
    return summary is not None and summary["step"] == step
