"""Validates objects by the definitions of custom resources (CRDs) themselves: types, unknown keys, and rules.

A definition's schema lets unknown keys pass, which the API server then drops; here they are faults. Rules
(`x-kubernetes-validations`) are evaluated by cel-python, those apart that compare with the object's state before an
update (`oldSelf`), since there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import celpy
from celpy.adapter import json_to_cel
from jsonschema import Draft202012Validator

from tests.deploy.rendering import Document

Schema = dict[str, Any]
_OF_ANY_OBJECT = ("apiVersion", "kind", "metadata")
_KEPT = ("type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "required")


class Definitions:
    """The schemas of custom resources, by API version and kind."""

    def __init__(self, documents: list[Document]) -> None:
        self.schemas: dict[tuple[str, str], Schema] = {}
        for document in documents:
            if document.get("kind") != "CustomResourceDefinition":
                continue
            spec = document["spec"]
            for version in spec["versions"]:
                key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                self.schemas[key] = version["schema"]["openAPIV3Schema"]

    def faults(self, document: Document) -> list[str] | None:
        """What is wrong with an object; None when no definition is of its kind."""
        schema = self.schemas.get((document["apiVersion"], document["kind"]))
        if schema is None:
            return None
        faults = [
            f"{fault.json_path}: {fault.message}"
            for fault in Draft202012Validator(strict(schema, is_root=True)).iter_errors(document)
        ]
        return faults or list(broken_rules(schema, document, "$"))


def strict(schema: Schema, *, is_root: bool = False) -> Schema:
    """The JSON Schema of a definition's schema that refuses unknown keys."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"], **{key: schema[key] for key in ("pattern",) if key in schema}}
    made: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if "items" in schema:
        made["items"] = strict(schema["items"])
    if "properties" in schema:
        made["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if is_root:
            made["properties"].update({name: {} for name in _OF_ANY_OBJECT})
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(schema["additionalProperties"])
    if schema.get("nullable"):
        return {"anyOf": [made, {"type": "null"}]}
    return made


def broken_rules(schema: Schema, value: Any, path: str) -> Iterator[str]:
    """Rules that a value, or a part of it, does not keep."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"] and not _holds(rule["rule"], value):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        others = schema.get("additionalProperties")
        for name, part in value.items():
            below = schema.get("properties", {}).get(name, others)
            if isinstance(below, dict):
                yield from broken_rules(below, part, f"{path}.{name}")
    elif isinstance(value, list) and "items" in schema:
        for index, part in enumerate(value):
            yield from broken_rules(schema["items"], part, f"{path}[{index}]")


def _holds(rule: str, value: Any) -> bool:
    return bool(_program(rule).evaluate({"self": json_to_cel(value)}))


@cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
