"""Dashboards as data, and the JSON that Grafana takes for them.

Only what differs from panel to panel is written by hand (`dashboards.py`); places, ids and variables follow. Panels of
a row share its width, of 24 columns. A replica of the service tells the same of jobs as any other, so queries of jobs
take the greatest; counts of a process are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

SCHEMA_VERSION = 41
"""Of dashboards, that of Grafana 12.0; later ones migrate it when they load it."""
_WIDTH, _HEIGHT = 24, 8
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Kind = Literal["timeseries", "stat", "table", "bargauge"]
Variable = Literal["project", "job"]

OF_JOB = 'job_id=~"$job",project=~"$project"'
"""Selects the series of the jobs that are chosen above the dashboard."""
JOB_LEGEND = "{{name}} {{job_id}}"


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and how its series are called."""

    expr: str
    legend: str = JOB_LEGEND


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        title: in a few words.
        description: what it tells, and what to look for.
        queries: of its series.
        unit: of the values, by Grafana's name.
        kind: of picture.
        warn_above, warn_below: from where on values are shown in red.
        is_stacked: whether series lie on one another.
    """

    title: str
    description: str
    queries: Sequence[Query]
    unit: str = "short"
    kind: Kind = "timeseries"
    warn_above: float | None = None
    warn_below: float | None = None
    is_stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Panels side by side, under a title."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Dashboard:
    """One page; its file is named by `uid`."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]


def of_job(metric: str, *by: str) -> str:
    """The value of each chosen job; of further labels `by`, each."""
    labels = ", ".join(("job_id", "name", *by))
    return f"max by ({labels}) (sleddog_job_{metric}{{{OF_JOB}}})"


def job_query(metric: str) -> Query:
    """A query of each chosen job's value."""
    return Query(of_job(metric))


def render(dashboard: Dashboard) -> dict[str, Any]:
    """The JSON model of a dashboard."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row in dashboard.rows:
        place = {"h": 1, "w": _WIDTH, "x": 0, "y": top}
        panels.append({"type": "row", "title": row.title, "collapsed": False, "panels": [], "gridPos": place})
        width = _WIDTH // len(row.panels)
        for number, panel in enumerate(row.panels):
            place = {"h": _HEIGHT, "w": width, "x": number * width, "y": top + 1}
            panels.append({**_panel(panel), "gridPos": place})
        top += 1 + _HEIGHT
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["sleddog"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "links": [{"type": "dashboards", "tags": ["sleddog"], "title": "Sleddog", "asDropdown": True}],
        "templating": {"list": [_SOURCES, *(_VARIABLES[name] for name in dashboard.variables)]},
        "annotations": {"list": []},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    is_table = panel.kind == "table"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend,
                "range": panel.kind == "timeseries",
                "instant": panel.kind != "timeseries",
                "format": "table" if is_table else "time_series",
            }
            for number, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _OPTIONS[panel.kind],
        "transformations": [{"id": "merge", "options": {}}] if is_table else [],
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": _steps(panel)}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.is_stacked else "none", "group": "A"}
        has_limit = panel.warn_above is not None or panel.warn_below is not None
        field["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 40 if panel.is_stacked else 0,
            "showPoints": "never",
            "stacking": stacking,
            "thresholdsStyle": {"mode": "dashed" if has_limit else "off"},
        }
    return field


def _steps(panel: Panel) -> list[dict[str, Any]]:
    if panel.warn_below is not None:
        return [{"color": "red", "value": None}, {"color": "green", "value": panel.warn_below}]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    return steps if panel.warn_above is None else [*steps, {"color": "red", "value": panel.warn_above}]


_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
_OPTIONS: dict[Kind, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {"reduceOptions": _LAST, "colorMode": "value", "graphMode": "none", "textMode": "auto"},
    "table": {"showHeader": True, "cellHeight": "sm"},
    "bargauge": {"reduceOptions": _LAST, "orientation": "horizontal", "displayMode": "basic", "showUnfilled": True},
}
_SOURCES = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(name: Variable, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


_VARIABLES: dict[Variable, dict[str, Any]] = {
    "project": _variable("project", "Project", "label_values(sleddog_job_info, project)"),
    "job": _variable("job", "Job", 'label_values(sleddog_job_info{project=~"$project"}, job_id)'),
}
