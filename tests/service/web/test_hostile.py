"""What comes from jobs may have been written by anybody: it is shown as text, and does nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import update
from sqlalchemy.orm import Session

from ray_jobs.run_directory import RunDirectory
from service.spec.sweep_results import SweepResults
from service.store.models import JobRow
from service.store.store import Store
from tests.service.web.story import Cluster, read

HOSTILE = (
    '<img src=x onerror="window.taken=1"><script>window.taken=1</script>'
    '<svg onload="window.taken=1"></svg><a href="javascript:window.taken=1">x</a>\u202e\'"${7*7}'
)


def poisoned(value: Any) -> Any:
    """The same with the hostile text behind every text in it, those apart that the page goes by."""
    kept = {"when", "path", "status", "role", "stage", "id", "candidate", "parent", "best"}
    if isinstance(value, str):
        return f"{value} {HOSTILE}"
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {name: item if name in kept else poisoned(item) for name, item in value.items()}
    return value


@pytest.fixture
def harmless(signed_in: Page) -> Iterator[Page]:
    """A page in which nothing of the hostile text has become an element, or has run."""
    yield signed_in
    foreign = signed_in.evaluate("document.querySelectorAll('main img, main script, main a[href^=javascript]').length")
    assert foreign == 0
    assert signed_in.evaluate("window.taken") is None


def rename(store: Store, run_id: str) -> None:
    """As no spec could name it."""
    with Session(store._engine) as session, session.begin():
        session.execute(update(JobRow).where(JobRow.id == run_id).values(name=HOSTILE[:64]))


def test_a_hostile_job_is_only_text(harmless: Page, cluster: Cluster, store: Store) -> None:
    job = cluster.start_job()
    rename(store, job.id)
    events = [
        event if event["type"] == "train.step" else event | {"data": poisoned(event["data"])}
        for event in read("finished_job.json")["events"][:60]
    ]
    events.append({"type": "job.warning", "message": HOSTILE, "data": {"kind": HOSTILE}})
    figures = read("finished_job.json")["routing"]["before"]
    figures["categories"] = {HOSTILE: next(iter(figures["categories"].values()))}
    RunDirectory(job.run_url).write_json("evals/before-routing.json", figures)
    cluster.backend.printed[f"{job.id}-a1"] = f"{HOSTILE}\nlast line\n"
    cluster.tell(job, [*events, {"type": "job.failed", "message": HOSTILE, "data": {"code": "x", "fault": "user"}}])
    cluster.end(job, "failed", HOSTILE)
    harmless.goto("/")
    expect(harmless.get_by_role("link", name=HOSTILE[:64])).to_be_visible()
    harmless.get_by_role("link", name=HOSTILE[:64]).click()
    expect(harmless.get_by_role("heading", level=1)).to_have_text(HOSTILE[:64])
    expect(harmless.get_by_role("alert")).to_contain_text(HOSTILE)
    expect(harmless.get_by_role("heading", name=re.compile(r"^Who are you\? <img"))).to_be_visible()
    for summary in harmless.locator("summary").all():
        summary.click()
    expect(harmless.get_by_role("log")).to_contain_text(HOSTILE)


def test_a_hostile_sweep_is_only_text(harmless: Page, cluster: Cluster, store: Store) -> None:
    sweep = cluster.finished_sweep()
    rename(store, sweep.id)
    results = read("finished_sweep.json")["results"]
    renamed = [
        candidate | {"id": candidate["id"] + HOSTILE, "fields": {HOSTILE: HOSTILE}, "mixture": {HOSTILE: 0.4, "b": 0.6}}
        for candidate in results["candidates"]
    ]
    trials = [trial | {"candidate": trial["candidate"] + HOSTILE, "reason": HOSTILE} for trial in results["trials"]]
    cluster.write_results(sweep, results | {"candidates": renamed, "trials": trials, "verdict": [HOSTILE]})
    assert SweepResults.model_validate(results)
    harmless.goto(f"/#/sweeps/{sweep.id}")
    expect(harmless.get_by_role("region", name="Verdict")).to_contain_text(HOSTILE)
    expect(harmless.get_by_role("table", name="Leaderboard")).to_contain_text(HOSTILE)
    harmless.get_by_text("All 18", exact=True).click()
    expect(harmless.get_by_role("table", name="Trials")).to_contain_text(HOSTILE)


def test_an_address_is_no_way_to_another_service(signed_in: Page, cluster: Cluster) -> None:
    asked: list[str] = []
    signed_in.on("request", lambda request: asked.append(request.url))
    signed_in.goto("/#/jobs/..%2f..%2fhealthz")
    expect(signed_in.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    for path in ("//elsewhere.example/v1/jobs", "https://elsewhere.example/v1/jobs"):
        refused = signed_in.evaluate(
            "path => import('/web/js/api.js').then(api => api.getJson(path)).then(() => '', error => error.name)", path
        )
        assert refused == "TypeError"
    assert not [url for url in asked if "elsewhere" in url or "healthz" in url]
