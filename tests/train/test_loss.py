from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import ray_jobs.train.loss
from ray_jobs.train.loss import completion_loss, sums_by_category

POSITIONS, TRAINED, HIDDEN, VOCABULARY = 40, 23, 8, 50
SCALE = 0.25
WHOLE, IN_PARTS = TRAINED * VOCABULARY, TRAINED * 7  # seven parts of seven words, and one word
EPS = 2**-24


def test_loss_is_the_naive_cross_entropy_of_trained_tokens_given_the_one_before() -> None:
    torch.manual_seed(0)
    hidden_TD, head = torch.randn(6, 4), nn.Linear(4, 9, bias=False)
    tokens_T = torch.tensor([3, 1, 4, 1, 5, 8])
    trained_T = torch.tensor([False, True, True, False, False, True])
    loss, losses_P = completion_loss(hidden_TD, head, tokens_T, trained_T, scale=SCALE)
    expected = []
    for target in (1, 2, 5):
        probabilities = torch.softmax(head(hidden_TD[target - 1]).double(), 0)
        expected.append(-probabilities[tokens_T[target]].log())
    # 4-term products and a 9-term sum in fp32
    torch.testing.assert_close(losses_P.double(), torch.stack(expected), rtol=13 * EPS, atol=0)
    assert loss.item() == pytest.approx(SCALE * sum(expected).item(), rel=16 * EPS)  # type: ignore[union-attr]

    categories_T = torch.tensor([0, 0, 0, 1, 1, 1])
    sums_2C = sums_by_category(losses_P, trained_T, categories_T, 3)
    assert sums_2C[1].tolist() == [2, 1, 0]
    torch.testing.assert_close(sums_2C[0, 0], losses_P[:2].double().sum(), rtol=1e-12, atol=0)


def case() -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    nn.init.normal_(head.weight, generator=generator)
    tokens_T = torch.randint(VOCABULARY, (POSITIONS,), generator=generator)
    trained_T = torch.zeros(POSITIONS, dtype=torch.bool)
    trained_T[1 + torch.randperm(POSITIONS - 1, generator=generator)[:TRAINED]] = True
    return torch.randn(POSITIONS, HIDDEN, generator=generator), head, tokens_T, trained_T


def errors(logits_at_once: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Each gradient's largest error against autograd's in fp64, as a multiple of what rounding alone can do."""
    hidden_TD, head, tokens_T, trained_T = case()
    hidden_TD, head = hidden_TD.to(dtype).requires_grad_(), head.to(dtype)
    loss, _ = completion_loss(hidden_TD, head, tokens_T, trained_T, scale=SCALE, logits_at_once=logits_at_once)
    (3 * loss).backward()

    exact_hidden_TD, exact_weight = hidden_TD.detach().double().requires_grad_(), head.weight.detach().double()
    exact_weight.requires_grad_()
    positions_P = trained_T.nonzero().flatten()
    logits_PV = exact_hidden_TD[positions_P - 1] @ exact_weight.T
    (3 * SCALE * F.cross_entropy(logits_PV, tokens_T[positions_P], reduction="sum")).backward()

    unit = torch.finfo(dtype).eps / 2
    hidden, weight = exact_hidden_TD.detach(), exact_weight.detach()
    # A logit is a sum of D products, its rounding at most (D + 1) units of their magnitudes; a probability is off by
    # twice as much of itself and by the sum over V in fp32, then rounded, and the gradient's sums are of V or P terms.
    logit = (HIDDEN + 1) * unit * float((hidden.abs() @ weight.abs().T).max())
    share = 2 * logit + 2 * unit + VOCABULARY * EPS
    slope_PV = 3 * SCALE * (torch.softmax(logits_PV, 1) + F.one_hot(tokens_T[positions_P], VOCABULARY)).detach()
    bound_PD = (share + VOCABULARY * EPS + 2 * unit) * slope_PV @ weight.abs()
    bound_VD = (share + TRAINED * EPS + 2 * unit) * slope_PV.T @ hidden[positions_P - 1].abs()
    assert hidden_TD.grad is not None
    assert head.weight.grad is not None
    assert exact_hidden_TD.grad is not None
    at = positions_P - 1
    rest = torch.ones(POSITIONS, dtype=torch.bool).index_fill(0, at, False)
    assert not hidden_TD.grad[rest].any()
    return {
        "hidden": float(((hidden_TD.grad - exact_hidden_TD.grad)[at].abs() / bound_PD).max()),
        "weight": float(((head.weight.grad - exact_weight.grad).abs() / bound_VD).max()),
    }


@pytest.mark.parametrize("logits_at_once", [WHOLE, IN_PARTS, 1], ids=["whole", "in parts", "word by word"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_autograd_through_all_logits(logits_at_once: int, dtype: torch.dtype) -> None:
    assert max(errors(logits_at_once, dtype).values()) <= 1


def _forget_later_parts(targets_P: Tensor, start: int, num_words: int) -> tuple[Tensor, Tensor]:
    rows = ((targets_P >= start) & (targets_P < start + num_words - 1)).nonzero().flatten()
    return rows, targets_P[rows] - start


def test_the_comparison_notices_a_target_lost_at_the_border_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs.train.loss, "_targets_within", _forget_later_parts)
    assert min(errors(IN_PARTS).values()) > 1


@pytest.mark.parametrize("logits_at_once", [IN_PARTS, 1])
def test_the_loss_does_not_depend_on_the_parts(logits_at_once: int) -> None:
    arguments = case()
    whole, losses_P = completion_loss(*arguments, scale=SCALE, logits_at_once=WHOLE)
    in_parts, losses_in_parts_P = completion_loss(*arguments, scale=SCALE, logits_at_once=logits_at_once)
    # the normaliser is a sum of V terms either way, and the logarithm of each partial one is rounded
    torch.testing.assert_close(losses_in_parts_P, losses_P, rtol=2 * VOCABULARY * EPS, atol=VOCABULARY * EPS)
    assert in_parts.item() == pytest.approx(whole.item(), rel=2 * VOCABULARY * EPS)


class Largest(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_all_logits_never_exist_together() -> None:
    hidden_TD, head, tokens_T, trained_T = case()
    for logits_at_once, most in ((IN_PARTS, max(IN_PARTS, VOCABULARY * HIDDEN)), (WHOLE, WHOLE)):
        with Largest() as largest:
            loss, _ = completion_loss(
                hidden_TD.requires_grad_(), head, tokens_T, trained_T, scale=SCALE, logits_at_once=logits_at_once
            )
            loss.backward()
        assert largest.elements == most


def test_nothing_trained_gives_zero_gradients_not_none() -> None:
    hidden_TD, head = torch.randn(2, 4, requires_grad=True), nn.Linear(4, 9, bias=False)
    loss, losses_P = completion_loss(hidden_TD, head, torch.tensor([1, 2]), torch.tensor([False, False]), scale=SCALE)
    loss.backward()
    assert not len(losses_P)
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
    assert hidden_TD.grad is not None
