"""Dashboards, alerts and runbooks against what `/metrics` of the real application tells."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.observe.dashboards import DASHBOARDS, DIRECTORY, texts
from deploy.observe.panels import Dashboard, Panel, render
from service.spec.job import JobSpec
from tests.deploy.observed import Observed, fill, observed_in, read_metrics
from tests.deploy.prometheus_server import PrometheusServer, prometheus_scraping, promtool

ROOT = Path(__file__).parents[2]
OBSERVE = ROOT / "deploy" / "observe"
GUIDE = ROOT / "docs" / "guides" / "observe.md"
RUNBOOKS = ROOT / "docs" / "runbooks"

FOREIGN = {
    "ray_node_cpu_utilization": {"instance"},
    "ray_node_mem_used": {"instance"},
    "ray_node_mem_total": {"instance"},
    "ray_node_gpus_utilization": {"instance", "GpuIndex"},
}
"""Metrics of others that dashboards show, and their labels; the guide names them."""
OF_PROMETHEUS = {"instance", "job", "le"}
"""Labels that Prometheus gives each series, and that of buckets."""
FUNCTIONS = {
    *("absent", "avg_over_time", "histogram_quantile", "increase", "ln", "max", "min", "min_over_time", "rate", "sum"),
    *("time", "vector", "and", "by", "group_left", "on", "or"),
}
"""All that our expressions use of PromQL."""

Metrics = dict[str, set[str]]
"""Labels by the sample's name."""


@pytest.fixture(scope="module")
def module_spec(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows.touch()
    source = {"name": "sums", "category": "math", "form": "prompt_completion", "uri": f"file://{rows}"}
    model = {"base": {"kind": "preset", "name": "quickstart"}, "tokenizer": {"kind": "train_bpe", "vocab_size": 320}}
    return JobSpec.model_validate({"name": "small", "model": model, "data": {"sources": [source]}})


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, module_spec: JobSpec) -> Iterator[tuple[Observed, str]]:
    """A control plane to which all has happened that there is a metric of."""
    with observed_in(tmp_path_factory.mktemp("observed"), module_spec) as (observed, url):
        fill(observed)
        yield observed, url


@pytest.fixture(scope="module")
def metrics(observed: tuple[Observed, str]) -> Metrics:
    """What it tells."""
    return metrics_in(read_metrics(observed[1]))


