"""Reading jobs and sweeps: a row that stands as it was read before is not parsed again.

Clients poll, and most of a row is its spec, which never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

from pydantic_core import from_json
from sqlalchemy import JSON, Row, Select, Text, select
from sqlalchemy import cast as sql_cast

from service.spec.resources import Job, RunKind, Sweep
from service.store.models import JobRow, table_of
from service.store.stages import stage_tree

RUNS = table_of(JobRow).c
"""The columns, for statements that give rows and no objects."""
_RESOURCES: dict[RunKind, type[Job] | type[Sweep]] = {"job": Job, "sweep": Sweep}
_COLUMNS = [column for column in RUNS if column.key != "charged_at"]
_NAMES = tuple("project" if column is RUNS.project_id else column.key for column in _COLUMNS)
_JSON_NAMES = tuple(column.key for column in _COLUMNS if isinstance(column.type, JSON))
_MOST = 1000
"""Runs that are remembered, some 20 kB each."""


def select_runs() -> Select[Any]:
    """A statement whose rows `read_run` takes."""
    # as text, so that it can be compared with what was parsed
    return select(*(sql_cast(column, Text) if column.key in _JSON_NAMES else column for column in _COLUMNS))


def read_run(row: Row[Any] | Sequence[Any]) -> Job | Sweep:
    """The resource that a row of `select_runs` holds, shared among all who read the same row."""
    return _read(tuple(row))


@lru_cache(_MOST)
def _read(row: tuple[Any, ...]) -> Job | Sweep:
    values: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    for name in _JSON_NAMES:
        if values[name] is not None:
            values[name] = from_json(values[name])
    kind = cast("RunKind", values["kind"])
    if kind == "job":
        values["stages"] = stage_tree(values["progress"].get("stages", {}), values["status"])
    return _RESOURCES[kind].model_validate(values)
