"""What every spec model has in common, and how its errors name a field."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class SpecModel(BaseModel):
    """Frozen, refuses unknown fields, and takes field descriptions from attribute docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class FieldError(NamedTuple):
    """One fault in a spec."""

    field: str
    """Dotted path, such as `data.sources.0.uri`; empty when the whole document is at fault."""
    message: str


def conflict(field: str, message: str) -> PydanticCustomError:
    """An error that a validator of several fields raises, naming the one to change, relative to the model at hand."""
    return PydanticCustomError("conflict", "{reason}", {"reason": message, "field": field})


def field_errors(errors: Iterable[Mapping[str, Any]], document: object) -> list[FieldError]:
    """Pydantic's error list with the paths that a user wrote.

    Pydantic's `loc` also holds the tag of each union variant it went through; a user's document has no such level. A
    tag is recognised by being the value of `kind` where it stands.

    Args:
        errors: `ValidationError.errors()`.
        document: the parsed JSON or YAML that was validated.
    """
    return [FieldError(_path(error, document), _message(error)) for error in errors]


def _message(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return "unknown field" if error["type"] == "extra_forbidden" else message


def _path(error: Mapping[str, Any], document: object) -> str:
    parts: list[str] = []
    for part in error["loc"]:
        if isinstance(document, Mapping):
            if part not in document and document.get("kind") == part:
                continue
            document = document.get(part)
        elif isinstance(document, list) and isinstance(part, int) and part < len(document):
            document = document[part]
        parts.append(str(part))
    if error["type"] == "conflict":
        parts.append(error["ctx"]["field"])
    return ".".join(parts)
