"""Every operation of the REST API, from the OpenAPI document that the service itself gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from scripts.reference.markdown import code, prose, table, target
from scripts.reference.schemas import section, type_of
from scripts.reference.specs import spec_schemas
from service.api.app import assemble, create_app
from service.backends.ray_jobs import RayJobs
from service.settings import Settings
from service.store.engine import open_engine
from service.store.store import Store


def openapi() -> dict[str, Any]:
    """The document of a service that is put together and never served; its database stays empty."""
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(Path(directory))
        modules = settings.driver_modules
        backend = RayJobs("http://127.0.0.1:8265", "none", python="python", modules=modules, shares_filesystem=False)
        store = Store(open_engine(settings.resolved_database_url), b"")
        with closing(store), closing(backend):
            document: dict[str, Any] = create_app(assemble(settings, store, backend)).openapi()
            return document


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Method, path and description of each."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def rest_page() -> list[str]:
    """Lines: the operations by what they are about, then the bodies by name."""
    document = openapi()
    by_tag: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for method, path, operation in operations(document):
        by_tag.setdefault(operation["tags"][0], []).append((method, path, operation))
    lines: list[str] = []
    for tag in sorted(by_tag):
        lines += [f"## {tag.capitalize()}", ""]
        for method, path, operation in by_tag[tag]:
            lines += _operation(method, path, operation)
    lines += ["## Bodies", "", "Specs and their parts have [a page of their own](specs.md).", ""]
    schemas = document["components"]["schemas"]
    for name in sorted(set(schemas) - set(spec_schemas())):
        lines += section(name, schemas[name], 3)
    return lines


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> list[str]:
    lines = [f"({target('rest', method, path)})=", f"### {method} {code(path)}", ""]
    lines += [prose(paragraph) + "\n" for paragraph in operation.get("description", "").split("\n\n") if paragraph]
    rows = [
        (code(item["name"]), item["in"], _type(item), prose(item.get("description", "")))
        for item in operation.get("parameters", ())
    ]
    lines += table(("parameter", "in", "type", "meaning"), rows)
    if body := operation.get("requestBody"):
        lines += ["Body: " + _content(body["content"]) + ".", ""]
    answers, problems = [], []
    for status, answer in sorted(operation["responses"].items()):
        if "application/problem+json" in answer.get("content", {}):
            problems.append(code(status))
        else:
            answers.append((code(status), _content(answer.get("content", {})), prose(answer.get("description", ""))))
    lines += table(("status", "body", "meaning"), answers)
    return [*lines, "Problems: " + ", ".join(problems) + ".", ""] if problems else lines


def _type(parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    default = f", default {code(schema['default'])}" if schema.get("default") is not None else ""
    return type_of(schema) + (", required" if parameter.get("required") else default)


def _content(content: Mapping[str, Any]) -> str:
    return " or ".join(f"{type_of(body.get('schema', {}))} ({kind})" for kind, body in content.items())
