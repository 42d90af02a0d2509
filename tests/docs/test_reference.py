"""Everything that users can name stands on the site: looked for in the code by other ways than the pages are made."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import typer
import typer.main
from pydantic import BaseModel

from scripts.reference.markdown import target
from scripts.reference.pages import fill
from service import errors
from service.cli import app
from service.client.client import AsyncClient
from service.client.jobs import AsyncJobs
from service.client.sweeps import AsyncSweeps
from service.spec.event import EventType, WarningKind
from service.spec.job import JobSpec
from service.spec.plan import PlanRequest
from service.spec.sweep import SweepSpec
from tests.docs.pages import ROOT
from tests.docs.site import Site


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a type is made of, and those that their fields are."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
            yield from models_in(tuple(field.metadata))
    arguments = annotation if isinstance(annotation, tuple) else get_args(annotation)
    for argument in arguments:
        yield from models_in(argument)


def missing(site: Site, page: str, expected: dict[str, set[str]]) -> list[str]:
    """What a page does not have of the code that it must have, by section."""
    return [
        f"{section}: {name}" for section, names in expected.items() for name in sorted(names - site.code(page, section))
    ]


def test_every_field_of_a_spec(site: Site) -> None:
    models = {model for root in (JobSpec, SweepSpec, PlanRequest) for model in models_in(root)}
    expected = {target("model", model.__name__): set(model.model_fields) for model in models}
    assert len(expected) > 40
    assert missing(site, "reference/specs.html", expected) == []
    expected["model-trainspec"] |= {"no_such_field"}
    assert missing(site, "reference/specs.html", expected) == ["model-trainspec: no_such_field"]


def test_every_field_has_a_meaning_or_a_model_of_its_own(site: Site) -> None:
    rows = [
        [cell.get_text().strip() for cell in row.find_all("td")]
        for row in site.pages["reference/specs.html"].find_all("tr")
    ]
    simple = ("string", "integer", "number", "boolean")
    bare = [row[0] for row in rows if row and not row[3] and row[1].startswith(simple) and row[0] not in OBVIOUS]
    assert sorted(bare) == []


OBVIOUS = {"name", "low", "high", "model", "role", "content", "uri", "project"}
"""Fields whose model says all there is to say."""


def test_every_operation_with_its_parameters_and_answers(site: Site) -> None:
    document = json.loads((ROOT / "tests/service/openapi.json").read_text())
    expected = {
        target("rest", method, path): {path, *(item["name"] for item in operation.get("parameters", ()))}
        | set(operation["responses"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert len(expected) > 90
    assert missing(site, "reference/rest.html", expected) == []
    assert missing(site, "reference/rest.html", {"rest-get-v1-jobs": {"no_such_parameter"}})


def test_every_body(site: Site) -> None:
    schemas = json.loads((ROOT / "tests/service/openapi.json").read_text())["components"]["schemas"]
    pages = ("reference/specs.html", "reference/rest.html")
    absent = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        for field in schema.get("properties", {})
        if not any(field in site.code(page, target("model", name)) for page in pages)
    ]
    assert absent == []


def commands_below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_below(f"{path} {name}", inner)


def test_every_command_and_option(site: Site) -> None:
    expected = {
        target("cli", *path.split()): {
            option for item in command.params if item.param_type_name == "option" for option in item.opts
        }
        for path, command in commands_below("sleddog", typer.main.get_command(app))
    }
    assert len(expected) > 60
    assert missing(site, "reference/commands.html", expected) == []
    assert missing(site, "reference/commands.html", {"cli-sleddog-jobs": {"--no-such"}}) == [
        "cli-sleddog-jobs: --no-such"
    ]
    assert [name for name in expected if not site.section("reference/commands.html", name)] == []
    assert "--tokenizer" in site.code("reference/commands.html", "cli-sleddog-data-preview"), "which passes it on"


def test_every_type_of_event_and_kind_of_warning(site: Site) -> None:
    page = "reference/events.html"
    assert [name for name in get_args(EventType) if not site.section(page, target("event", name))] == []
    assert set(get_args(WarningKind)) <= site.code(page, "kinds-of-warnings")
    assert "eta_s" in site.code(page, "event-stage-progress")
    assert site.section(page, "event-no-such") == ""


def test_every_error_code(site: Site) -> None:
    kinds = {kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.SleddogError)}
    codes = {kind.code for kind in kinds - {errors.SleddogError}}
    assert len(codes) > 25
    assert codes <= site.code("reference/errors.html")
    row = site.pages["reference/errors.html"].find("code", string="rate_limited").find_parent("tr")
    assert "429" in row.get_text()


def test_every_call_of_the_client(site: Site) -> None:
    page = "reference/client.html"
    parts = {"client": AsyncClient, "client.jobs": AsyncJobs, "client.sweeps": AsyncSweeps}
    calls = {f"{part}.{name}" for part, kind in parts.items() for name in dir(kind) if not name.startswith("_")}
    assert len(calls) > 40
    assert [call for call in sorted(calls) if not site.section(page, target(call))] == []


def variables_in_the_code() -> set[str]:
    """Names that the code looks up in its environment, as it writes them."""
    found = set()
    for package in ("service", "ray_jobs", "moe"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("os.environ.") and node.args:
                    found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
                if isinstance(node, ast.keyword) and node.arg == "envvar" and isinstance(node.value, ast.Constant):
                    found.add(node.value.value)
    return {str(name) for name in found}


def test_every_environment_variable(site: Site) -> None:
    set_by_itself = {"RAY_DATA_DISABLE_PROGRESS_BARS", "SLEDDOG_LOCAL_RAY"}
    variables = variables_in_the_code() - set_by_itself
    assert {"SLEDDOG_URL", "SLEDDOG_API_KEY_FILE", "CXX", "RAY_ADDRESS"} <= variables
    assert variables - site.code("reference/environment.html") == set()


def test_a_marker_of_nothing_is_an_error() -> None:
    with pytest.raises(KeyError):
        fill("# Page\n\n<!-- generated: nothing -->\n")
    assert fill("# Page\n") == "# Page\n"
