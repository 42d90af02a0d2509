"""A job by OpenAI's own package, from a file to a model, on the real cluster."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import write_rows
from tests.system.conftest import System

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL: dict[str, Any] = {
    "model": {"tokenizer": {"vocab_size": 320}},
    "data": {"sequence_length": 64},
    "train": {"precision": "fp32", "checkpoint_every_steps": 4},
    "parallel": {"num_workers": 2, "expert_parallel_size": 2, "accelerator": "cpu"},
}


def chats(path: Path, numbers: range) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} plus 1?"},
                {"role": "assistant", "content": f"It is {n + 1}."},
            ]
        }
        for n in numbers
    ]
    return write_rows(path, rows)


def test_a_file_becomes_a_model(system: System, tmp_path: Path) -> None:
    with openai.OpenAI(base_url=f"{system.url}/v1", api_key=system.api_key) as api:
        training = api.files.create(file=chats(tmp_path / "training.jsonl", range(60)), purpose="fine-tune")
        validation = api.files.create(file=chats(tmp_path / "validation.jsonl", range(900, 910)), purpose="fine-tune")
        job = api.fine_tuning.jobs.create(
            model="quickstart",
            training_file=training.id,
            validation_file=validation.id,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 2, "learning_rate_multiplier": 50}},
            },
            suffix="sums",
            extra_body={"sleddog": SMALL},
        )
        deadline = time.monotonic() + 240
        while (found := api.fine_tuning.jobs.retrieve(job.id)).status in ("queued", "running"):
            assert time.monotonic() < deadline, found.model_extra
            time.sleep(0.5)
        assert found.status == "succeeded", found.error
        assert found.fine_tuned_model == f"ft:quickstart:default:sums:{job.id}"
        assert found.trained_tokens is not None
        assert found.trained_tokens > 60 * 2
        uri = (api.models.retrieve(found.fine_tuned_model).model_extra or {})["uri"]
        assert json.loads((Path(uri) / "config.json").read_text())["model_type"] == "arctic"
        steps = [event.data["step"] for event in api.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]  # type: ignore[attr-defined,index]
        assert steps == sorted(steps, reverse=True)
        checkpoints = list(api.fine_tuning.jobs.checkpoints.list(job.id))
        assert checkpoints[0].step_number == steps[0]
        assert checkpoints[0].metrics.train_loss is not None
    held_out = {line["category"]: line["examples"] for line in system.client.jobs.report(job.id)["data"]["held_out"]}
    assert held_out["validation"] == 10, "all of it is measured, none of it trained on"
