"""`sleddog datasets …` against the real application over a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.cli import app
from tests.conftest import write_rows
from tests.service.test_datasets import CHATS

pytestmark = pytest.mark.usefixtures("apart", "working")


@pytest.fixture
def run(url: str, key: str) -> Any:
    def run(command: str, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["datasets", command, *arguments, "--url", url, "--api-key", key])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.exit_code, result.output

    return run


def test_a_file_is_uploaded_looked_at_and_deleted(run: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "chats.jsonl", CHATS[:3])
    code, uri = run("upload", "chats.jsonl", "--name", "[red]chats.jsonl")
    assert code == 0
    dataset_id = uri.strip().removeprefix("dataset://")
    assert "[red]chats.jsonl" in run("list")[1]
    assert json.loads(run("list", "--json")[1])["data"][0]["id"] == dataset_id
    assert run("validate", dataset_id) == (0, "valid: 3 conversations in 3 rows\n")
    code, text = run("preview", dataset_id, "--start", "2", "--limit", "1")
    assert text.splitlines() == [
        "── row 2 ──",
        "<|im_start|>user",
        "What is 1?<|im_end|>",
        "<|im_start|>assistant",
        "⟦It is 1.<|im_end|>⟧",
        "",
    ]
    code, text = run("stats", dataset_id)
    assert code == 0
    assert "turns of assistant" in text
    assert "16 - 31" in text
    assert json.loads(run("stats", dataset_id, "--json")[1])["num_turns"] == 6
    assert run("delete", dataset_id) == (0, "")
    assert run("delete", dataset_id, "--json") == (1, f"sleddog: there is no dataset '{dataset_id}'\n")


def test_rows_at_fault_are_told(run: Any, tmp_path: Path) -> None:
    write_rows(tmp_path / "odd.jsonl", [{"q": "a", "a": "b"}, {"q": "\x1b[31m"}])
    dataset_id = json.loads(run("upload", "odd.jsonl", "--json")[1])["id"]
    form = '{"kind": "columns", "prompt": "q", "completion": "a"}'
    code, text = run("validate", dataset_id, "--form", form)
    assert code == 1
    assert "not valid: 1 conversations in 2 rows, 1 rejected" in text
    assert "row 2: no field 'a'" in text
    code, text = run("preview", dataset_id, "--form", form)
    assert "── row 2 · rejected: no field 'a' ──" in text
    assert "\x1b" not in text
    assert run("validate", dataset_id, "--form", "{no")[1].startswith("sleddog: form: neither")
