"""Greedy decoding with a key-value cache, one prompt at a time."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from moe.attention import Documents, LayerCache, Spans
from moe.dispatch import ExpertParallel
from moe.model import HybridModel, PackedBatch


@torch.no_grad()
def generate(model: HybridModel, prompt: list[int], max_new_tokens: int, stop_token: int) -> list[int]:
    """Continue a prompt with the likeliest token each time.

    With experts spread over processes, all of them must call with the same arguments, and all get the same answer.

    Args:
        model: any dtype; not modified.
        prompt: token ids, at least one.
        max_new_tokens: length limit.
        stop_token: ends the answer; not returned.

    Returns:
        The new token ids.
    """
    device = model.lm_head.weight.device
    caches = [LayerCache() for _ in range(model.config.num_layers)]
    answer: list[int] = []
    tokens = prompt
    while len(answer) < max_new_tokens:
        start = caches[0].num_tokens
        positions_T = torch.arange(start, start + len(tokens), device=device)
        documents = Documents((len(tokens),), positions_T, Spans((start + len(tokens),), device))
        batch = PackedBatch(torch.tensor(tokens, device=device), documents, (len(tokens),))
        hidden_TD, _ = model(batch, caches)
        token = _agreed(model.lm_head(hidden_TD[-1]).argmax(), model.parallel)
        if token == stop_token:
            break
        answer.append(token)
        tokens = [token]
    return answer


def _agreed(token: Tensor, parallel: ExpertParallel) -> int:
    """The choice of the group's first process.

    The processes' hidden states differ in the last bits, so a near-tie can fall differently; one that stops earlier
    than the others would leave them waiting for its experts.
    """
    if parallel.group is not None:
        dist.broadcast(token, group=parallel.group, group_src=0)
    return int(token)
