"""Tasks of lm-evaluation-harness on the model under training.

The harness runs on worker 0 alone, and asks the model by a `Relay`. Running it on every worker would need none, but one
worker's failed download would leave the others waiting for its experts. Tasks that execute generated code are refused
by the harness itself: here it is not told that they may.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

from ray_jobs.evaluate.language_model import LanguageModel
from ray_jobs.evaluate.relay import Relay
from ray_jobs.evaluate.results import Metric, TaskResult
from ray_jobs.evaluate.workers import from_first
from service.errors import InvalidSpecError
from service.spec.evaluate import LmEvalTask

_MARKS = ("alias", "sample_len", "sample_count", "name")
"""Entries of the harness's results that are no metrics."""


class LmEval:
    """The harness's tasks of a spec.

    Args:
        spec: the task's.
        field: its path in the job's spec, for errors.

    Raises:
        InvalidSpecError: the harness is not installed.
    """

    def __init__(self, spec: LmEvalTask, field: str) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise InvalidSpecError("lm-evaluation-harness is not installed: install sleddog[lm-eval]", field)
        self._spec = spec

    def run(self, model: LanguageModel, seed: int) -> TaskResult:
        """Run the harness; all workers must call.

        Raises:
            WorkFailedError: it raised, as when it does not know a task.
        """
        relay = Relay(model)
        result = relay.serve(lambda: self._evaluate(relay, model, seed))
        return from_first(result) or TaskResult([], {})

    def _evaluate(self, relay: Relay, model: LanguageModel, seed: int) -> TaskResult:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from ray_jobs.evaluate.harness_model import HarnessModel

        outcome = simple_evaluate(
            model=HarnessModel(relay, model),
            tasks=list(self._spec.tasks),
            num_fewshot=self._spec.num_few_shot,
            limit=self._spec.limit,
            apply_chat_template=self._spec.apply_chat_template,
            task_manager=TaskManager(include_path=self._spec.include_path),
            bootstrap_iters=1000,
            random_seed=None,  # the worker's own generators stay as they are
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=seed,
        )
        return task_result(outcome)


def task_result(outcome: Any) -> TaskResult:
    """What the harness found, in our words.

    Args:
        outcome: what `lm_eval.simple_evaluate` returns.
    """
    metrics = {}
    for task, values in outcome["results"].items():
        for name, value in values.items():
            metric, _, filter_name = name.partition(",")
            if metric in _MARKS or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filter_name}")
            label = f"{task}/{metric}" if filter_name in ("", "none") else f"{task}/{metric}/{filter_name}"
            n = outcome["n-samples"].get(task, {}).get("effective") or values["sample_count"]
            metrics[label] = Metric(float(value), float(error) if isinstance(error, int | float) else None, n)
    samples = [
        {
            "id": f"{task}/{line['doc_id']}",
            "prompt": line["arguments"],
            "answer": line["filtered_resps"],
            "target": line["target"],
            "scores": {name: line[name] for name in line["metrics"]},
            "filter": line["filter"],
            "verdict": "scored",
        }
        for task, lines in outcome["samples"].items()
        for line in lines
    ]
    return TaskResult(json.loads(json.dumps(samples, default=str)), metrics)
