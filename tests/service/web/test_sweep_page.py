"""A sweep's page: what it found, and the job that comes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from service.spec.resources import Job
from service.store.store import Store
from tests.service.web.story import Cluster, read

Picture = Callable[[Page, str], None]


def test_a_finished_sweep_shows_what_it_found(signed_in: Page, cluster: Cluster, picture: Picture) -> None:
    sweep = cluster.finished_sweep()
    signed_in.goto("/#/sweeps")
    signed_in.get_by_role("link", name="quick-sweep").click()
    expect(signed_in.get_by_text("Best in stage proxy-3m: code 66.8%")).to_be_visible()
    board = signed_in.get_by_role("table", name="Leaderboard of 4 candidates")
    first = board.get_by_role("row").nth(1)
    expect(first).to_contain_text("best")
    expect(first).to_contain_text("+2.0 ± 6.2")
    picture(signed_in, "sweep")
    signed_in.get_by_label("Stage", exact=True).select_option("proxy-1m")
    expect(signed_in.get_by_role("table", name="Leaderboard of 12 candidates")).to_be_visible()
    expect(
        signed_in.get_by_role("img", name="Mixes of 11 candidates over code, general, identity, math")
    ).to_be_visible()
    picture(signed_in, "sweep-first-stage")
    signed_in.get_by_label("Only beams").check()
    expect(signed_in.get_by_role("table", name="Leaderboard of 4 candidates")).to_be_visible()
    with signed_in.expect_download() as download:
        signed_in.get_by_role("button", name="Download the report").click()
    assert download.value.suggested_filename == f"{sweep.id}.html"
    assert "What the sweep found" in download.value.path().read_text()


@pytest.mark.usefixtures("apart")
def test_a_promoted_mix_is_shown_then_posted_once(
    signed_in: Page, cluster: Cluster, store: Store, picture: Picture
) -> None:
    cluster.backend.shares_filesystem = False  # the sources are on the cluster alone
    sweep = cluster.finished_sweep()
    best = read("finished_sweep.json")["results"]["best"]
    signed_in.goto(f"/#/sweeps/{sweep.id}")
    signed_in.get_by_role("button", name=f"Promote {best.removeprefix('proxy-3m-')}").click()
    dialog = signed_in.get_by_role("dialog")
    expect(dialog).to_contain_text("code 66.8 %")
    picture(signed_in, "promote")
    assert store.list_runs(Job)[0] == [], "nothing is started by looking"
    dialog.get_by_role("button", name="Start this job").click()
    expect(signed_in.get_by_role("heading", level=1)).to_have_text("quickstart")
    [job] = store.list_runs(Job)[0]
    assert signed_in.url.endswith(f"/#/jobs/{job.id}")
    assert job.spec["data"]["mixture"]["code"]["share"] == pytest.approx(0.6682, abs=1e-3)


def test_a_running_sweep_is_followed(signed_in: Page, cluster: Cluster) -> None:
    results = read("finished_sweep.json")["results"]
    sweep = cluster.start_sweep()
    signed_in.goto(f"/#/sweeps/{sweep.id}")
    expect(signed_in.get_by_text("from its first trial on")).to_be_visible()
    first = [candidate for candidate in results["candidates"] if candidate["stage"] == "proxy-1m"][:7]
    trials = [trial for trial in results["trials"] if trial["candidate"] in {candidate["id"] for candidate in first}]
    stages = [{"name": "proxy-1m", "status": "running", "num_trials": 7}, {"name": "proxy-3m", "status": "pending"}]
    cluster.write_results(
        sweep, {**results, "candidates": first, "trials": trials, "stages": stages, "verdict": [], "agreements": []}
    )
    progress = {"round": 0, "trials_ended": 5, "trials_planned": 7, "best": "proxy-1m-r0-c0", "best_score": 0.0}
    cluster.tell(sweep, [{"type": "sweep.progress", "stage": "proxy-1m", "data": progress}])
    expect(signed_in.get_by_role("table", name="Leaderboard of 7 candidates")).to_be_visible()
    expect(signed_in.get_by_role("list", name="Stages")).to_contain_text("round 1 · 5/7 trials")


def test_three_categories_are_shown_in_a_triangle(signed_in: Page, cluster: Cluster, picture: Picture) -> None:
    sweep, results = cluster.finished_sweep(), read("finished_sweep.json")["results"]
    for candidate in results["candidates"]:
        if candidate["mixture"] is not None:
            identity = candidate["mixture"].pop("identity")
            candidate["mixture"]["math"] += identity
        elif candidate["role"] == "base":
            candidate["mixture"] = {"code": 0.5, "general": 0.2, "math": 0.3}
    first = {candidate["id"] for candidate in results["candidates"] if candidate["stage"] == "proxy-1m"}
    num_children = sum(candidate["parent"] in first and candidate["id"] in first for candidate in results["candidates"])
    assert num_children > 0
    cluster.write_results(sweep, results)
    signed_in.goto(f"/#/sweeps/{sweep.id}")
    triangle = signed_in.get_by_role("img", name="Mixes of 12 candidates over code, general, math")
    expect(triangle.locator("circle")).to_have_count(11)
    expect(triangle.locator("rect")).to_have_count(1)
    expect(triangle.locator(".descent line")).to_have_count(num_children)
    picture(signed_in, "sweep-triangle")
