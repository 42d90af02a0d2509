"""Whoever cannot see colours, uses no mouse, or has a narrow screen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.service.web.conftest import AXE, Complaints, give_key
from tests.service.web.story import Cluster

OpenPage = Callable[..., Page]
Picture = Callable[[Page, str], None]


def violations(page: Page) -> list[str]:
    """What axe-core finds, by rule and element."""
    page.evaluate(AXE.read_text())
    found: list[dict[str, Any]] = page.evaluate("async () => (await axe.run()).violations")
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_view_has_a_fault_that_axe_knows(
    open_page: OpenPage, key: str, cluster: Cluster, theme: str, picture: Picture
) -> None:
    job = cluster.finished_job()
    cluster.failed_job()
    sweep = cluster.finished_sweep()
    running = cluster.running_job(name="support-model")
    cluster.tell(running, [warning("router_collapse", "layer 2: 1.4 effective experts of 8 for 20 steps")])
    page = open_page(color_scheme=theme, bypass_csp=True)
    page.goto("/")
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    faults = {"sign in": violations(page)}
    give_key(page, key)
    page.reload()
    expect(page.get_by_role("table")).to_be_visible()
    picture(page, f"jobs-{theme}")
    faults["jobs"] = violations(page)
    page.goto(f"/#/jobs/{job.id}")
    expect(page.get_by_role("img", name="Load of 8 experts")).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()
    faults["job"] = violations(page)
    page.goto(f"/#/jobs/{running.id}")
    expect(page.get_by_text("layer 2: 1.4 effective")).to_be_visible()
    picture(page, f"job-{theme}")
    page.get_by_role("button", name="Cancel").click()
    faults["dialog"] = violations(page)
    page.keyboard.press("Escape")
    page.goto(f"/#/sweeps/{sweep.id}")
    expect(page.get_by_role("table", name="Leaderboard")).to_be_visible()
    page.get_by_text("All 18", exact=True).click()
    picture(page, f"sweep-{theme}")
    faults["sweep"] = violations(page)
    assert {view: found for view, found in faults.items() if found} == {}


def warning(kind: str, message: str) -> dict[str, Any]:
    return {"type": "job.warning", "stage": "train", "message": message, "data": {"kind": kind}}


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what is named so has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent || document.activeElement.value") == name:
            return
    raise AssertionError(f"Tab never comes to {name}")


def test_a_job_is_found_and_cancelled_by_keyboard_alone(page: Page, key: str, cluster: Cluster) -> None:
    job = cluster.running_job(name="support-model")
    page.goto("/")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="support-model")).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="support-model")).to_be_visible()
    tab_to(page, "Skip to the content")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    tab_to(page, "support-model")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is seen"
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    tab_to(page, "Cancel")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    assert cluster.parts.store.find(job.id).status == "running", "Escape cancels nothing"  # type: ignore[union-attr]
    page.keyboard.press("Enter")
    tab_to(page, "Cancel it")
    page.keyboard.press("Enter")
    expect(page.locator(".heading .status")).to_have_text("◑ cancelling")
    cluster.end(job, "stopped")
    expect(page.locator(".heading .status")).to_have_text("⊘ cancelled")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_a_narrow_screen(
    open_page: OpenPage, key: str, cluster: Cluster, theme: str, picture: Picture
) -> None:
    job, sweep = cluster.finished_job(), cluster.finished_sweep()
    cluster.failed_job()
    page = give_key(open_page(viewport={"width": 400, "height": 800}, color_scheme=theme), key)
    for name, path in {"jobs": "/jobs", "job": f"/jobs/{job.id}", "sweep": f"/sweeps/{sweep.id}"}.items():
        page.goto(f"/#{path}")
        expect(page.get_by_role("table").first).to_be_visible()
        picture(page, f"narrow-{name}-{theme}")
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 400, f"{name} is {width} pixels wide"


def test_the_switch_outlasts_the_page_and_goes_before_the_system(open_page: OpenPage, key: str) -> None:
    page = give_key(open_page(color_scheme="light"), key)
    page.goto("/")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.get_by_label("Colours").select_option("dark")
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    expect(page.get_by_label("Colours")).to_have_value("dark")
    assert page.evaluate(background) == dark
    page.get_by_label("Colours").select_option("auto")
    assert page.evaluate(background) == light


def test_curves_and_loads_are_there_in_numbers_too(signed_in: Page, cluster: Cluster, complaints: Complaints) -> None:
    job = cluster.finished_job()
    signed_in.goto(f"/#/jobs/{job.id}")
    signed_in.get_by_text("Numbers of Learning rate").click()
    table = signed_in.get_by_role("table", name="Learning rate, some of 134 steps")
    expect(table.get_by_role("row")).to_have_count(13)
    expect(table.get_by_role("row").nth(1)).to_contain_text("5.71e\N{MINUS SIGN}4")
    signed_in.get_by_text("Numbers of the load by layer").click()
    expect(signed_in.get_by_role("table", name="Load by layer").get_by_role("row")).to_have_count(5)
    assert not complaints.seen
