from __future__ import annotations

import math

import pytest
import torch

from moe.sampling import GREEDY, Sampling, choose

LOGITS_V = torch.tensor([0.3, 2.0, -1.0, 1.4, 0.0, 1.9])
NUM_DRAWS = 20_000


def exact(sampling: Sampling) -> list[float]:
    """Probability of each token, by the definitions."""
    weights = [math.exp(logit / sampling.temperature) for logit in LOGITS_V.tolist()]
    order = sorted(range(len(weights)), key=lambda token: -weights[token])[: sampling.top_k]
    total, reached, kept = sum(weights[token] for token in order), 0.0, []
    for token in order:
        if reached < sampling.top_p:
            kept.append(token)
            reached += weights[token] / total
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(weights))]


def chi_square_excess(drawn: Sampling, expected: Sampling) -> float:
    """Pearson's statistic of many draws, over a bound that it keeps but for one time in a million.

    The statistic of n cells exceeds df + 2 sqrt(df x) + 2 x, df = n - 1, with probability at most e^-x (Laurent and
    Massart); x = 14 makes that 8e-7.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = choose(LOGITS_V.expand(NUM_DRAWS, -1), drawn, generator)
    statistic, num_cells = 0.0, 0
    for count, probability in zip(tokens.bincount(minlength=len(LOGITS_V)).tolist(), exact(expected), strict=True):
        if probability == 0:
            assert count == 0, "drawn against the rule"
            continue
        num_cells += 1
        statistic += (count - NUM_DRAWS * probability) ** 2 / (NUM_DRAWS * probability)
    df, x = num_cells - 1, 14
    return statistic / (df + 2 * math.sqrt(df * x) + 2 * x)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=3),
        Sampling(top_p=0.8),
        Sampling(top_p=0.3),
        # top-p counts what top-k left: of all tokens, three would reach 0.6
        Sampling(temperature=2.0, top_k=4, top_p=0.6),
    ],
)
def test_frequencies_are_the_exact_probabilities(sampling: Sampling) -> None:
    assert chi_square_excess(sampling, sampling) < 1


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (Sampling(temperature=0.9), Sampling()),
        (Sampling(top_k=4), Sampling(top_k=5)),
        (Sampling(top_p=0.6), Sampling(top_p=0.7)),
        (Sampling(), Sampling(temperature=1.1)),
    ],
)
def test_the_bound_notices_another_distribution(drawn: Sampling, expected: Sampling) -> None:
    assert chi_square_excess(drawn, expected) > 1


def test_the_likeliest_token_is_the_limit_of_low_temperature_and_of_small_top_p_and_k() -> None:
    logits_NV = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    likeliest = choose(logits_NV, GREEDY)
    assert torch.equal(likeliest, logits_NV.argmax(-1))
    for sampling in (Sampling(temperature=1e-6), Sampling(temperature=5e-324), Sampling(top_p=1e-9), Sampling(top_k=1)):
        assert torch.equal(choose(logits_NV, sampling), likeliest), sampling


def test_extreme_random_numbers_choose_tokens_with_a_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NV = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    for random, token in ((0.0, 2), (1 - 2**-53, 1)):
        monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[random]], dtype=torch.float64))  # noqa: B023
        assert choose(logits_NV, Sampling()).tolist() == [token]


@pytest.mark.parametrize("logits", [[0.0, math.nan, 1.0], [-math.inf] * 3])
def test_there_is_no_drawing_from_what_is_no_distribution(logits: list[float]) -> None:
    with pytest.raises(ValueError, match="logits hold NaN"):
        choose(torch.tensor([[0.0, 1.0, 2.0], logits]), Sampling())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "temperature must be finite and not negative, is -0.1"),
        ({"temperature": math.nan}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"top_k": 0}, "top_k must be at least 1, is 0"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], is 0.0"),
        ({"top_p": 1.1}, "top_p must lie"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)  # type: ignore[arg-type]
