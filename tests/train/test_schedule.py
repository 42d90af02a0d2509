from __future__ import annotations

import math

from ray_jobs.train.schedule import learning_rate, num_warmup_steps
from service.spec.train import TrainSpec


def test_recipe_schedule_rises_over_five_percent_and_falls_as_a_cosine() -> None:
    spec = TrainSpec()
    total = spec.num_steps(25_600)
    assert total == 200
    assert num_warmup_steps(total, spec) == 10
    rates = [learning_rate(step, total, spec) for step in range(total)]
    assert rates[0] == 2e-5 / 10
    assert rates[9] == max(rates) == 2e-5
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isclose(rates[105], 1e-5), "half-way down the cosine"
    assert 0 < rates[-1] < 2e-5 / 1000


def test_steps_cover_every_row_of_every_epoch() -> None:
    assert TrainSpec(global_batch_rows=8, epochs=2).num_steps(10) == 3
    assert TrainSpec(global_batch_rows=8, epochs=2, max_steps=2).num_steps(10) == 2
    assert TrainSpec().num_steps(1) == 1


def test_warm_up_is_rounded_up_as_the_fraction_is_written() -> None:
    steps = {fraction: num_warmup_steps(100, TrainSpec(warmup_fraction=fraction)) for fraction in (0, 0.07, 0.071, 1)}
    assert steps == {0: 0, 0.07: 7, 0.071: 8, 1: 100}
