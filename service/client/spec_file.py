"""Specs as people write them: YAML, TOML or JSON files, with paths relative to the file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from service.errors import InvalidSpecError
from service.spec.base import SpecModel, field_errors
from service.spec.job import JobSpec
from service.spec.plan import PlanRequest
from service.spec.sweep import SweepSpec

Spec = TypeVar("Spec", bound=SpecModel)

_SUFFIXES = (".yaml", ".yml", ".toml", ".json")


def load_spec(path: Path | str) -> JobSpec:
    """Read and check a job's spec.

    Relative source URIs and checkpoint or tokenizer paths are taken from the file's own directory: the service, which
    may run elsewhere, takes absolute ones only.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidSpecError: it is not YAML, TOML or JSON, or not a job; every fault is named with its field's path.
    """
    path = Path(path)
    return validated(JobSpec, _job_document(path), str(path))


def load_sweep(path: Path | str) -> SweepSpec:
    """Read and check a sweep's spec.

    `base` is a job, or the path of a job's file. Relative paths are taken from the directory of the file they stand in,
    those in `stages` and `axes` too.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidSpecError: it is not YAML, TOML or JSON, or not a sweep; every fault is named with its field's path.
    """
    path = Path(path)
    document, directory = _mapping(path, "sweep"), path.resolve().parent
    base = document.get("base")
    if isinstance(base, str):
        document["base"] = _job_document(directory / base)
    elif isinstance(base, dict):
        _make_absolute(base, directory)
    for stage in _list_in(document, "stages"):
        changes = _in(stage, "changes")
        for field, value in changes.items() if isinstance(changes, dict) else ():
            changes[field] = _absolute_value(field, value, directory)
    for axis in _list_in(document.get("axes"), "fields"):
        field, values = _in(axis, "path"), _list_in(axis, "values")
        if isinstance(field, str):
            values[:] = [_absolute_value(field, value, directory) for value in values]
    return validated(SweepSpec, document, str(path))


def _job_document(path: Path) -> dict[str, Any]:
    document = _mapping(path, "job")
    _make_absolute(document, path.resolve().parent)
    return document


def _mapping(path: Path, kind: str) -> dict[str, Any]:
    document = _parse(path)
    if not isinstance(document, dict):
        raise InvalidSpecError(f"{path} is no mapping of a {kind}'s fields")
    return document


def _absolute_value(field: str, value: Any, directory: Path) -> Any:
    """The value of a job's field, with the paths in it made absolute as in a whole job."""
    parts = field.split(".")
    document = value
    for part in reversed(parts):
        document = [document] if part.isdecimal() else {part: document}
    if isinstance(document, dict):
        _make_absolute(document, directory)
    for part in parts:
        document = document[0] if part.isdecimal() else document[part]
    return document


def validated(kind: type[Spec], document: dict[str, Any], name: str) -> Spec:
    """A document as a spec.

    Args:
        kind: of spec.
        document: parsed.
        name: of the document, for an error that concerns several fields.

    Raises:
        InvalidSpecError: it is none; every fault is named with its field's path.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        faults = field_errors(error.errors(), document)
        if len(faults) == 1:
            raise InvalidSpecError(faults[0].message, faults[0].field or None) from None
        lines = "".join(f"\n  {fault.field}: {fault.message}" for fault in faults)
        raise InvalidSpecError(f"{name} has {len(faults)} faults:{lines}") from None


def _parse(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InvalidSpecError(f"{path}: a spec ends in {', '.join(_SUFFIXES)}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
        if suffix == ".toml":
            return tomllib.loads(text)
        return json.loads(text) if suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:  # both parsers' own errors are ValueErrors
        raise InvalidSpecError(f"{path} cannot be parsed: {error}") from error


def _make_absolute(document: dict[str, Any], directory: Path) -> None:
    data, model = document.get("data"), document.get("model")
    for source in _list_in(data, "sources") + _list_in(_in(data, "decontaminate"), "against"):
        _join(source, "uri", directory)
    for task in _list_in(document.get("evaluate"), "tasks"):
        _join(task, "uri", directory)
        _join(task, "include_path", directory)
        _join(_in(task, "few_shot"), "uri", directory)
    if isinstance(model, dict):
        _join(model, "base", directory)
        _join(model.get("base"), "path", directory)
        _join(model.get("tokenizer"), "path", directory)


def _in(holder: Any, key: str) -> Any:
    return holder.get(key) if isinstance(holder, dict) else None


def _list_in(holder: Any, key: str) -> list[Any]:
    value = _in(holder, key)
    return value if isinstance(value, list) else []


def _join(holder: Any, key: str, directory: Path) -> None:
    value = _in(holder, key)
    if isinstance(value, str) and "://" not in value and not value.startswith("/"):
        while value.startswith("../"):  # the service refuses paths that lead up again
            directory, value = directory.parent, value.removeprefix("../")
        holder[key] = str(directory / value)


def plan_request(spec: JobSpec, options: dict[str, Any], assume: list[str]) -> PlanRequest:
    """What a plan is asked for on a command line.

    Args:
        spec: the job's.
        options: other fields of `PlanRequest`.
        assume: further ones, as `path=value`.

    Raises:
        InvalidSpecError: a path or a value is none.
    """
    document = {"job": spec.model_dump(mode="json"), **options}
    for assumption in assume:
        path, is_given, value = assumption.partition("=")
        part, _, name = path.partition(".")
        if not is_given or not name or part not in ("hardware", "data", "assumptions"):
            raise InvalidSpecError(f"{assumption!r} is no hardware.…=…, data.…=… or assumptions.…=…")
        document.setdefault(part, {})[name] = yaml.safe_load(value)
    return validated(PlanRequest, document, "the plan")
