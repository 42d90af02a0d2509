from __future__ import annotations

import os
import time
from typing import Any

import pytest
import torch

from moe.config import Tuning
from moe.freeze import freeze
from moe.operations import TrainedParts
from ray_jobs.train.clock import StepClock
from ray_jobs.train.phases import Phases, peak_memory_bytes
from ray_jobs.train.utilisation import frozen_bytes, measured_peak_flops, trained_parts, worker_peak_flops
from service.spec.plan import HARDWARE
from service.spec.train import TrainSpec
from tests.moe.conftest import TINY, tiny_model


def test_what_is_frozen_costs_sixteen_bytes_a_parameter_less() -> None:
    model, dense, routers = tiny_model(), TINY.num_dense_params(), TINY.num_router_params()
    experts = TINY.num_layers * TINY.num_experts * TINY.num_expert_params
    owned: dict[Tuning, int] = {"full": 0, "frozen_moe": routers // 4 + experts // 4}
    owned["router_only"] = dense // 4 + experts // 4
    for tuning, count in owned.items():
        model.requires_grad_(requires_grad=True)
        freeze(model, tuning)
        assert trained_parts(model) == TrainedParts.of(tuning)
        assert frozen_bytes(model, 4) == 16 * count


def test_the_peak_is_above_any_single_product() -> None:
    peak = measured_peak_flops(torch.float32)
    first = torch.ones(256, 256)
    start = time.perf_counter()
    torch.mm(first, first)
    assert peak > 0.2 * 2 * 256**3 / (time.perf_counter() - start)
    assert peak < 1e14


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NVIDIA H100 80GB HBM3", HARDWARE["h100"]), ("NVIDIA H200", HARDWARE["h200"]), ("NVIDIA H100 PCIe", None)],
)
def test_a_gpus_peak_is_its_data_sheets(
    name: str, expected: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    for precision, field in (("bf16", "bf16_tflops"), ("fp32", "fp32_tflops")):
        peak = worker_peak_flops(torch.device("cuda"), TrainSpec(precision=precision))  # type: ignore[arg-type]
        assert peak == (None if expected is None else 1e12 * expected[field])


def test_utilisation_is_operations_by_time_and_peak() -> None:
    clock, without = StepClock(3, 1000.0), StepClock(3, None)
    for one in (clock, without):
        one.resume()
        one.tick()
    described = clock.describe(1, 10.0, 50.0)
    assert described["model_flops_utilisation"] == pytest.approx(0.05 / described["step_s"])  # type: ignore[operator]
    assert without.describe(1, 10.0, 50.0)["model_flops_utilisation"] is None


def test_phases_on_a_cpu_are_the_seconds_of_their_blocks() -> None:
    phases = Phases("cpu")
    for _ in range(2):
        with phases.measure("forward"):
            time.sleep(0.02)
    with phases.measure("backward"):
        pass
    seconds = phases.describe()
    assert set(seconds) == {"forward_s", "backward_s"}
    assert seconds["backward_s"] < 0.02 <= seconds["forward_s"] / 2


class RecordedEvent:
    """Stands for an event of a GPU, and notes when it is read."""

    told: list[Any]

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.told.append("record")

    def synchronize(self) -> None:
        self.told.append("wait")

    def elapsed_time(self, _end: RecordedEvent) -> float:
        return 1500.0


def test_phases_on_a_gpu_wait_for_nothing_before_the_step_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    RecordedEvent.told = []
    monkeypatch.setattr(torch.cuda, "Event", RecordedEvent)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    phases = Phases("cuda")
    for phase in ("forward", "backward", "forward"):
        with phases.measure(phase):  # type: ignore[arg-type]
            RecordedEvent.told.append(phase)
    assert "wait" not in RecordedEvent.told
    assert phases.describe() == {"forward_s": 3.0, "backward_s": 1.5}


def test_the_memory_of_a_process_grows_with_what_it_touches() -> None:
    before = peak_memory_bytes("cpu")
    block = bytearray(os.urandom(1)) * (before + 50_000_000)
    assert peak_memory_bytes("cpu") >= before + 50_000_000
    del block
    assert peak_memory_bytes("cpu") >= before + 50_000_000, "the peak stays"
