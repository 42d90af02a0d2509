"""What ZeRO-2 keeps of a trained parameter, and how many of them a worker owns: for the plan and the report alike."""

from __future__ import annotations

GRADIENT_BYTES, OPTIMISER_BYTES = 4, 12
"""Of an owned parameter: its accumulated gradient; its master weight and two moments. All are fp32."""


def num_owned(num_dense: int, num_expert: int, num_workers: int, expert_parallel_size: int) -> int:
    """Parameters whose gradient and optimiser state one worker owns.

    Args:
        num_dense: outside the experts, the same on all workers.
        num_expert: of the experts that one worker holds.
        num_workers: over which the former are spread.
        expert_parallel_size: workers that share the experts; the latter are spread over those that hold the same ones.
    """
    return num_dense // num_workers + num_expert // (num_workers // expert_parallel_size)
