"""Whether a block of YAML or JSON that speaks of a spec is one, as the client reads it from a file."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import yaml

from service.client.spec_file import load_spec, load_sweep
from service.errors import InvalidSpecError
from service.spec.job import JobSpec
from service.spec.sweep import SweepSpec

_JOB_FIELDS, _SWEEP_FIELDS = set(JobSpec.model_fields), set(SweepSpec.model_fields)
_OF_OTHERS = {"apiVersion", "scrape_configs", "groups", "services"}
"""Fields by which Kubernetes, Prometheus and Docker Compose know theirs."""
_REQUIRED = {"model": "base", "data": "sources"}
_SOURCE = {"form": "messages", "uri": "rows.jsonl"}


def whole_job(*categories: str) -> dict[str, Any]:
    """A valid job, for what a page leaves out."""
    sources = [{"name": category, "category": category, **_SOURCE} for category in categories or ("general",)]
    preset, tokenizer = {"kind": "preset", "name": "quickstart"}, {"kind": "train_bpe", "vocab_size": 4096}
    return {"name": "whole", "model": {"base": preset, "tokenizer": tokenizer}, "data": {"sources": sources}}


def spec_fault(document: Any, directory: Path) -> str | None:
    """What is wrong with a document as a job, a part of one, or a sweep.

    Args:
        document: parsed.
        directory: for files that the client reads.
    """
    if not isinstance(document, dict):
        return "is no mapping; mark it `other` if it is no spec"
    if {"stages"} <= set(document) <= _SWEEP_FIELDS:
        return _sweep_fault(document, directory)
    if not set(document) <= _JOB_FIELDS:
        unknown = ", ".join(sorted(set(document) - _JOB_FIELDS))
        return f"no spec has the fields {unknown}; mark the block `other` if it is for another program"
    return _fault(load_spec, _completed(document), directory)


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    whole = whole_job()
    for field, value in document.items():
        is_part = field in _REQUIRED and isinstance(value, dict) and _REQUIRED[field] not in value
        whole[field] = {**whole[field], **value} if is_part else value
    return whole


def _sweep_fault(document: dict[str, Any], directory: Path) -> str | None:
    if isinstance(document.get("base"), str):
        categories = document.get("axes", {}).get("mixture", {})
        (directory / document["base"]).write_text(yaml.safe_dump(whole_job(*categories)))
    return _fault(load_sweep, document, directory)


def _fault(load: Any, document: dict[str, Any], directory: Path) -> str | None:
    path = directory / "block.json"
    path.write_text(json.dumps(document))
    try:
        load(path)
    except InvalidSpecError as error:
        return str(error)
    return None


def block_fault(language: str, text: str, directory: Path, *, is_other: bool) -> str | None:
    """What is wrong with a block of a language for data."""
    try:
        documents = _documents(language, text)
    except (ValueError, yaml.YAMLError) as error:
        return f"cannot be parsed: {error}"
    if is_other or language == "toml":
        return None
    speak_of_specs = [item for item in documents if not (isinstance(item, dict) and set(item) & _OF_OTHERS)]
    if language == "json":  # most are rows or answers
        speak_of_specs = [item for item in speak_of_specs if isinstance(item, dict) and set(item) & _JOB_FIELDS]
    faults = (spec_fault(item, directory) for item in speak_of_specs)
    return next((fault for fault in faults if fault), None)


def _documents(language: str, text: str) -> list[Any]:
    if language == "yaml":
        return list(yaml.safe_load_all(text))
    if language == "toml":
        return [tomllib.loads(text)]
    try:
        return [json.loads(text)]
    except ValueError:
        return [json.loads(line) for line in text.splitlines() if line]
