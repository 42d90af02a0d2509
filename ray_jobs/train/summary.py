"""What the measurements of all steps come to, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_PHASES = ("data_wait_s", "forward_s", "backward_s", "optimizer_s")


def summarise_steps(steps: Sequence[dict[str, Any]], frozen_bytes: int) -> dict[str, Any]:
    """Memory, phases, use of the processors, and what freezing saved.

    Args:
        steps: data of the `train.step` events, each step once.
        frozen_bytes: as the last `train.started` event has it.
    """
    seconds = sum(step["step_s"] for step in steps)
    phases = {name: sum(step[name] for step in steps) for name in _PHASES}
    flops, unfrozen = (sum(step[name] for step in steps) for name in ("model_flops", "model_flops_unfrozen"))
    return {
        "peak_memory_bytes": max(step["memory_bytes"] for step in steps),
        "phases": phases | {"other_s": seconds - sum(phases.values())},
        "model_flops": flops,
        "model_flops_utilisation": _utilisation(steps, seconds),
        "frozen_saving": {"memory_bytes": frozen_bytes, "flops_fraction": 1 - flops / unfrozen}
        if frozen_bytes
        else None,
    }


def _utilisation(steps: Sequence[dict[str, Any]], seconds: float) -> float | None:
    """Operations done, as a share of those that could have been done in the time: steps weigh by their seconds."""
    shares = [(step["model_flops_utilisation"], step["step_s"]) for step in steps]
    if any(share is None for share, _ in shares):
        return None
    return float(sum(share * step_s for share, step_s in shares) / seconds)
