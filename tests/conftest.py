"""Shared fixtures: a spec to start from, and one real local Ray head for the whole session."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_jobs.report import read_events
from ray_jobs.run_directory import RunDirectory
from service.backends.local_ray import LocalRay

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and the commands would print as narrowly for the whole session

NUM_CPUS = 3
TRIED = "tried"
"""Property of a test that tries many things: what they were, and how many. It is printed at the end of the session."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need a GPU are skipped where there is none."""
    if item.get_closest_marker("gpu"):
        torch = pytest.importorskip("torch")
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was tried, also by tests that have passed, and in other processes."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [
        f"{report.nodeid}: {text}"
        for report in reports
        for name, text in getattr(report, "user_properties", ())
        if name == TRIED and report.when == "call"
    ]
    if told:
        terminalreporter.section("tried")
        for line in told:
            terminalreporter.line(line)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def drive_alone(module: str, directory: Path, spec: dict[str, Any], *arguments: str, timeout_s: float = 240) -> Any:
    """Run a driver on a Ray of its own.

    Args:
        module: a script that takes the arguments and the run directory, and leaves `outcome.json` there.
        directory: of the run; it is made, with `spec.json` in it.
        spec: of the job or the sweep.
        arguments: further ones.
        timeout_s: for all of it.
    """
    directory.mkdir(exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(spec))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", module, *arguments, str(directory)],
        cwd=Path(__file__).parents[1],
        env=environment | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        started = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGABRT)  # which has it tell where each of its threads is
        printed, said = process.communicate()
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        runs = [RunDirectory(str(events.parent)) for events in sorted(directory.rglob("events"))]
        last = [f"{run.url}: {read_events(run)[-1:]}" for run in runs]
        pytest.fail("\n".join([f"not over after {timeout_s} s", *last, printed[-3000:], said[-6000:]]))
    assert process.returncode == 0, said[-3000:]
    return json.loads((directory / "outcome.json").read_text())


def set_at(document: dict[str, Any], path: str, value: Any) -> None:
    """Change a field of a spec by its dotted path."""
    *parents, last = path.split(".")
    for part in parents:
        document = document[int(part)] if isinstance(document, list) else document.setdefault(part, {})
    document[last] = value


@pytest.fixture
def job_document(tmp_path: Path) -> dict[str, Any]:
    """A small valid spec over a file that exists."""
    rows = [{"prompt": f"What is {n} plus 1?", "completion": f"It is {n + 1}."} for n in range(40)]
    path = write_rows(tmp_path / "sums.jsonl", rows)
    return {
        "name": "small",
        "model": {
            "base": {"kind": "preset", "name": "quickstart"},
            "tokenizer": {"kind": "train_bpe", "vocab_size": 320},
        },
        "data": {
            "sources": [{"name": "sums", "category": "math", "form": "prompt_completion", "uri": f"file://{path}"}],
            "sequence_length": 64,
            "held_out_fraction": 0.1,
        },
        "train": {"global_batch_rows": 2, "precision": "fp32", "learning_rate": 1e-3, "checkpoint_every_steps": 4},
        "parallel": {"num_workers": 2, "expert_parallel_size": 2, "accelerator": "cpu"},
        "evaluate": {"prompts": ["What is 3 plus 1?"], "max_new_tokens": 4},
    }


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    head = LocalRay(tmp_path_factory.mktemp("ray") / "token", NUM_CPUS)
    head.start()
    yield head
    processes = head.processes()
    head.stop()
    assert len(processes) > 5, "the head and its helpers were seen"
    assert not [process for process in processes if process.is_running()], "stopping leaves nothing behind"
