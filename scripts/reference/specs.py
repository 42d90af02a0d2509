"""Every field of what users write: jobs, sweeps, requests of a plan."""

from __future__ import annotations

from pydantic.json_schema import models_json_schema

from scripts.reference.schemas import Schema, section
from service.spec.base import SpecModel
from service.spec.job import JobSpec
from service.spec.plan import PlanRequest
from service.spec.sweep import SweepSpec

ROOTS: tuple[type[SpecModel], ...] = (JobSpec, SweepSpec, PlanRequest)


def spec_schemas() -> dict[str, Schema]:
    """The schemas of the roots and of all that they are made of, by name."""
    _, schema = models_json_schema([(root, "validation") for root in ROOTS])
    definitions: dict[str, Schema] = schema["$defs"]
    return definitions


def specs_page() -> list[str]:
    """Lines: the roots first, then their parts by name."""
    schemas = spec_schemas()
    roots = [root.__name__ for root in ROOTS]
    names = roots + sorted(set(schemas) - set(roots))
    return [line for name in names for line in section(name, schemas[name], 2)]
