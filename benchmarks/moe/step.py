"""A whole training step of a hybrid of about 100M parameters, beside a Hugging Face MoE model of the same size.

    python benchmarks/moe/step.py [--steps 7] [--dtypes fp32 bf16]

Forward, loss, backward and AdamW (fused, the same for both) on the same packed row of 4096 tokens, whose documents have
lengths as of instruction data and of whose tokens 57 % are trained.
    sleddog       this project's model and loss
    transformers  Qwen2-MoE, whose shared expert is what the hybrid's residual MLP is, as `from_pretrained` would set it
                  up at its best on a CPU: `grouped_mm` experts, SDPA with the mask of packed documents that it derives
                  from restarting positions, its own loss with ignored labels

Each contender lives in a process of its own, so that its peak memory is its own; the steps are taken in turn.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moe.attention import Documents
from moe.config import MoEConfig
from moe.init import initialize
from moe.model import HybridModel, PackedBatch
from ray_jobs.train.loss import completion_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = MoEConfig(
    vocab_size=8192,
    hidden_size=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    expert_intermediate_size=192,
    num_experts=32,
)
NUM_TOKENS = 4096
TRAINED_FRACTION = 0.57
BALANCE_LOSS_COEFFICIENT = 0.01
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Loss = Callable[[], Tensor]


class Row:
    """One packed row: `tokens_T`, `trained_T`, `lengths`."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths: list[int] = []
        while sum(lengths) < NUM_TOKENS:  # a lognormal of median 250
            drawn = int(250 * torch.randn(1, generator=generator).mul(0.9).exp())
            lengths.append(max(2, min(drawn, NUM_TOKENS - sum(lengths))))
        lengths[-1] -= sum(lengths) - NUM_TOKENS
        self.lengths = lengths
        self.tokens_T = torch.randint(CONFIG.vocab_size, (NUM_TOKENS,), generator=generator)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
        # each document's last tokens are its completion
        self.trained_T = torch.zeros(NUM_TOKENS, dtype=torch.bool)
        for start, length in zip(starts.tolist(), lengths, strict=True):
            self.trained_T[start + max(1, round(length * (1 - TRAINED_FRACTION))) : start + length] = True


def sleddog(dtype: torch.dtype, row: Row) -> tuple[nn.Module, Loss]:
    """This project's model."""
    model = HybridModel(CONFIG)
    initialize(model, seed=0)
    model.to(dtype)
    batch = PackedBatch(row.tokens_T, Documents.from_lengths(row.lengths), (NUM_TOKENS,))

    def loss() -> Tensor:
        hidden_TD, balances = model(batch)
        nats, _ = completion_loss(
            hidden_TD, model.lm_head, row.tokens_T, row.trained_T, scale=1 / int(row.trained_T.sum())
        )
        balance = torch.stack([layer.loss_sum for layer in balances]).sum() / NUM_TOKENS
        return nats + BALANCE_LOSS_COEFFICIENT * balance

    return model, loss


def qwen2_moe() -> PreTrainedModel:
    """Hugging Face's model of the same sizes, with the kernels that are its best on a CPU."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        num_hidden_layers=CONFIG.num_layers,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
        moe_intermediate_size=CONFIG.expert_intermediate_size,
        shared_expert_intermediate_size=CONFIG.residual_size,
        num_experts=CONFIG.num_experts,
        num_experts_per_tok=CONFIG.top_k,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=BALANCE_LOSS_COEFFICIENT,
        tie_word_embeddings=False,
        use_cache=False,
    )
    config._experts_implementation = "grouped_mm"  # noqa: SLF001  what from_pretrained sets
    config._attn_implementation = "sdpa"  # noqa: SLF001
    return Qwen2MoeForCausalLM(config)


def transformers_model(dtype: torch.dtype, row: Row) -> tuple[nn.Module, Loss]:
    """Qwen2-MoE of the same sizes."""
    model = qwen2_moe().to(dtype)
    positions_1T = Documents.from_lengths(row.lengths).positions_T[None]
    labels_1T = row.tokens_T.where(row.trained_T, -100)[None]

    def loss() -> Tensor:
        result: Tensor = model(input_ids=row.tokens_T[None], position_ids=positions_1T, labels=labels_1T).loss
        return result

    return model, loss


CONTENDERS = {"sleddog": sleddog, "transformers": transformers_model}


def contend(name: str, dtype_name: str, threads: int, pipe: Connection) -> None:
    """Take a step whenever asked; answer with its seconds, and with the peak memory of this process in bytes."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, loss = CONTENDERS[name](DTYPES[dtype_name], Row())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    pipe.send(sum(parameter.numel() for parameter in model.parameters()))
    while pipe.recv():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        pipe.send((time.perf_counter() - start, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def measure(dtype_name: str, steps: int, threads: int) -> None:
    """Print the table's rows of one type."""
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name in CONTENDERS:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=contend, args=(name, dtype_name, threads, theirs)))
        processes[-1].start()
    parameters = {name: pipe.recv() for name, pipe in pipes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in pipes}
    memory: dict[str, int] = {}
    for step in range(steps + 2):
        for name, pipe in pipes.items():
            pipe.send(True)
            taken, memory[name] = pipe.recv()
            if step >= 2:  # the first ones build the optimiser's state and fill caches
                seconds[name].append(taken)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    mine = statistics.median(seconds["sleddog"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(
            f"| {dtype_name} | {name} | {parameters[name] / 1e6:.1f}M | {median:.2f} | {min(values):.2f} "
            f"| {NUM_TOKENS / median:,.0f} | {median / mine:.2f} | {memory[name] / 2**30:.2f} |"
        )


def main() -> None:
    """Print the whole table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    print("| dtype | model | parameters | median s | min s | tokens/s | x sleddog | peak GiB |\n|" + " --- |" * 8)
    for dtype_name in options.dtypes:
        measure(dtype_name, options.steps, options.threads)


if __name__ == "__main__":
    main()
