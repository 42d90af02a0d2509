from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from moe.attention import Documents
from moe.dispatch import ExpertParallel
from moe.freeze import freeze_moe
from moe.generate import generate
from moe.model import HybridModel, PackedBatch
from tests.moe.conftest import tiny_model


def greedy_without_cache(model: HybridModel, tokens: list[int], count: int) -> list[int]:
    answer: list[int] = []
    for _ in range(count):
        all_tokens = tokens + answer
        batch = PackedBatch(torch.tensor(all_tokens), Documents.from_lengths([len(all_tokens)]), (len(all_tokens),))
        hidden_TD, _ = model(batch)
        answer.append(int(model.lm_head(hidden_TD[-1]).argmax()))
    return answer


def test_cached_decoding_equals_recomputing_everything(model: HybridModel) -> None:
    expected = greedy_without_cache(model, [3, 1, 4, 1, 5], 8)
    assert generate(model, [3, 1, 4, 1, 5], 8, stop_token=-1) == expected
    stop = expected[3]
    assert generate(model, [3, 1, 4, 1, 5], 8, stop_token=stop) == expected[: expected.index(stop)]


def _generate_disagreeing(rank: int, directory: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    model = tiny_model(ExpertParallel(dist.group.WORLD))
    if rank == 1:
        torch.nn.init.zeros_(model.lm_head.weight)
    torch.save(generate(model, [3, 1, 4, 1, 5], 8, stop_token=0), f"{directory}/answer-{rank}")
    dist.destroy_process_group()


def test_processes_that_would_choose_otherwise_follow_the_first(model: HybridModel, tmp_path: Path) -> None:
    """The second one would stop at once, and leave the first waiting for its experts."""
    torch.multiprocessing.spawn(_generate_disagreeing, (str(tmp_path),), nprocs=2)
    answers = [torch.load(tmp_path / f"answer-{rank}") for rank in range(2)]
    assert answers[0] == answers[1] == generate(model, [3, 1, 4, 1, 5], 8, stop_token=0)
    assert answers[0]


def test_frozen_moe_trains_only_the_dense_part(model: HybridModel) -> None:
    freeze_moe(model)
    hidden_TD, _ = model(PackedBatch(torch.arange(9), Documents.from_lengths([9]), (9,)))
    model.lm_head(hidden_TD).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (".block_sparse_moe." in name), name
