from __future__ import annotations

import torch

from moe.attention import Documents
from moe.freeze import freeze_moe
from moe.generate import generate
from moe.model import HybridModel, PackedBatch


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


def test_frozen_moe_trains_only_the_dense_part(model: HybridModel) -> None:
    freeze_moe(model)
    hidden_TD, _ = model(PackedBatch(torch.arange(9), Documents.from_lengths([9]), (9,)))
    model.lm_head(hidden_TD).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (".block_sparse_moe." in name), name
