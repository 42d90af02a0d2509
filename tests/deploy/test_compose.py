"""The compose file: valid strictly, all that it names is there, and only loopback is published."""

from __future__ import annotations

import json
import re
import stat
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from click import Command, Context
from compose_spec import PyCompose
from ray.scripts.scripts import cli as ray_cli

from tests.deploy import commands
from tests.deploy.rendering import ROOT

COMPOSE = ROOT / "deploy" / "compose"
OWNER = {"SLEDDOG_UID": "1000", "SLEDDOG_GID": "1000"}
Composition = dict[str, Any]


def interpolate(text: str, variables: dict[str, str]) -> str:
    """Put variables in, as compose does: `${NAME:-default}`, `${NAME:?what to do}`."""

    def value(found: re.Match[str]) -> str:
        name, operator, rest = found.groups()
        if name in variables:
            return variables[name]
        if operator == ":?":
            raise LookupError(rest)
        return str(rest)

    return re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, text)


@pytest.fixture
def composition() -> Composition:
    document: Composition = yaml.safe_load(interpolate((COMPOSE / "compose.yaml").read_text(), OWNER))
    return document


def test_it_is_valid_and_has_no_unknown_key(composition: Composition) -> None:
    PyCompose.from_json(json.dumps(composition)).validate()


@pytest.mark.parametrize(
    "change",
    [{"halthcheck": {}}, {"secrets": ["nobody-has-it"]}, {"networks": ["nowhere"]}, {"depends_on": {"postgres": "up"}}],
    ids=lambda change: next(iter(change)),
)
def test_a_spoilt_service_is_refused(composition: Composition, change: Composition) -> None:
    composition["services"]["control-plane"] |= change
    with pytest.raises(ValueError, match=r"halthcheck|nobody-has-it|nowhere|up"):
        PyCompose.from_json(json.dumps(composition)).validate()


def test_it_says_what_to_do_first() -> None:
    with pytest.raises(LookupError, match=re.escape("make-secrets.sh")):
        interpolate((COMPOSE / "compose.yaml").read_text(), {})


def faults(composition: Composition) -> list[str]:
    """What compose itself would let pass."""
    found = []
    for name, service in composition["services"].items():
        if not re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", service["image"]):
            found.append(f"{name}: {service['image']} is not pinned")
        found += [f"{name}: publishes {port}" for port in service.get("ports", ()) if not port.startswith("127.0.0.1:")]
        found += [
            f"{name}: waits for no {other}"
            for other in service.get("depends_on", {})
            if other not in composition["services"]
        ]
        for volume in service.get("volumes", ()):
            source, _, target = volume.partition(":")
            if source.startswith("..") and not (COMPOSE / source).exists():
                found.append(f"{name}: there is no {source}")
            if source and target and not source.startswith(".") and source not in composition["volumes"]:
                found.append(f"{name}: there is no volume {source}")
        for variable, value in service.get("environment", {}).items():
            if match := re.fullmatch("/run/secrets/(.+)", str(value)):
                if match[1] not in service.get("secrets", ()):
                    found.append(f"{name}: {variable} needs the secret {match[1]}")
            elif re.search("PASSWORD|SECRET|TOKEN", variable):
                found.append(f"{name}: {variable} is no file")
    return found


def test_images_are_pinned_files_are_there_and_secrets_are_files(composition: Composition) -> None:
    assert faults(composition) == []
    for name, secret in composition["secrets"].items():
        assert secret == {"file": f"./secrets/{name}"}


def test_what_compose_lets_pass_is_noticed(composition: Composition) -> None:
    services = composition["services"]
    services["grafana"]["image"] = "grafana/grafana:latest"
    services["control-plane"]["ports"] = ["8700:8700"]
    services["prometheus"]["volumes"].append("../observe/nothing.yml:/etc/nothing.yml:ro")
    services["ray-worker"]["secrets"] = []
    services["postgres"]["environment"]["POSTGRES_PASSWORD"] = "easy"
    assert faults(composition) == [
        "postgres: POSTGRES_PASSWORD is no file",
        "control-plane: publishes 8700:8700",
        "ray-worker: RAY_AUTH_TOKEN_PATH needs the secret ray-token",
        "prometheus: there is no ../observe/nothing.yml",
        "grafana: grafana/grafana:latest is not pinned",
    ]


def sleddog_options(service: Composition) -> dict[str, Any]:
    """Of a service of the control plane's image; its variables are real too."""
    unknown = {name for name in service["environment"] if name.startswith("SLEDDOG_")}
    assert not unknown - commands.variables("serve"), unknown
    return dict(commands.parse(service["command"]))


def test_commands_of_the_control_plane_exist(composition: Composition) -> None:
    services = composition["services"]
    options = sleddog_options(services["control-plane"])
    assert options["cluster_cpus"] == 2
    assert options["host"] == "0.0.0.0"
    assert services["control-plane"]["environment"]["SLEDDOG_RAY_DASHBOARD_URL"] == "http://ray-head:8265"
    sleddog_options(services["migrate"])
    with pytest.raises(Exception, match="open-metric"):
        sleddog_options({"environment": {}, "command": ["serve", "--open-metric"]})


