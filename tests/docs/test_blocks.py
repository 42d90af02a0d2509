"""What the pages show can be used as it stands: specs are valid, commands exist, Python compiles."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.command_lines import extras_fault, fault_of, simple_commands, sleddog_arguments, span_fault
from tests.docs.pages import ROOT, SHELLS, all_blocks, blocks, code_spans, name_of, page_paths
from tests.docs.specs import block_fault

FOLDERS = ("service", "ray_jobs", "moe", "tests", "docs", "scripts", "examples", "benchmarks", "deploy")
SOURCES = (".py", ".js", ".cpp")
NOT_OURS = {"zero_to_fp32.py"}
LANGUAGES = {*SHELLS, "python", "yaml", "json", "toml", "text", "promql", "dockerfile", "ini", "csv", "{toctree}"}


def test_specs_in_the_pages_are_valid(tmp_path: Path) -> None:
    found = [block for block in all_blocks() if block.language in ("yaml", "json", "toml")]
    faults = [
        f"{block.place}: {fault}"
        for block in found
        if (fault := block_fault(block.language, block.text, tmp_path, is_other="other" in block.marks))
    ]
    assert not faults, "\n".join(faults)
    assert len(found) > 15


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("train: {learning_rat: 1}", "train.learning_rat: unknown field"),
        ("trian: {learning_rate: 1}", "no spec has the fields trian"),
        ("train: {learning_rate: 0}", "train.learning_rate"),
        ("- a list", "is no mapping"),
        ("a: [", "cannot be parsed"),
        ("name: x\nstages: [{name: a, max_steps: 0}]\nbase: job.yaml", "stages.0.max_steps"),
        (
            "name: x\nstages: [{name: a, max_steps: 1}]\nbase: job.yaml\naxes: {mixture: {a: {min: 2}}}",
            "axes.mixture.a",
        ),
        ("apiVersion: v1\nkind: ConfigMap\n---\ntrain: 3", "train"),
    ],
)
def test_a_wrong_spec_is_seen(text: str, fault: str, tmp_path: Path) -> None:
    assert fault in (block_fault("yaml", text, tmp_path, is_other=False) or "")


def test_commands_in_blocks_exist() -> None:
    commands = [
        (block.place, words)
        for block in all_blocks()
        if block.language in SHELLS or (not block.language and "sleddog " in block.text)
        for words in simple_commands(block.text)
    ]
    faults = [f"{place}: {' '.join(words)}: {fault}" for place, words in commands if (fault := fault_of(words))]
    assert not faults, "\n".join(faults)
    assert sum(sleddog_arguments(words) is not None for _, words in commands) > 60


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("sleddog jobs --statuses running", "No such option: --statuses"),
        ("sleddog job", "No such command 'job'"),
        ("KEY=x .venv/bin/sleddog sweep show | head", "Missing argument"),
        ("sleddog jobs --status asleep > out", "'asleep' is not one of"),
        ("kubectl exec deploy/sleddog -- sleddog migrat", "No such command 'migrat'"),
        ("docker compose run control-plane sleddog serve --prot 1", "No such option: --prot"),
        ("echo $(date); sleddog \\\n  keys creat x", "No such command 'creat'"),
        ("sleddog data preview rows.jsonl --form messages --colour", "No such option: --colour"),
        ("sleddog serve --prt 1 2>&1", "No such option: --prt"),
        ("sleddog serve again 2> log", "unexpected extra argument(s) (again)"),
        ("make tset", "no target tset"),
        ("python -m moe.upcicle a b", "no module moe.upcicle"),
        ("pytest tests/service/test_nothing.py", "no file tests/service/test_nothing.py"),
        ("pip install 'sleddog[servre]'", "no extra servre"),
    ],
)
def test_a_command_that_does_not_exist_is_seen(line: str, fault: str) -> None:
    assert fault in str([fault_of(words) for words in simple_commands(line)])


def test_commands_in_the_text_exist() -> None:
    spans = [
        (name_of(path), span)
        for path in page_paths()
        for span in code_spans(path.read_text())
        if span.startswith("sleddog ")
    ]
    faults = [f"{page}: {span}: {fault}" for page, span in spans if (fault := span_fault(span))]
    assert not faults, "\n".join(faults)
    assert len(spans) > 40
    assert span_fault("sleddog jobs --sort name") == "sleddog jobs has no --sort"
    assert span_fault("sleddog sweep beam ID") == "sleddog sweep has no command beam"


def test_extras_in_the_text_exist() -> None:
    faults = [f"{name_of(path)}: {fault}" for path in page_paths() if (fault := extras_fault(path.read_text()))]
    assert not faults, "\n".join(faults)


def test_python_in_the_pages_compiles() -> None:
    found = [block for block in all_blocks() if block.language == "python"]
    faults = [f"{block.place}: {fault}" for block in found if (fault := python_fault(block.text))]
    assert not faults, "\n".join(faults)
    assert len(found) > 15
    assert python_fault("print(") is not None


def python_fault(text: str) -> str | None:
    try:
        compile(text, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        return str(error)
    return None


def test_guides_fence_their_blocks_so_that_they_are_checked() -> None:
    indented = [block.place for block in all_blocks() if block.place.startswith("docs/guides/") and not block.language]
    assert not indented, "\n".join(indented)


def test_languages_of_blocks_are_known() -> None:
    strange = [f"{block.place}: {block.language}" for block in all_blocks() if block.language not in LANGUAGES | {""}]
    assert not strange, "\n".join(strange)


def test_blocks_are_found_with_their_marks() -> None:
    page = "a\n\n```yaml other file=a.yaml\nb: 1\n```\n\n1. c\n\n   ```bash\n   make run\n   ```\n\nd\n\n    make run\n"
    found = [(block.place, block.language, block.marks, block.file) for block in blocks(page, "p")]
    assert found == [
        ("p:3", "yaml", ("other", "file=a.yaml"), "a.yaml"),
        ("p:9", "bash", (), None),
        ("p:15", "", (), None),
    ]


def test_files_that_the_text_names_exist() -> None:
    files = repository_files()
    faults = [
        f"{name_of(path)}: {span}"
        for path in page_paths()
        for span in code_spans(path.read_text())
        if is_missing(span, files)
    ]
    assert not faults, "\n".join(faults)
    assert is_missing("service/no_such.py", files)
    assert is_missing("no_such.py", files)
    assert is_missing("tests/nowhere/", files)
    assert not is_missing("ray_jobs/train/loss.py", files)
    assert not is_missing("pure/history.js", files)
    assert not is_missing("python my.py", files)


def repository_files() -> list[str]:
    hidden = (".venv", ".git", "build", "node_modules", ".sleddog")
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
    return ["/" + str(path) + ("/" if (ROOT / path).is_dir() else "") for path in paths if path.parts[0] not in hidden]


def is_missing(span: str, files: list[str]) -> bool:
    """Whether a name in the text is that of a file or folder of the repository which is not there.

    A source file may be named by the end of its path; a path that begins with one of the repository's folders is whole.
    """
    if not re.fullmatch(r"[\w./-]+", span) or "..." in span or span in NOT_OURS:
        return False
    if span.split("/", maxsplit=1)[0] in FOLDERS and "/" in span:
        return f"/{span}" not in files and f"/{span}/" not in files
    return span.endswith(SOURCES) and not any(file.endswith(f"/{span}") for file in files)
