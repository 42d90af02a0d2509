"""What the control plane costs by the job, by the event and by the node: the unit costs behind docs/scale.md.

    python -m benchmarks.service.scale [--jobs 10000] [--nodes 1000]

The store is SQLite, in a directory of its own. The cluster is a table in memory: a thousand nodes cannot be had for a
benchmark, and what Ray takes is not measured by this.
    decide     the scheduler's rules over a full cluster and a long queue
    look       the reconciler's whole look at the queue: nothing changed, and one job started, so that all move up
    running    the same look at running jobs that have something to say
    events     what an event of a step takes in the store, in time and in bytes; a job's row likewise
    listing    looking for new segments of events in a directory that has many
    history    days of a simulated cluster, decided by the real rules: how full it is, and who waits how long
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from benchmarks.service.load import a_spec
from ray_jobs.run_directory import EventWriter, RunDirectory
from service.backends.base import AttemptState
from service.reconcile import Reconciler
from service.run_reader import new_segments
from service.schedule.decide import decide
from service.schedule.queue import Active, Resources, Share, Situation, Waiting
from service.spec.event import EVENTS_DIRECTORY, Event, segment_group, segment_name
from service.spec.job import JobSpec
from service.spec.resources import Job
from service.store.engine import migrate, open_engine
from service.store.store import Store

GPUS_PER_NODE = 8
JOB_GPUS = (8, 16, 32, 64, 128, 256)
JOB_GPUS_WEIGHTS = (30, 25, 20, 15, 7, 3)
PROJECTS = tuple(f"team-{number}" for number in range(10))


class TableCluster:
    """A cluster that takes every driver and lets it run: a table in memory."""

    shares_filesystem = True
    max_cpus: float | None = None

    def __init__(self, capacity: Resources) -> None:
        self._capacity = capacity
        self.running: set[str] = set()

    def capacity(self) -> Resources:
        """All of it."""
        return self._capacity

    def submit(self, submission_id: str, *_rest: Any) -> None:
        """It runs at once."""
        self.running.add(submission_id)

    def state(self, submission_id: str) -> tuple[AttemptState, str] | None:
        """Running, or not known."""
        return ("running", "") if submission_id in self.running else None

    def stop(self, submission_id: str) -> None:
        """It is gone at once."""
        self.running.discard(submission_id)

    def active(self) -> list[str]:
        """All that run."""
        return list(self.running)


def median_s(work: Callable[[], object], times: int) -> float:
    """Of a repeated piece of work."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def full_cluster(jobs: int, nodes: int) -> Situation:
    """As many jobs of 32 GPUs as there is room for run; others wait, of three priorities and ten projects."""
    rng = random.Random(0)  # noqa: S311  a draw for a benchmark
    capacity = Resources(nodes * 64.0, nodes * float(GPUS_PER_NODE))
    needs = Resources(32 * 8.0, 32.0)
    running = [
        Active(f"a{n}", rng.choice(PROJECTS), rng.randrange(3), 32, needs, ran_s=1e4, remaining_s=rng.uniform(0, 1e5))
        for n in range(int(capacity.gpus) // 32)
    ]
    waiting = []
    for n in range(jobs):
        gpus = rng.choices(JOB_GPUS, JOB_GPUS_WEIGHTS)[0]
        needs = Resources(gpus * 8.0, float(gpus))
        waiting.append(Waiting(f"w{n}", rng.choice(PROJECTS), rng.randrange(3), gpus, needs, rng.uniform(0, 1e4)))
    return Situation(waiting, running, capacity, max_active=10**6, shares={name: Share() for name in PROJECTS})


def deciding(jobs: int, nodes: int) -> str:
    """A decision."""
    situation = full_cluster(jobs, nodes)
    alike = replace(situation, waiting=[replace(job, priority=0, waited_s=0.0) for job in situation.waiting])
    urgent = replace(alike, active=[replace(job, priority=-1, ran_s=1.0) for job in alike.active])
    seconds = [median_s(lambda s=s: decide(s), 3) for s in (situation, alike, urgent)]  # type: ignore[misc]
    mixed, same, young = (f"{1e3 * each:,.0f} ms" for each in seconds)
    return (
        f"decide, {jobs:,} wait, {len(situation.active)} run on {nodes:,} nodes: {mixed} with priorities, "
        f"{same} with one, {young} where lower ones run and may not give way yet"
    )


@dataclass
class World:
    """A store with jobs, and a cluster."""

    store: Store
    cluster: TableCluster
    reconciler: Reconciler
    runs_url: str
    database: Path
    clock: list[float]

    def look_s(self) -> float:
        """One look."""
        start = time.perf_counter()
        self.reconciler.reconcile()
        return time.perf_counter() - start

    @property
    def bytes(self) -> int:
        """Of the database, once its log is written back."""
        with self.store._engine.connect() as connection:  # noqa: SLF001  nothing else needs it
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.database.stat().st_size


def world(directory: Path, gpus: float) -> World:
    """An empty one."""
    database = directory / "scale.db"
    engine = open_engine(f"sqlite:///{database}")
    migrate(engine)
    store, cluster, clock = Store(engine, b"0" * 32), TableCluster(Resources(1e6, gpus)), [0.0]
    reconciler = Reconciler(
        store, cast("Any", cluster), max_running_jobs=10**6, interval_s=60.0, clock=lambda: clock[0]
    )
    return World(store, cluster, reconciler, f"file://{directory}/runs", database, clock)


def post(world: World, spec: JobSpec, number: int) -> list[Job]:
    """Accept jobs."""
    return [world.store.create(Job, spec, world.runs_url)[0] for _ in range(number)]


def looking(directory: Path, spec: JobSpec, jobs: int) -> Iterator[str]:
    """At a queue."""
    here = world(directory, gpus=1.0)
    before = here.bytes
    start = time.perf_counter()
    post(here, spec, jobs)
    accept_s = (time.perf_counter() - start) / jobs
    yield f"job: {1e3 * accept_s:.1f} ms to accept, {(here.bytes - before) / jobs:,.0f} bytes in the store"
    first = here.look_s()
    for _ in range(3):
        here.look_s()
    steady = median_s(here.look_s, 5)
    [only] = here.store.unfinished(("submitting", "running"))
    here.store.change_status(only, "failed", reason="for the benchmark")
    here.look_s()
    moved = here.look_s()
    yield (
        f"look, {jobs:,} wait: the first {first:.2f} s, then {steady:.2f} s; "
        f"when one starts and all move up {moved:.2f} s"
    )


def running(directory: Path, spec: JobSpec, jobs: int) -> str:
    """At jobs that each have a step to tell."""
    here = world(directory, gpus=1e6)
    posted = post(here, spec, jobs)
    for _ in range(3):
        here.look_s()
    silent = median_s(here.look_s, 3)
    writers = [EventWriter(RunDirectory(job.run_url), "trainer", 1, flush_interval_s=3600) for job in posted]
    telling = []
    for step in range(3):
        for writer in writers:
            writer.emit("train.step", stage="train", **step_data(step, layers=35))
            writer.flush()
        telling.append(here.look_s())
    for writer in writers:
        writer.close()
    told = statistics.median(telling)
    return (
        f"look, {jobs} run: {1e3 * silent / jobs:.1f} ms each while they say nothing, "
        f"{1e3 * told / jobs:.1f} ms each with a step to take in"
    )


def step_data(step: int, layers: int) -> dict[str, Any]:
    """Of an event `train.step`, as many figures as a real one has."""
    draw = random.Random(step).random  # noqa: S311  figures of as many digits as real ones
    named: dict[str, Any] = {name: draw() for name in STEP_FIGURES}
    named |= {"step": step, "total_steps": 10_000, "memory_bytes": 70_000_000_000}
    return named | {name: [draw() for _ in range(layers)] for name in STEP_LISTS}


STEP_FIGURES = (
    *("epoch", "loss", "learning_rate", "gradient_norm", "gradient_norm_dense", "gradient_norm_expert"),
    *("tokens_per_s", "trained_tokens", "tokens", "balance_loss", "balance_loss_floor", "dropped_fraction", "eta_s"),
    *("forward_s", "backward_s", "optimizer_s", "data_wait_s", "step_s", "model_flops"),
    *("model_flops_unfrozen", "model_flops_utilisation"),
)
STEP_LISTS = (
    *("balance_loss_per_layer", "load_max_over_mean_per_layer", "dropped_fraction_per_layer"),
    *("router_entropy_per_layer", "dead_experts_per_layer"),
)


def ingesting(directory: Path, spec: JobSpec, events: int) -> Iterator[str]:
    """Steps of one job, for models of 4 and of 35 layers."""
    here = world(directory, gpus=1e6)
    [job] = post(here, spec, 1)
    for layers in (4, 35):
        before, start = here.bytes, time.perf_counter()
        for step in range(events):
            event = Event(type="train.step", stage="train", data=step_data(step, layers))
            here.store.ingest_segment(job.id, f"{layers}-{step}", [event])
        seconds = (time.perf_counter() - start) / events
        size = (here.bytes - before) / events
        yield f"step of {layers} layers: {1e3 * seconds:.1f} ms to take in, {size:,.0f} bytes in the store"


def listing(directory: Path, numbers: tuple[int, ...] = (1_000, 10_000, 100_000)) -> str:
    """Of known segments, one a second, on this machine's disk."""
    events = directory / "listed" / EVENTS_DIRECTORY
    events.mkdir(parents=True)
    known: set[str] = set()
    told = []
    for number in numbers:
        for n in range(len(known), number):
            name = segment_name(n * 10**9, "a1-trainer-00000000", n)
            (events / name).parent.mkdir(exist_ok=True)
            (events / name).touch()
            known.add(name)
        since = segment_group(max(known))
        seconds = median_s(lambda: new_segments(f"file://{events.parent}", known, since), 3)  # noqa: B023
        told.append(f"{1e3 * seconds:,.1f} ms of {number:,}")
    return f"looking for new segments: {', '.join(told)}"


TICK_S = 600.0


class History:
    """A cluster that is decided over by the real rules, every ten minutes of a time of its own.

    Args:
        jobs: that wait at the beginning.
        nodes: of the cluster.
    """

    def __init__(self, jobs: int, nodes: int) -> None:
        self._rng = random.Random(1)  # noqa: S311  a draw for a benchmark
        self._now = 0.0
        self._capacity = Resources(nodes * 64.0, nodes * float(GPUS_PER_NODE))
        self._queue = {f"j{number}": self._draw(f"j{number}") for number in range(jobs)}
        self._running: dict[str, tuple[Waiting, float]] = {}
        self._ends: list[tuple[float, str]] = []
        self.used_gpu_s = dict.fromkeys(PROJECTS, 0.0)
        self.waits: list[tuple[int, int, float]] = []
        self.busy: list[float] = []
        self.decide_s: list[float] = []

    def _draw(self, name: str) -> Waiting:
        gpus = self._rng.choices(JOB_GPUS, JOB_GPUS_WEIGHTS)[0]
        priority = self._rng.choices((0, 1, 2), (70, 25, 5))[0]
        return Waiting(name, self._rng.choice(PROJECTS), priority, gpus, Resources(gpus * 8.0, float(gpus)))

    def run(self, days: float) -> None:
        """Let time pass, as long as anything waits."""
        while self._queue and self._now < days * 86400:
            self._end_jobs()
            self._decide()
            self.busy.append(sum(job.workers for job, _ in self._running.values()) / self._capacity.gpus)
            self._now += TICK_S

    def _end_jobs(self) -> None:
        while self._ends and self._ends[0][0] <= self._now:
            _, name = heapq.heappop(self._ends)
            if (ended := self._running.pop(name, None)) is not None:
                self.used_gpu_s[ended[0].project] += ended[0].workers * (self._now - ended[1])

    def _decide(self) -> None:
        active = [
            Active(job.id, job.project, job.priority, job.workers, job.needs, ran_s=self._now - since)
            for job, since in self._running.values()
        ]
        waiting = [replace(job, waited_s=self._now) for job in self._queue.values()]
        shares = {name: Share(used_worker_s=used) for name, used in self.used_gpu_s.items()}
        start = time.perf_counter()
        decision = decide(Situation(waiting, active, self._capacity, 10**6, shares))
        self.decide_s.append(time.perf_counter() - start)
        for name in decision.preempt:  # it begins anew, as the simplest case
            self._queue[name] = self._running.pop(name)[0]
        for name in decision.start:
            job = self._queue.pop(name)
            self._running[name] = (job, self._now)
            self.waits.append((job.priority, job.workers, self._now))
            heapq.heappush(self._ends, (self._now + self._rng.expovariate(1 / (6 * 3600)), name))


def history(jobs: int, nodes: int, days: float) -> str:
    """What comes of days."""
    past = History(jobs, nodes)
    past.run(days)
    used = list(past.used_gpu_s.values())
    fairness = sum(used) ** 2 / (len(used) * sum(each**2 for each in used))
    waits = {
        priority: statistics.median([wait for of, _, wait in past.waits if of == priority] or [0.0]) / 3600
        for priority in (2, 1, 0)
    }
    large = [wait for _, gpus, wait in past.waits if gpus == max(JOB_GPUS)]
    return (
        f"history, {len(past.busy) * TICK_S / 86400:.1f} days: {len(past.waits):,} of {jobs:,} jobs started; "
        f"{statistics.mean(past.busy):.1%} of the GPUs busy; hours waited in the median "
        + ", ".join(f"{hours:.1f} at priority {priority}" for priority, hours in waits.items())
        + f"; {len(large)} of {max(JOB_GPUS)} GPUs started, the first after {min(large) / 3600:.1f} h; Jain's index of "
        f"ten projects' use {fairness:.3f}; a decision {1e3 * statistics.median(past.decide_s):.0f} ms"
    )


def main() -> None:
    """Print a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="that wait")
    parser.add_argument("--running", type=int, default=250, help="that run, of 32 GPUs each")
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--days", type=float, default=5.0, help="that are simulated")
    options = parser.parse_args()
    print(deciding(options.jobs, options.nodes), flush=True)
    with tempfile.TemporaryDirectory() as name:
        directory, spec = Path(name), a_spec(Path(name))
        for number, lines in enumerate(
            (
                lambda here: looking(here, spec, options.jobs),
                lambda here: [running(here, spec, options.running)],
                lambda here: ingesting(here, spec, 1000),
                lambda here: [listing(here)],
            )
        ):
            here = directory / str(number)
            here.mkdir()
            for line in lines(here):
                print(line, flush=True)
    print(history(options.jobs, options.nodes, options.days), flush=True)


if __name__ == "__main__":
    main()