@pytest.fixture(scope="module")
def prometheus(observed: tuple[Observed, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    """A real one that has scraped it a few times."""
    url = observed[1]
    read_metrics(url)
    target = url.removeprefix("http://")
    with prometheus_scraping(OBSERVE / "prometheus.yml", target, tmp_path_factory.mktemp("prometheus")) as server:
        server.await_samples("sleddog_info", 3)
        yield server


def metrics_in(text: str) -> Metrics:
    """Samples' names and labels in a text of metrics."""
    found: Metrics = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def alert_rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OBSERVE / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[tuple[Dashboard, Panel]]:
    return [(page, panel) for page in DASHBOARDS for row in page.rows for panel in row.panels]


def expressions() -> list[str]:
    return [query.expr for _, panel in panels() for query in panel.queries] + [rule["expr"] for rule in alert_rules()]


def with_variables(expr: str) -> str:
    """An expression as Grafana sends it when all projects and jobs are chosen."""
    return expr.replace("$__rate_interval", "1m").replace("$project", ".*").replace("$job", ".*")


def unknown_in(expr: str, known: Metrics) -> set[str]:
    """Metrics and labels of an expression that nobody tells."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expr)
    names = set(re.findall(r"(?<![\w:])[a-zA-Z_]\w*(?=\{|\)|\s|$)", re.sub(r"\{[^}]*\}|\b(by|on) \([^)]*\)", "", bare)))
    names -= FUNCTIONS
    labels = {label for braces in re.findall(r"\{([^}]*)\}", bare) for label in re.findall(r"(\w+)\s*[=!]", braces)}
    labels |= {label for listed in re.findall(r"\b(?:by|on) \(([^)]*)\)", bare) for label in re.findall(r"\w+", listed)}
    told = set().union(*(known.get(name, set()) for name in names))
    return {name for name in names if name not in known} | (labels - told - OF_PROMETHEUS)


def test_the_guide_lists_what_is_told_with_its_labels(metrics: Metrics) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]*) \|", GUIDE.read_text(), re.MULTILINE)
    listed = {name: set(labels.replace(",", " ").split()) for name, labels in rows}
    told = {re.sub(r"_(bucket|count|sum)$", "", name): labels - {"le"} for name, labels in metrics.items()}
    assert listed == {name: labels for name, labels in told.items() if not name.startswith("process_")}


def test_names_follow_the_conventions(observed: tuple[Observed, str]) -> None:
    for family in text_string_to_metric_families(read_metrics(observed[1])):
        assert re.fullmatch(r"(sleddog|process)_[a-z_]+", family.name)
        assert not re.search(r"_(s|ms|mb|percent)$", family.name), "base units, in full"
        assert family.documentation
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)


def test_every_metric_and_label_of_an_expression_is_told(metrics: Metrics) -> None:
    assert len(expressions()) > 80
    for expr in expressions():
        assert not unknown_in(expr, metrics | FOREIGN), expr


@pytest.mark.parametrize(
    "expr",
    [
        "max(sleddog_job_los) > 1",
        "sleddog_nothing",
        'max by (job_id) (sleddog_job_loss{stage="x"})',
        "max by (colour) (sleddog_job_loss)",
        "sleddog_job_loss / on (colour) sleddog_job_loss",
    ],
)
def test_one_that_is_not_told_is_found(metrics: Metrics, expr: str) -> None:
    assert unknown_in(expr, metrics)


def test_metrics_of_others_are_those_that_ray_has_and_the_guide_names() -> None:
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    dashboard = Path(ray.origin).parent / "dashboard"
    agent = (dashboard / "modules" / "reporter" / "reporter_agent.py").read_text()
    for name in FOREIGN:
        assert f'"{name.removeprefix("ray_")}"' in agent
        assert f"`{name}`" in GUIDE.read_text()
    assert '"GpuIndex"' in (dashboard / "consts.py").read_text()


def test_committed_dashboards_are_what_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in DIRECTORY.glob("*.json")} == texts()


def test_dashboards_have_what_grafana_needs() -> None:
    models = [render(dashboard) for dashboard in DASHBOARDS]
    assert len({model["uid"] for model in models}) == len(models) == 5
    for model in models:
        shown = model["panels"]
        assert len({panel["id"] for panel in shown}) == len(shown)
        taken = [cell for panel in shown for cell in cells(panel["gridPos"])]
        assert len(set(taken)) == len(taken), "panels lie beside one another"
        assert max(column for column, _ in taken) < 24
        variables = {item["name"] for item in model["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps([panel.get("targets") for panel in shown])))
        assert used <= variables | {"__rate_interval"}
        assert variables <= used, "each variable chooses something"
        assert all(panel["description"] for panel in shown if panel["type"] != "row")


def cells(place: dict[str, int]) -> list[tuple[int, int]]:
    columns = range(place["x"], place["x"] + place["w"])
    return [(column, row) for column in columns for row in range(place["y"], place["y"] + place["h"])]


def test_a_panel_beyond_the_width_would_be_seen() -> None:
    [*_, last] = render(DASHBOARDS[0])["panels"]
    assert set(cells(last["gridPos"])) & set(cells({**last["gridPos"], "x": last["gridPos"]["x"] + 1}))


@pytest.mark.parametrize(("page", "panel"), panels(), ids=[f"{page.uid}-{panel.title}" for page, panel in panels()])
def test_every_panel_shows_something(prometheus: PrometheusServer, page: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        found = prometheus.query(with_variables(query.expr))
        if not any(name in query.expr for name in FOREIGN):
            assert found, f"{page.title}: {panel.title}: {query.expr}"
        labels = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert all(labels <= set(series["metric"]) for series in found), query.legend


def test_an_empty_panel_and_a_wrong_query_would_be_seen(prometheus: PrometheusServer) -> None:
    assert not prometheus.query("sleddog_nothing")
    with pytest.raises(AssertionError, match="parse error"):
        prometheus.query("max by (job_id) sleddog_job_loss")


def test_prometheus_evaluates_every_alert(prometheus: PrometheusServer) -> None:
    rules = prometheus.await_rules()
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in alert_rules()}
    assert {rule["health"] for rule in rules} == {"ok"}, [rule.get("lastError") for rule in rules]


def test_configuration_and_rules_are_valid() -> None:
    done = promtool("check", "config", "prometheus.yml", directory=OBSERVE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", "alerts_test.yaml", directory=OBSERVE)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = {case["name"] for case in yaml.safe_load((OBSERVE / "alerts_test.yaml").read_text())["tests"]}
    assert tested == {rule["alert"] for rule in alert_rules()}


@pytest.mark.parametrize("always", [True, False])
def test_an_alert_that_always_or_never_fires_fails_its_test(tmp_path: Path, always: bool) -> None:
    document = yaml.safe_load((OBSERVE / "alerts.yaml").read_text())
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        rule["expr"] = "vector(1)" if always else "vector(0) > 1"
        rule.pop("for", None)
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(document))
    shutil.copy(OBSERVE / "alerts_test.yaml", tmp_path)
    done = promtool("test", "rules", "alerts_test.yaml", directory=tmp_path)
    assert done.returncode != 0
    failed = set(re.findall(r'alertname=\\?"(\w+)', done.stdout + done.stderr))
    assert failed == {rule["alert"] for rule in alert_rules()}


def test_each_alert_has_what_people_need_and_a_runbook() -> None:
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        notes = rule["annotations"]
        assert notes["summary"]
        assert notes["description"].endswith(".")
        assert (ROOT / notes["runbook_url"]).is_file(), notes["runbook_url"]
    linked = {Path(rule["annotations"]["runbook_url"]).name for rule in alert_rules()}
    assert linked == {path.name for path in RUNBOOKS.glob("*.md")} - {"index.md"}


def test_grafana_is_given_the_data_source_and_the_dashboards() -> None:
    provisioning = OBSERVE / "grafana" / "provisioning"
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    [provider] = yaml.safe_load((provisioning / "dashboards" / "sleddog.yaml").read_text())["providers"]
    assert provider["options"]["path"] in GUIDE.read_text()
