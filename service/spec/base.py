"""What every spec model has in common, and how its errors name a field."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

_NOT_STORABLE = re.compile("[\0\ud800-\udfff]")


class SpecModel(BaseModel):
    """Frozen, refuses unknown fields, and takes field descriptions from attribute docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        _require_storable(value)
        return value

    def canonical_json(self) -> str:
        """The spec as JSON with sorted keys and every default filled in: equal specs give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    def sha256(self) -> str:
        """Hash of `canonical_json`, in hex."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def _require_storable(value: object) -> None:
    """Refuse text that JSON can carry and no database or file can: half a surrogate pair, or a NUL."""
    if isinstance(value, str):
        if _NOT_STORABLE.search(value):
            raise ValueError("holds a NUL or half a surrogate pair, which cannot be stored")
    elif isinstance(value, dict):
        for key, item in value.items():
            _require_storable(key)
            _require_storable(item)
    elif isinstance(value, tuple | list):
        for item in value:
            _require_storable(item)


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

    Pydantic's `loc` also holds the tag of each union variant it went through, and steps into a value that a shorthand
    was expanded to; a user's document has no such levels. A tag is recognised by being the value of `kind` where it
    stands, and by coming first, for a field may have the same name; where no `kind` is given, by being no field of the
    document and yet not the end of the path. Below a plain value there is nothing to name.

    Args:
        errors: `ValidationError.errors()`.
        document: the parsed JSON or YAML that was validated.
    """
    return [FieldError(_path(error, document), _message(error)) for error in errors]


def _message(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return "unknown field" if error["type"] == "extra_forbidden" else _printable(message)


def _path(error: Mapping[str, Any], document: object) -> str:
    parts: list[str] = []
    is_tag_passed = False
    for number, part in enumerate(error["loc"], 1):
        if isinstance(document, Mapping):
            is_end = number == len(error["loc"]) and error["type"] != "conflict"
            is_default = "kind" not in document and part not in document and not is_end
            if not is_tag_passed and (document.get("kind") == part or is_default):
                is_tag_passed = True
                continue
            document = document.get(part)
        elif isinstance(document, list):
            document = document[part] if isinstance(part, int) and part < len(document) else None
        elif document is not None:
            break
        is_tag_passed = False
        parts.append(str(part))
    if error["type"] == "conflict":
        parts.append(error["ctx"]["field"])
    return _printable(".".join(parts))


def _printable(text: str) -> str:
    """Text that can be written as UTF-8, whatever an unknown field is called."""
    return text.encode("utf-8", "backslashreplace").decode()
