"""A plan by each way to it: the REST API, the client, the command."""

from __future__ import annotations

from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.cli import app
from service.client.client import Client
from service.plan.plan import plan_job
from service.spec.plan import Plan
from tests.conftest import set_at
from tests.plan.arctic import ARCTIC, arctic


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_command_client_and_function_plan_the_same(client: Client) -> None:
    request = arctic(data__num_tokens=10**9, hardware__gpus_per_node=4, assumptions__matmul_efficiency=0.5)
    planned = plan_job(request)
    assert client.jobs.plan(request) == planned
    options = ("--tokens", "1000000000", "--gpus-per-node", "4", "--assume", "assumptions.matmul_efficiency=0.5")
    code, text = run("plan", str(ARCTIC), *options, "--json")
    assert code == 0
    assert Plan.model_validate_json(text) == planned
    code, text = run("plan", str(ARCTIC), *options)
    assert code == 0
    assert "Memory of a GPU, 80.00 GB: fits\n" in text
    assert f"{planned.step.tokens_per_s:,.0f} tokens/s" in text
    code, text = run("plan", str(ARCTIC), "--assume", "hardware.gpu_memory_gb=40")
    assert code == 0, "a plan that does not fit is an answer, too"
    assert "Memory of a GPU, 40.00 GB: does NOT fit\n" in text
    assert "train.tuning: frozen_moe" in text


def test_faults_name_their_field(http: TestClient) -> None:
    for path, value, field in [
        ("hardware.gpus_per_node", 0, "hardware.gpus_per_node"),
        ("assumptions.speed", 1, "assumptions.speed"),
        ("data.num_examples", 3, "data.num_examples"),
        ("job.train.epochs", 0, "job.train.epochs"),
        ("job.model", {"base": "/nowhere"}, "job.model.base"),
    ]:
        document = arctic().model_dump(mode="json")
        set_at(document, path, value)
        answer = http.post("/v1/jobs:plan", json=document)
        assert answer.status_code == 422, answer.text
        assert [error["field"] for error in answer.json()["errors"]] == [field]
    for assumption, reason in [
        ("hardware.gpus=3", "hardware.gpus: unknown field"),
        ("assumptions.expert_load=0.5", "assumptions.expert_load"),
        ("speed=3", "'speed=3' is no"),
    ]:
        code, text = run("plan", str(ARCTIC), "--assume", assumption)
        assert (code, reason in text) == (1, True), text