def cannot_start(composition: Composition) -> list[str]:
    """Services that wait for what never comes: the health of one without a check, the end of one that restarts."""
    found, services = [], composition["services"]
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            target = services[other]
            check = target.get("healthcheck", {"test": True} if target["image"].startswith("sleddog/") else {})
            if wait["condition"] == "service_healthy" and (check.get("disable") or "test" not in check):
                found.append(f"{name}: {other} tells no health")
            if wait["condition"] == "service_completed_successfully" and "restart" in target:
                found.append(f"{name}: {other} starts again and again")
    return found


def test_services_start_in_their_order(composition: Composition) -> None:
    assert cannot_start(composition) == []
    waits = {name: set(service.get("depends_on", {})) for name, service in composition["services"].items()}
    assert waits["control-plane"] == {"migrate", "ray-head"}
    assert waits["migrate"] == {"postgres"}
    assert waits["ray-worker"] == {"ray-head"}


def test_a_service_that_would_wait_for_ever_is_noticed(composition: Composition) -> None:
    services = composition["services"]
    del services["postgres"]["healthcheck"]
    services["migrate"]["restart"] = "unless-stopped"
    services["ray-head"]["healthcheck"] = {"disable": True}
    assert cannot_start(composition) == [
        "migrate: postgres tells no health",
        "control-plane: migrate starts again and again",
        "control-plane: ray-head tells no health",
        "ray-worker: ray-head tells no health",
    ]


def ray_options(command: list[str]) -> dict[str, Any]:
    """Options of `ray start`, as the Ray that is installed reads them."""
    assert command[:2] == ["ray", "start"]
    start: Command = ray_cli.get_command(Context(ray_cli), "start")
    return dict(start.make_context("start", command[2:]).params)


def test_commands_of_ray_exist_and_its_nodes_agree(composition: Composition) -> None:
    head, worker = (ray_options(composition["services"][name]["command"]) for name in ("ray-head", "ray-worker"))
    assert head["head"] is True
    assert worker["address"] == f"ray-head:{head['port']}"
    assert (head["num_cpus"], worker["num_cpus"]) == (0, 2)
    for name in ("ray-head", "ray-worker"):
        assert composition["services"][name]["environment"]["RAY_AUTH_MODE"] == "token"
    with pytest.raises(Exception, match="num-cpu"):
        ray_options(["ray", "start", "--num-cpu=1"])


def test_services_that_speak_share_a_network(composition: Composition) -> None:
    def share(first: str, second: str) -> bool:
        services = composition["services"]
        return bool(set(services[first]["networks"]) & set(services[second]["networks"]))

    for first, second in (
        ("migrate", "postgres"),
        ("control-plane", "postgres"),
        ("control-plane", "ray-head"),
        ("ray-worker", "ray-head"),
        ("prometheus", "control-plane"),
        ("prometheus", "ray-head"),
        ("grafana", "prometheus"),
    ):
        assert share(first, second), (first, second)
    assert not share("ray-worker", "postgres")
    assert not share("grafana", "postgres")


def test_prometheus_and_grafana_find_what_their_files_name(composition: Composition) -> None:
    services = composition["services"]
    prometheus = yaml.safe_load((COMPOSE / "../observe/prometheus.yml").read_text())
    mounted = {volume.split(":")[1] for volume in services["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in prometheus["rule_files"]} <= mounted
    targets = {
        target for job in prometheus["scrape_configs"] for group in job["static_configs"] for target in group["targets"]
    }
    head = ray_options(services["ray-head"]["command"])
    port = sleddog_options(services["control-plane"])["port"]
    assert targets == {f"control-plane:{port}", f"ray-head:{head['metrics_export_port']}"}
    provisioning = COMPOSE / "../observe/grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/sleddog.yaml").read_text())["providers"]
    assert provider["options"]["path"] in {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_the_control_plane_finds_its_database(composition: Composition) -> None:
    services = composition["services"]
    url = urlsplit(services["control-plane"]["environment"]["SLEDDOG_DATABASE_URL"])
    of_postgres = services["postgres"]["environment"]
    assert (url.hostname, url.username) == ("postgres", of_postgres["POSTGRES_USER"])
    assert url.path == f"/{of_postgres['POSTGRES_DB']}"
    assert url.password is None, "which is in the file of PGPASSFILE"
    line = f"{url.hostname}:5432:{url.path[1:]}:{url.username}:%s"
    assert line in (COMPOSE / "make-secrets.sh").read_text()


def test_secrets_are_made_once_and_for_their_owner_only(tmp_path: Path, composition: Composition) -> None:
    script = tmp_path / "make-secrets.sh"
    script.write_bytes((COMPOSE / "make-secrets.sh").read_bytes())
    subprocess.run(["sh", script], check=True, capture_output=True)
    made = {path.name: path for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == composition["secrets"].keys()
    owner = dict(line.split("=") for line in (tmp_path / ".env").read_text().splitlines())
    assert owner.keys() == OWNER.keys()
    for path in made.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_uid == int(owner["SLEDDOG_UID"]) != 0
    assert len({path.read_text() for path in made.values()}) == len(made)
    assert made["pgpass"].read_text() == f"postgres:5432:sleddog:sleddog:{made['postgres-password'].read_text()}\n"
    assert len(made["server-secret"].read_text()) == 64

    before = made["ray-token"].read_text()
    again = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "there already" in again.stderr
    assert made["ray-token"].read_text() == before
