"""Reading many runs often: what has not changed is not read again, and the queue is looked at without its specs."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from service.reconcile import Reconciler
from service.schedule.demand import Demand, demand_of
from service.schedule.queue import Resources
from service.spec.job import JobSpec
from service.spec.resources import Job, Sweep
from service.spec.sweep import SweepSpec
from service.store import waiting
from service.store.store import Store


def test_a_run_that_has_not_changed_is_not_parsed_again(store: Store, spec: JobSpec, sweep_spec: SweepSpec) -> None:
    job, _ = store.create(Job, spec, "file:///runs")
    sweep, _ = store.create(Sweep, sweep_spec, "file:///runs")
    found = store.get(Job, job.id)
    assert found is store.get(Job, job.id)
    assert found in store.list_runs(Job)[0]
    assert any(run is found for run in store.unfinished())
    assert store.get(Sweep, sweep.id).spec == sweep_spec.model_dump(mode="json")

    store.change_status(found, "submitting", attempt=1)
    changed = store.get(Job, job.id)
    assert (changed.status, changed.attempt, changed.spec) == ("submitting", 1, found.spec)
    assert found.status == "queued", "who has read it before keeps what they read"


def test_the_queue_is_in_order_and_as_the_runs_are(
    store: Store, spec: JobSpec, sweep_spec: SweepSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [store.create(Job, spec, "file:///runs", priority=n)[0] for n in range(4)]
    sweep, _ = store.create(Sweep, sweep_spec, "file:///runs")
    assert store.start(store.queued()[1], store.turn())
    left = [jobs[0], jobs[2], jobs[3], sweep]
    queued = store.queued()
    assert [run.id for run in queued] == [run.id for run in left]
    for light in queued:
        run = store.find(light.id)
        assert run is not None
        assert all(getattr(run, name) == value for name, value in light._asdict().items())
        assert run.status == light.status

    monkeypatch.setattr(waiting, "_MOST_AT_ONCE", 2)
    specs = store.specs([run.id for run in (*jobs, sweep)])
    assert specs == {run.id: run.spec for run in (*jobs, sweep)}
    assert store.specs([]) == store.specs(["job-none"]) == {}


def test_the_scheduler_reads_each_spec_once(
    store: Store, reconciler: Reconciler, spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    specs = store.specs

    def counting(run_ids: list[str]) -> dict[str, Any]:
        asked.extend(run_ids)
        return specs(run_ids)

    monkeypatch.setattr(store, "specs", counting)
    ids = [store.create(Job, spec, "file:///runs")[0].id for _ in range(3)]
    for _ in range(3):
        reconciler.reconcile()
    assert sorted(asked) == sorted(ids)


def test_what_a_job_needs(job_document: dict[str, Any], sweep_document: dict[str, Any]) -> None:
    job_document["parallel"] |= {"num_workers": 4, "min_workers": 2, "cpus_per_worker": 3.0, "accelerator": "auto"}
    job_document["train"]["global_batch_rows"] = 4
    demand = demand_of(JobSpec.model_validate(job_document).model_dump(mode="json"))
    assert demand == Demand(gpus=4, min_workers=2, cpus_per_worker=3.0, takes_gpus=True)
    assert demand.needs(None) == demand.needs(Resources(64, 8)) == Resources(6, 2)
    assert demand.needs(Resources(64)) == Resources(6, 0), "a cluster without GPUs"
    sweep_document["base"]["parallel"] = {"num_workers": 4}
    sweep_document["stages"][0]["changes"] = {"parallel.num_workers": 1}
    sweep = demand_of(SweepSpec.model_validate(sweep_document).model_dump(mode="json"))
    assert (sweep.gpus, sweep.min_workers) == (1, 1), "a trial's workers, not the base job's"


def test_a_loop_that_is_woken_all_the_time_leaves_time_to_others(
    reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_s, started = 0.02, time.monotonic()
    monkeypatch.setattr(reconciler, "_look_at_all", lambda: time.sleep(look_s))
    stop = threading.Event()

    def keep_waking() -> None:
        while not stop.wait(0.001):
            reconciler.wake()

    waking = threading.Thread(target=keep_waking)
    waking.start()
    reconciler.start()
    time.sleep(1)
    stop.set()
    waking.join()
    reconciler.stop()
    most = (time.monotonic() - started) / (10 * look_s) + 1
    assert 1 < reconciler.record.num_looks <= most
