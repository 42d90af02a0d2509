"""The `sleddog` command: what it says to a person, and to whom it shows a key."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from typer.testing import CliRunner

from ray_jobs.run_directory import EventWriter, RunDirectory
from service.cli import app
from service.client.client import Client
from service.client.progress_view import describe_progress
from service.client.report_view import sparkline
from service.reconcile import Reconciler
from service.spec.job import JobSpec
from tests.service.recording_backend import RecordingBackend

pytestmark = pytest.mark.usefixtures("apart")


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def test_help_names_every_command_and_version_is_told() -> None:
    code, text = run("--help")
    assert code == 0
    for name in (
        "serve",
        "run",
        "validate",
        "submit",
        "jobs",
        "watch",
        "logs",
        "cancel",
        "report",
        "data",
        "datasets",
        "sweep",
    ):
        assert name in text
        assert run(name, "--help")[0] == 0
    assert run("--version")[1].startswith("sleddog ")


def test_faults_are_one_clear_line_each(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("- no\n")
    (tmp_path / "folder.yaml").mkdir()
    for arguments, reason in [
        (("submit", "nowhere.yaml"), "nowhere.yaml"),
        (("submit", "job.yaml"), "job.yaml is no mapping"),
        (("validate", "folder.yaml"), "folder.yaml"),
        (("jobs",), "no API key"),
        (("jobs", "--url", "http://[::1", "--api-key", "k"), "is no URL"),
        (("serve", "--ray-dashboard-url", "https://ray"), "--ray-token-path"),
    ]:
        code, text = run(*arguments)
        assert (code, text.count("\n")) == (1, 1), text
        assert text.startswith("sleddog: ")
        assert reason in text


def test_a_job_is_validated_posted_listed_and_cancelled(
    url: str, key: str, job_document: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "job.json").write_text(json.dumps(job_document))
    access = ("--url", url, "--api-key", key)
    code, text = run("validate", "job.json")
    assert code == 0
    assert JobSpec.model_validate_json(text) == JobSpec.model_validate(job_document)
    code, text = run("submit", "job.json", *access)
    assert code == 0
    job_id = text.strip()
    assert job_id in run("jobs", *access)[1]
    assert run("cancel", job_id, *access)[1].strip() == "cancelled"
    assert run("watch", job_id, *access)[0] == 1, "it did not succeed"


def test_text_of_users_is_not_taken_for_markup(
    url: str, key: str, client: Client, spec: JobSpec, reconciler: Reconciler, backend: RecordingBackend
) -> None:
    job = client.jobs.create(spec)
    reconciler.reconcile()
    reconciler.reconcile()
    with EventWriter(RunDirectory(job.run_url), "driver", attempt=1) as events:
        events.emit("job.failed", message="row 7: [/INST] in list[str]", code="bad_row", fault="data")
    backend.states[f"{job.id}-a1"] = ("failed", "")
    reconciler.reconcile()
    code, text = run("jobs", "--url", url, "--api-key", key)
    assert code == 0
    assert "row 7: [/INST] in list[str]" in text


def test_the_local_key_is_shown_to_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Listener(BaseHTTPRequestHandler):
        """Notes the key it is shown."""

        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / ".sleddog").mkdir()
    (tmp_path / ".sleddog" / "api-key").write_text("local-key")
    (tmp_path / "team-key").write_text("team-key\n")
    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            here = f"http://127.0.0.1:{server.server_port}"
            run("jobs", "--url", here)
            monkeypatch.setenv("SLEDDOG_API_KEY_FILE", str(tmp_path / "team-key"))
            run("jobs", "--url", here)
            monkeypatch.delenv("SLEDDOG_API_KEY_FILE")
            assert "no API key" in run("jobs", "--url", "http://sleddog.example")[1]
        finally:
            server.shutdown()
            thread.join()
    assert seen == ["Bearer local-key", "Bearer team-key"]


def test_progress_is_described_whatever_is_not_known_yet(client: Client, spec: JobSpec) -> None:
    job = client.jobs.create(spec)
    assert describe_progress(job) == "  number 1 in the queue"
    for fields, line in [
        ({"stage": "prepare"}, "  prepare"),
        ({"stage": "prepare", "task": "pack", "done": 1, "unit": "shards"}, "  prepare  pack: 1 shards"),
        (
            {"stage": "prepare", "task": "pack", "done": 1, "total": 3, "unit": "shards", "eta_s": 61},
            "  prepare  pack: 1/3 shards  ETA 1:01",
        ),
        ({"stage": "train", "step": 3, "total_steps": 9}, "  train  step 3/9"),
        (
            {"stage": "train", "step": 3, "total_steps": 9, "loss": 1.5, "eta_s": 61},
            "  train  step 3/9  loss 1.500  ETA 1:01",
        ),
    ]:
        progress = job.progress.model_copy(update=fields)
        running = job.model_copy(update={"status": "running", "queue_position": None, "progress": progress})
        assert describe_progress(running) == line


def test_a_sparkline_spans_smallest_to_largest() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0]) == "▁"
    assert sparkline([0.0, 1.0]) == "▁█"
    assert len(sparkline([float(value) for value in range(1000)])) == 60
