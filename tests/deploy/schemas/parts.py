"""Words of JSON Schema that all custom resources share."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}
OF_KUBERNETES: Schema = {"type": "object"}
"""Validated by Kubernetes' own schema."""
QUANTITY: Schema = {
    "anyOf": [INTEGER, {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"}],
}


def fields(required: str = "", **properties: Schema) -> Schema:
    """An object of these fields and no others.

    Args:
        required: names of fields, separated by spaces.
        properties: all of its fields.
    """
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


def items(schema: Schema, least: int = 0) -> Schema:
    """A list."""
    return {"type": "array", "minItems": least, "items": schema}


def one_of(*values: str) -> Schema:
    """One of these words."""
    return {"enum": list(values)}


def ruled(schema: Schema, rule: str, message: str) -> Schema:
    """A schema with a rule in CEL, as definitions of custom resources have them."""
    return {**schema, "x-kubernetes-validations": [{"rule": rule, "message": message}]}


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    """A custom resource."""
    return fields(
        "apiVersion kind metadata spec",
        apiVersion=one_of(api_version),
        kind=one_of(kind),
        metadata=fields("name", name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS),
        spec=spec,
    )
