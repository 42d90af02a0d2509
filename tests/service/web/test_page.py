"""The page as people use it: signing in, lists, a job."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.service.web.conftest import Complaints
from tests.service.web.story import Cluster, step_events

Picture = Callable[[Page, str], None]


def test_the_key_is_asked_for_and_stays_in_the_tab(page: Page, key: str, complaints: Complaints, url: str) -> None:
    complaints.expected = ("401",)
    page.goto("/")
    page.get_by_label("Key", exact=True).fill("sd-wrong")
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_role("alert")).to_contain_text("this API key is not valid")
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Jobs", level=1)).to_be_visible()
    assert page.evaluate("JSON.stringify(localStorage)") == "{}"
    assert key not in page.url
    page.get_by_role("button", name="Forget key").click()
    expect(page.get_by_label("Key", exact=True)).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_lists_say_when_there_is_nothing(signed_in: Page) -> None:
    signed_in.goto("/")
    expect(signed_in.get_by_text("There are no jobs yet")).to_be_visible()
    signed_in.get_by_role("link", name="Sweeps").click()
    expect(signed_in.get_by_text("There are no sweeps yet")).to_be_visible()


def test_a_running_job_is_live_in_the_list_and_on_its_page(signed_in: Page, cluster: Cluster, picture: Picture) -> None:
    cluster.finished_job()
    cluster.failed_job()
    job = cluster.running_job(60, name="support-model")
    cluster.start_job(name="next-one")
    signed_in.goto("/")
    row = signed_in.get_by_role("row").filter(has_text="support-model")
    expect(row).to_contain_text("step 60/134")
    expect(signed_in.get_by_role("row").filter(has_text="next-one")).to_contain_text("number 1 in the queue")
    expect(signed_in.get_by_role("row").filter(has_text="broken")).to_contain_text("row 17")
    picture(signed_in, "jobs")
    cluster.tell(job, step_events(61, 62))
    expect(row).to_contain_text("step 62/134")
    signed_in.get_by_role("link", name="support-model").click()
    expect(signed_in.get_by_role("heading", level=1)).to_have_text("support-model")
    expect(signed_in.locator(".facts").nth(1)).to_contain_text("62 / 134")
    expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 62")).to_be_visible()
    cluster.tell(job, step_events(63, 70))
    expect(signed_in.get_by_role("img", name="Loss by category, steps 1 to 70")).to_be_visible()
    picture(signed_in, "job-running")
