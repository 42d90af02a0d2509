"""Examples of the pages are run as they stand, against the real control plane."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.errors import NotFoundError
from tests.docs.pages import ROOT, blocks, name_of, page_paths
from tests.docs.running import Reader

RUN = [path for path in page_paths() if any("run" in block.marks for block in blocks(path.read_text(), name_of(path)))]


def test_the_first_pages_of_a_user_are_run() -> None:
    first = (
        "quickstart.md",
        "sweeps.md",
        "guides/api.md",
        "guides/datasets.md",
        "guides/openai.md",
        "guides/resume.md",
    )
    assert {ROOT / "docs" / name for name in first} <= set(RUN)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_examples_of_a_page_run(page: Path, reader: Reader) -> None:
    if "curl" in page.read_text() and shutil.which("curl") is None:
        pytest.skip("curl is not installed; `make system-packages` installs it")
    assert reader.follow(blocks(page.read_text(), name_of(page))) > 0


def test_an_example_that_fails_is_seen(reader: Reader) -> None:
    def follow(text: str) -> int:
        return reader.follow(blocks(text, "page.md"))

    with pytest.raises(AssertionError, match="no such option: --nonsense"):
        follow("```bash run\nsleddog --nonsense 2>&1 | tr A-Z a-z >&2\n```\n")
    with pytest.raises(AssertionError, match="'yaml' cannot be run"):
        follow("```yaml run\na: 1\n```\n")
    with pytest.raises(NotFoundError):
        follow(
            "```python run\nfrom service.client.client import Client\nclient = Client()\nclient.jobs.get('none')\n```\n"
        )
    assert follow("```python\nraise SystemExit\n```\n") == 0


def test_blocks_of_a_page_go_on_where_earlier_ones_ended(reader: Reader, tmp_path: Path) -> None:
    page = """
```text file=note.txt
kept
```
```python run
job = "job-6b05eaf8-3d9d581d"
```
```python run
assert job != "job-6b05eaf8-" + "3d9d581d"
```
```bash run
export NOTE=note.txt
alias show=cat
```
```bash run
test "$(show $NOTE)" = kept
```
"""
    assert reader.follow(blocks(page, "page.md")) == 4
