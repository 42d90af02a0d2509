"""A request to plan the example for Arctic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.client.spec_file import load_spec
from service.spec.plan import PlanRequest
from tests.conftest import set_at

ARCTIC = Path(__file__).parents[2] / "examples" / "arctic.yaml"


def arctic(**changes: Any) -> PlanRequest:
    """A request for the example, some of its fields changed, by dotted path with `__` for the dot."""
    document: dict[str, Any] = {"job": load_spec(ARCTIC).model_dump(mode="json")}
    for path, value in changes.items():
        set_at(document, path.replace("__", "."), value)
    return PlanRequest.model_validate(document)
