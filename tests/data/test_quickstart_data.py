"""The quickstart's data: real, distinct, and right in every line of arithmetic."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from service.rows.formats import RowReader, require_order
from service.rows.raw_rows import read_rows
from service.rows.sources import SourceFile, find_files
from service.spec.job import JobSpec
from service.spec.source import SourceSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
_NUMBER = r"-?\d+(?:/\d+)?"
_TERM = rf"{_NUMBER}(?: [-+*/] {_NUMBER})*"
_EQUATION = re.compile(rf"(?<![\w(-])({_TERM}) = ({_TERM})(?![\w*])")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    module_spec = importlib.util.spec_from_file_location("make_quickstart_data", EXAMPLES / "make_quickstart_data.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def directory(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quickstart-data")
    generator.write(path)
    return path


def quickstart(directory: Path) -> JobSpec:
    document = yaml.safe_load((EXAMPLES / "quickstart.yaml").read_text())
    for source in document["data"]["sources"]:
        if "uri" not in source:
            continue
        source["uri"] = f"file://{directory}/{source['uri'].rpartition('/')[2]}"
    return JobSpec.model_validate(document)


def evaluate(expression: str) -> Fraction:
    """The value of numbers joined by operators, worked out apart from the generator."""
    safe = re.sub(r"\d+", lambda match: f"Fraction({match.group()})", expression)
    return Fraction(eval(safe, {"Fraction": Fraction}))


def test_every_row_of_every_source_is_a_conversation(directory: Path) -> None:
    data = quickstart(directory).data
    counts: Counter[str] = Counter()
    written = {3: SourceFile(3, "memory://not-read", "jsonl")}
    files = [file for file in find_files(data, written) if file.source not in written]
    for file in files:
        source = data.sources[file.source]
        assert isinstance(source, SourceSpec)
        for row in read_rows(file):
            assert row.reason is None
            [conversation] = RowReader(source.form).read(row.value)
            require_order(conversation)
            counts[source.category] += 1
    assert set(counts) == {"code", "general", "math"}
    assert min(counts.values()) > 200
    forms = [source.form if isinstance(source, SourceSpec) else source.kind for source in data.sources]
    assert forms == ["alpaca", "sharegpt", "prompt_completion", "identity"]
    assert {file.format for file in files} == {"jsonl", "json", "csv", "parquet"}


def test_every_line_of_arithmetic_is_right(generator: ModuleType) -> None:
    rows = generator.math_rows()
    assert len({row["prompt"] for row in rows}) == len(rows) > 2000
    checked = 0
    for row in rows:
        for left, right in _EQUATION.findall(row["completion"]):
            assert evaluate(left) == evaluate(right), row
            checked += 1
    assert checked > 1.5 * len(rows)


def test_every_equation_is_solved_by_its_answer(generator: ModuleType) -> None:
    solved = 0
    for row in generator.math_rows():
        match = re.match(r"Solve (.*) = (.*) for x\.", row["prompt"])
        if match is None:
            continue
        x = row["completion"].rpartition("#### ")[2]
        left, right = (re.sub(r"(\d+)x", rf"\1 * ({x})", side) for side in match.groups())
        assert evaluate(left) == evaluate(right), row
        solved += 1
    assert solved > 200


def test_the_answer_is_the_last_line_and_follows_from_the_steps(generator: ModuleType) -> None:
    for row in generator.math_rows():
        steps, _, answer = row["completion"].rpartition("\n#### ")
        assert re.search(rf"(?<![\d-]){re.escape(answer)}(?!\d)", steps), row


def test_the_same_python_writes_the_same_files(generator: ModuleType, directory: Path, tmp_path: Path) -> None:
    generator.write(tmp_path)
    files = sorted(path.name for path in directory.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir())
    for name in files:
        assert (tmp_path / name).read_bytes() == (directory / name).read_bytes()
