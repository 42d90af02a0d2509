"""A control plane with something to tell: real application, store and reconciler; a cluster in memory.

One job trains, one prepares, one waits, others have failed, by the user and by the infrastructure; a webhook's receiver
is away. All that jobs say goes the way of every event: written to the run directory, taken in by the reconciler.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from service.api.app import create_app
from service.api.dependencies import ControlPlane
from service.api.server import Server
from service.attempts import Limits
from service.datasets.datasets import open_datasets
from service.reconcile import Reconciler
from service.spec.event import EVENTS_DIRECTORY, Event, segment_name
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.spec.webhook import WebhookSpec
from service.store.engine import migrate, open_engine
from service.store.store import Store
from tests.service.recording_backend import RecordingBackend

LAYERS = 3

MANIFEST: dict[str, Any] = {
    "accounting": [
        {"stage": "read", "rows_in": 100, "made": 2, "rows_out": 98, "gone": {"rows_rejected": 1, "rows_filtered": 3}},
        {"stage": "deduplicate", "rows_in": 98, "made": 0, "rows_out": 90, "gone": {"exact_duplicates": 8}},
        {"stage": "mix", "rows_in": 90, "made": 0, "rows_out": 80, "gone": {"left_out_by_mixture": 10}},
    ],
    "packing": {"rows": 20, "fill": 0.97, "trained_fraction": 0.6, "tokens": 1242},
}


def step_data(step: int, **changes: Any) -> dict[str, Any]:
    """What a `train.step` event says, as docs/metrics.md lists it."""
    return {
        "step": step,
        "total_steps": 100,
        "epoch": step / 50,
        "loss": 4.0 - step / 100,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "is_skipped": False,
        "tokens_per_s": 5000.0,
        "balance_loss": 0.0311,
        "balance_loss_floor": 0.03,
        "load_max_over_mean_per_layer": [1.25, 1.5, 2.0],
        "router_entropy_per_layer": [1.9, 2.0, 2.05],
        "dead_experts_per_layer": [0, 0, 1],
        "dropped_fraction": 0.01,
        "step_s": 2.0,
        "data_wait_s": 0.1,
        "forward_s": 0.8,
        "backward_s": 0.9,
        "optimizer_s": 0.15,
        "memory_bytes": 2**30,
        "model_flops_utilisation": 0.4,
        "eta_s": 2.0 * (100 - step),
        **changes,
    }


class Observed:
    """The control plane, and what a test may do to it.

    Args:
        store: the store, empty.
        directory: for the run directories.
        spec: of its jobs.
    """

    def __init__(self, store: Store, directory: Path, spec: JobSpec) -> None:
        self.store, self.backend, self._spec = store, RecordingBackend(), spec
        self.reconciler = Reconciler(
            store,
            self.backend,
            max_running_jobs=4,
            interval_s=60.0,
            limits=Limits(max_attempts=2, backoff_s=0.0),
            unwanted_interval_s=0.0,
        )
        runs_url = str(directory / "runs")
        datasets = open_datasets(store, runs_url)
        self.parts = ControlPlane(store, self.backend, self.reconciler, runs_url, datasets, allow_private_webhooks=True)

    def post(self) -> Job:
        """A job, queued."""
        job, _ = self.store.create(Job, self._spec, self.parts.runs_url)
        return job

    def run(self) -> Job:
        """A job that runs."""
        job = self.post()
        self.reconciler.reconcile()
        self.reconciler.reconcile()
        return self.store.get(Job, job.id)

    def say(self, job: Job, *events: Event) -> None:
        """Events as the job's driver writes them, taken in."""
        path = Path(job.run_url) / EVENTS_DIRECTORY / segment_name(time.time_ns(), "driver", 0)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{event.model_dump_json()}\n" for event in events))
        self.reconciler.reconcile()

    def end(self, job: Job, fault: str, attempt: int = 1) -> None:
        """The job's driver fails."""
        data = {"code": "bad_row", "fault": fault, "field": None}
        self.say(job, Event(type="job.failed", attempt=attempt, message="why", data=data))
        self.backend.states[f"{job.id}-a{attempt}"] = ("failed", "")
        for _ in range(3):
            self.reconciler.reconcile()


def fill(observed: Observed) -> Job:
    """Let all happen that there is a metric of; returns the job that trains."""
    store = observed.store
    observed.end(observed.run(), "user")
    lost = observed.run()
    observed.end(lost, "infrastructure")
    observed.end(lost, "infrastructure", attempt=2)
    training = observed.run()
    prepared = Event(type="stage.finished", stage="prepare", data={"duration_s": 1.0, "summary": MANIFEST})
    observed.say(training, Event(type="job.started"), Event(type="stage.started", stage="prepare"), prepared)
    observed.say(training, Event(type="stage.started", stage="train"))
    observed.say(training, Event(type="eval.routing", stage="evaluate", data={"num_experts": 8}))
    warning = Event(type="job.warning", stage="train", data={"kind": "loss_spike"})
    steps = [Event(type="train.step", stage="train", data=step_data(step)) for step in range(1, 11)]
    skipped = Event(type="train.step", stage="train", data=step_data(11, is_skipped=True, gradient_norm=None))
    observed.say(training, *steps, warning, skipped)
    observed.say(training, Event(type="train.step", stage="train", data=step_data(12)))
    preparing = observed.run()
    progress = {"task": "tokenise", "done": 1, "total": 4, "unit": "rows", "eta_s": 3.0}
    observed.say(
        preparing,
        Event(type="stage.started", stage="prepare"),
        Event(type="stage.progress", stage="prepare", data=progress),
    )
    store.create_webhook(WebhookSpec(url="http://127.0.0.1:9/", events=["job.failed"]))
    observed.end(observed.run(), "data")
    observed.parts.webhook_sender.send_due()
    observed.post()
    return store.get(Job, training.id)


@contextmanager
def observed_in(directory: Path, spec: JobSpec) -> Iterator[tuple[Observed, str]]:
    """A control plane that is served on loopback; gives its URL too."""
    engine = open_engine(f"sqlite:///{directory / 'observed.db'}")
    migrate(engine)
    with closing(Store(engine, b"0" * 32)) as store, socket.socket() as listener:
        observed = Observed(store, directory, spec)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = Server(uvicorn.Config(create_app(observed.parts), lifespan="off", log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield observed, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def read_metrics(url: str) -> str:
    """The text of `/metrics`, after a few requests that it tells of."""
    with httpx.Client(base_url=url) as http:
        http.get("/healthz")
        http.get("/nowhere")
        return http.get("/metrics").raise_for_status().text
