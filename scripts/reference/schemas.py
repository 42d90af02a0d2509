"""JSON schemas as Markdown: of each model a section, of each field its type, default and meaning.

One renderer for the specs and for the bodies of the REST API, since Pydantic describes both in the same way: what
stands below a field in the code is its `description`. A model has one section on the site, so its name leads to it from
everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.reference.markdown import code, prose, table, target

Schema = Mapping[str, Any]

_BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
}


def section(name: str, schema: Schema, level: int) -> list[str]:
    """Lines of one model's section.

    Args:
        name: of the model.
        schema: its own.
        level: of the heading.
    """
    lines = [f"({target('model', name)})=", f"{'#' * level} {name}", ""]
    if description := schema.get("description"):
        lines += [prose(description), ""]
    if "properties" not in schema:
        return [*lines, f"Values: {type_of(schema)}", ""]
    required = schema.get("required", ())
    rows = [
        (code(field), type_of(item), _default(item, is_required=field in required), _meaning(item))
        for field, item in schema["properties"].items()
    ]
    return [*lines, *table(("field", "type", "default", "meaning"), rows)]


def type_of(schema: Schema) -> str:
    """The type of a value in words and links."""
    for kinds in ("anyOf", "oneOf", "allOf"):
        if kinds in schema:
            found = dict.fromkeys(type_of(item) for item in schema[kinds])
            return " or ".join(found)
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{target('model', name)})"
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    return _plain_type(schema) + _bounds(schema)


def _plain_type(schema: Schema) -> str:
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("prefixItems")
        if items:
            return "(" + ", ".join(type_of(item) for item in items) + ")"
        return "list of " + type_of(schema.get("items", {}))
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return "mapping to " + type_of(schema["additionalProperties"])
    if schema.get("format") in ("date-time", "binary", "uri"):
        return str(schema["format"])
    return str(kind or "any JSON")


def _bounds(schema: Schema) -> str:
    texts = [text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema]
    if pattern := schema.get("pattern"):
        texts.append(f"matching {code(pattern)}")
    return ", " + ", ".join(texts).replace("<", "&lt;") if texts else ""


def _default(schema: Schema, *, is_required: bool) -> str:
    if is_required:
        return "required"
    if "default" not in schema:
        return ""
    default = schema["default"]
    if isinstance(default, dict) and default and ("$ref" in schema or "anyOf" in schema or "oneOf" in schema):
        return code(default) if set(default) == {"kind"} else "its defaults"
    return code("null" if default is None else default)


def _meaning(schema: Schema) -> str:
    return prose(schema.get("description", ""))
