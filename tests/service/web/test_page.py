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


def test_a_failed_job_says_what_to_do_and_can_be_resumed(signed_in: Page, cluster: Cluster, picture: Picture) -> None:
    job = cluster.failed_job()
    signed_in.goto(f"/#/jobs/{job.id}")
    alert = signed_in.get_by_role("alert")
    expect(alert).to_contain_text("row 17: the conversation ends with a user's turn")
    expect(alert).to_contain_text("set data.on_bad_row to skip")
    picture(signed_in, "job-failed")
    signed_in.get_by_role("button", name="Resume").click()
    signed_in.get_by_role("dialog").get_by_role("button", name="Resume it").click()
    expect(signed_in.locator(".heading .status")).to_contain_text("queued")
    cluster.look()
    expect(signed_in.locator(".heading .status")).to_contain_text("running")
    expect(signed_in.get_by_role("alert")).to_have_count(0)


def test_a_refused_act_says_why_and_changes_nothing(signed_in: Page, cluster: Cluster, complaints: Complaints) -> None:
    complaints.expected = ("409", "404")  # there is no report of what only seems to have succeeded
    job = cluster.running_job()
    signed_in.goto(f"/#/jobs/{job.id}")
    signed_in.get_by_role("button", name="Cancel").click()
    cluster.tell(job, [{"type": "job.finished", "data": {}}])
    cluster.end(job)
    signed_in.get_by_role("dialog").get_by_role("button", name="Cancel it").click()
    expect(signed_in.get_by_role("dialog").get_by_role("alert")).to_contain_text("already succeeded")


def test_a_log_is_followed(signed_in: Page, cluster: Cluster) -> None:
    job = cluster.running_job()
    attempt = f"{job.id}-a1"
    cluster.backend.printed[attempt] = "".join(f"line {number}\n" for number in range(300))
    signed_in.goto(f"/#/jobs/{job.id}")
    signed_in.get_by_text("The last lines, and what comes").click()
    log = signed_in.get_by_role("log")
    expect(log).to_contain_text("line 299")
    assert "line 99\n" not in (log.text_content() or ""), "only the last lines"
    cluster.backend.printed[attempt] += "one more\n"
    expect(log).to_contain_text("one more")


def test_jobs_are_filtered_by_status(signed_in: Page, cluster: Cluster) -> None:
    cluster.failed_job()
    cluster.running_job(name="support-model")
    signed_in.goto("/")
    expect(signed_in.get_by_role("row")).to_have_count(3)
    signed_in.get_by_role("checkbox", name="failed").check()
    expect(signed_in.get_by_role("row")).to_have_count(2)
    expect(signed_in.get_by_role("link", name="broken")).to_be_visible()
    signed_in.get_by_role("checkbox", name="failed").uncheck()
    signed_in.get_by_role("checkbox", name="succeeded").check()
    expect(signed_in.get_by_text("No job has such a status")).to_be_visible()
