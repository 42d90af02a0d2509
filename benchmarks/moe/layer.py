"""One MoE layer, forward and backward, beside what else a user could take, and the floor.

    python benchmarks/moe/layer.py [--tokens 4096 1024] [--rounds 15]

Contenders, with equal sizes and random weights, on the same input and the same gradient of the output:
    sleddog      this project's layer, balance metrics included
    transformers the sparse-MoE block of Mixtral with its fastest experts, `grouped_mm`
    deepspeed    `deepspeed.moe.layer.MoE`, top-2, without drops
    floor        a dense SwiGLU of as many products, plus one pass over the experts' weights and their gradients

All run in turn in each round, so that noise of the machine meets all alike; the table gives medians and minima. Memory
that a contender frees is kept by the process (`--fresh-memory` gives it back): gradients of 75 MB in pages that are new
in each round cost all but the floor some 10 ms, and are no part of the layer.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from moe.config import MoEConfig
from moe.dispatch import ExpertParallel
from moe.model import MoE

CONFIG = MoEConfig(hidden_size=256, num_heads=4, num_kv_heads=4, expert_intermediate_size=192)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Contender = Callable[[Tensor], Tensor]


def randomise(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Weights that keep activations near one."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.05)
    return module.to(dtype)


def sleddog(dtype: torch.dtype, num_tokens: int) -> tuple[Contender, nn.Module]:
    """This project's layer."""
    layer = randomise(MoE(CONFIG, ExpertParallel()), dtype)
    return lambda x_TD: layer(x_TD, (num_tokens,))[0], layer


def transformers_block(dtype: torch.dtype, _num_tokens: int) -> tuple[Contender, nn.Module]:
    """The block of Mixtral."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.expert_intermediate_size,
        num_local_experts=CONFIG.num_experts,
        num_experts_per_tok=CONFIG.top_k,
    )
    config._experts_implementation = "grouped_mm"  # noqa: SLF001  what from_pretrained sets
    block = randomise(MixtralSparseMoeBlock(config), dtype)
    return lambda x_TD: block(x_TD[None])[0], block


class _Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        hidden, intermediate = CONFIG.hidden_size, CONFIG.expert_intermediate_size
        self.w1 = nn.Linear(hidden, intermediate, bias=False)
        self.w3 = nn.Linear(hidden, intermediate, bias=False)
        self.w2 = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        out_TD: Tensor = self.w2(F.silu(self.w1(x_TD)) * self.w3(x_TD))
        return out_TD


def deepspeed_layer(dtype: torch.dtype, _num_tokens: int) -> tuple[Contender, nn.Module]:
    """DeepSpeed's own layer."""
    import deepspeed
    from deepspeed.moe.layer import MoE as DeepSpeedMoE

    deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False)
    layer = DeepSpeedMoE(
        CONFIG.hidden_size,
        _Expert(),
        num_experts=CONFIG.num_experts,
        k=2,
        drop_tokens=False,
        top2_2nd_expert_sampling=False,
    )
    layer.set_deepspeed_parallelism()
    randomise(layer, dtype)
    return lambda x_TD: layer(x_TD[None])[0][0], layer


class _Floor(nn.Module):
    """As many products as the layer, all with the same weights; and one copy of the experts' size."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = _Expert()
        weights = CONFIG.num_experts * CONFIG.num_expert_params
        self.register_buffer("weights", torch.zeros(weights))
        self.register_buffer("gradients", torch.zeros(weights))

    def forward(self, x_TD: Tensor) -> Tensor:
        self.gradients.copy_(self.weights)
        out_TD: Tensor = self.expert(x_TD.repeat(CONFIG.top_k, 1)).unflatten(0, (CONFIG.top_k, -1)).sum(0)
        return out_TD


def floor(dtype: torch.dtype, _num_tokens: int) -> tuple[Contender, nn.Module]:
    """What no layer of these sizes can beat."""
    module = _Floor()
    randomise(module, dtype)
    return module, module


CONTENDERS = {
    "floor": floor,
    "sleddog": sleddog,
    "transformers": transformers_block,
    "deepspeed": deepspeed_layer,
}


def keep_freed_memory() -> None:
    """Let glibc map no memory of its own for large tensors, and give none back to the system."""
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    for parameter, value in ((m_mmap_max, 0), (m_trim_threshold, -1)):
        if not libc.mallopt(parameter, value):
            raise OSError(f"mallopt({parameter}, {value}) failed")


def seconds(call: Contender, module: nn.Module, x_TD: Tensor, grad_TD: Tensor) -> float:
    """One forward and backward pass, from no gradients to all."""
    module.zero_grad(set_to_none=True)
    x_TD = x_TD.clone().requires_grad_()
    start = time.perf_counter()
    call(x_TD).backward(grad_TD)
    return time.perf_counter() - start


def measure(num_tokens: int, dtype_name: str, rounds: int) -> None:
    """Print the table's rows of one cell."""
    torch.manual_seed(0)
    dtype = DTYPES[dtype_name]
    x_TD, grad_TD = (torch.randn(num_tokens, CONFIG.hidden_size).to(dtype) for _ in range(2))
    built = {name: make(dtype, num_tokens) for name, make in CONTENDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in built}
    for round_number in range(rounds + 2):
        for name, (call, module) in built.items():
            taken = seconds(call, module, x_TD, grad_TD)
            if round_number >= 2:  # the first rounds fill caches
                times[name].append(1e3 * taken)
    floor_median = statistics.median(times["floor"])
    mine = statistics.median(times["sleddog"])
    for name, values in times.items():
        median = statistics.median(values)
        print(
            f"| {num_tokens} | {dtype_name} | {name} | {median:.1f} | {min(values):.1f} "
            f"| {median / floor_median:.2f} | {median / mine:.2f} |"
        )


def main() -> None:
    """Print the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 1024])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--fresh-memory", action="store_true", help="give freed memory back to the system")
    options = parser.parse_args()
    if not options.fresh_memory:
        keep_freed_memory()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    print("| tokens | dtype | layer | median ms | min ms | x floor | x sleddog |\n|" + " --- |" * 7)
    for num_tokens in options.tokens:
        for dtype_name in options.dtypes:
            measure(num_tokens, dtype_name, options.rounds)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
