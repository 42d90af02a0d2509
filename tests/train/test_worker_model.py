from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ray_jobs.train import loop
from ray_jobs.train.engine import TrainingStep
from service.spec.job import JobSpec


@pytest.mark.parametrize("asked", [False, True])
def test_a_worker_recomputes_layers_if_the_spec_says_so(
    asked: bool, job_document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job_document["train"]["activation_checkpointing"] = asked
    job_document["parallel"] = {}
    recomputed: list[object] = []
    monkeypatch.setattr(loop, "build_engine", lambda step, spec: step)
    monkeypatch.setattr(
        "moe.model.checkpoint", lambda layer, *arguments, **_: recomputed.append(layer) or layer(*arguments)
    )
    worker = object.__new__(loop.Worker)
    worker.spec = JobSpec.model_validate(job_document)
    worker.tokenizer = range(320)  # type: ignore[assignment]  only its size is asked
    worker.settings = SimpleNamespace(categories=("math",))  # type: ignore[assignment]
    worker.device = torch.device("cpu")
    step = worker._build_engine()
    assert isinstance(step, TrainingStep)
    step(loop.collate([None], ["math"], "cpu"), 1.0, 1.0)
    assert recomputed == (list(step.model.layers) if asked else [])
