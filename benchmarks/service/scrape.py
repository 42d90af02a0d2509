"""What a scrape of `/metrics` takes, over a store with many jobs.

    python -m benchmarks.service.scrape --stored 10000 --queued 500 --running 50 --layers 35

Jobs are written to the table as they stand, with specs of the usual size; running ones have the progress of a training
that has taken steps. The application answers in this process, so the network is left out.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from fastapi.testclient import TestClient
from sqlalchemy import Engine, insert

from service.api.app import assemble, create_app
from service.settings import Settings
from service.spec.event import Event
from service.spec.job import JobSpec
from service.store.engine import migrate, open_engine
from service.store.models import JobRow, table_of
from service.store.progress import fold_progress
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend

ROUNDS = 20


def main() -> None:
    """Fill a store, scrape, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("stored", 10_000), ("queued", 500), ("running", 50), ("layers", 35)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(data_dir=Path(directory))
        engine = open_engine(settings.resolved_database_url)
        migrate(engine)
        fill(engine, args)
        parts = assemble(settings, Store(engine, b"0" * 32), RecordingBackend())
        http = TestClient(create_app(parts), client=("127.0.0.1", 1))
        text = http.get("/metrics").text
        busy_s = time.process_time()
        times = sorted(timed(http) for _ in range(ROUNDS))
        busy_s = (time.process_time() - busy_s) / ROUNDS
    samples = sum(not line.startswith("#") for line in text.splitlines())
    result = {**vars(args), "samples": samples, "bytes": len(text)}
    measured = {"median_s": median(times), "worst_s": times[-1], "processor_s": busy_s}
    print(json.dumps(result | {name: round(value, 4) for name, value in measured.items()}))


def timed(http: TestClient) -> float:
    """Seconds that a scrape takes."""
    start = time.perf_counter()
    http.get("/metrics").raise_for_status()
    return time.perf_counter() - start


def fill(engine: Engine, args: argparse.Namespace) -> None:
    """Write the jobs."""
    statuses = ["running"] * args.running + ["queued"] * args.queued
    ended = cycle(["succeeded"] * 8 + ["failed", "cancelled"])
    statuses += islice(ended, args.stored - len(statuses))
    progress = trained(args.layers)
    with engine.begin() as connection:
        connection.execute(insert(table_of(JobRow)), list(rows(statuses, progress)))


def rows(statuses: list[str], progress: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One for each status, with a spec of the usual size."""
    source = {"category": "code", "form": "messages", "uri": "s3://example/rows.jsonl"}
    document = {
        "name": "many",
        "model": {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "train_bpe"}},
        "data": {"sources": [source | {"name": f"source-{number}"} for number in range(6)]},
    }
    spec = JobSpec.model_validate(document)
    values = {"kind": "job", "name": "many", "spec": spec.model_dump(mode="json"), "spec_sha256": spec.sha256()}
    now = datetime.now(UTC)
    for number, status in enumerate(statuses):
        has_begun = status != "queued"
        yield values | {
            "id": f"job-{number:08x}",
            "project_id": f"project-{number % 20}",
            "status": status,
            "attempt": int(has_begun),
            "run_url": f"s3://example/runs/job-{number:08x}",
            "created_at": now - timedelta(seconds=number),
            "started_at": now if has_begun else None,
            "progress": progress if has_begun else {},
        }


def trained(layers: int) -> dict[str, Any]:
    """The progress of a job in training."""
    per_layer = ("load_max_over_mean", "dead_experts", "router_entropy", "balance_loss", "dropped_fraction")
    scalars = ("loss", "learning_rate", "gradient_norm", "step_s", "data_wait_s", "forward_s", "backward_s")
    data: dict[str, Any] = dict.fromkeys((*scalars, "optimizer_s", "dropped_fraction", "eta_s"), math.pi)
    data |= {f"{name}_per_layer": [math.pi] * layers for name in per_layer}
    event = Event(type="train.step", stage="train", data=data | {"step": 1, "total_steps": 10, "memory_bytes": 10**10})
    return fold_progress({}, event)


if __name__ == "__main__":
    main()
