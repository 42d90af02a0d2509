from __future__ import annotations

import torch
from torch import nn

from ray_jobs.train.loss import completion_losses, sums_by_category


def test_loss_is_the_naive_cross_entropy_of_trained_tokens_given_the_one_before() -> None:
    torch.manual_seed(0)
    hidden_TD, head = torch.randn(6, 4), nn.Linear(4, 9, bias=False)
    tokens_T = torch.tensor([3, 1, 4, 1, 5, 8])
    trained_T = torch.tensor([False, True, True, False, False, True])
    losses_P = completion_losses(hidden_TD, head, tokens_T, trained_T)
    expected = []
    for target in (1, 2, 5):
        probabilities = torch.softmax(head(hidden_TD[target - 1]).double(), 0)
        expected.append(-probabilities[tokens_T[target]].log())
    # 4-term products and a 9-term sum in fp32
    torch.testing.assert_close(losses_P.double(), torch.stack(expected), rtol=13 * 2**-24, atol=0)

    categories_T = torch.tensor([0, 0, 0, 1, 1, 1])
    sums_2C = sums_by_category(losses_P, trained_T, categories_T, 3)
    assert sums_2C[1].tolist() == [2, 1, 0]
    torch.testing.assert_close(sums_2C[0, 0], losses_P[:2].detach().double().sum(), rtol=1e-12, atol=0)


def test_nothing_trained_gives_zero_gradients_not_none() -> None:
    hidden_TD, head = torch.randn(2, 4, requires_grad=True), nn.Linear(4, 9, bias=False)
    losses_P = completion_losses(hidden_TD, head, torch.tensor([1, 2]), torch.tensor([False, False]))
    losses_P.sum().backward()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
    assert hidden_TD.grad is not None
