import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.config.schema import LrScheduleConfig
from r1parallel.training.schedule import learning_rate


def schedule(style, **changes):
    return LrScheduleConfig(**{"lr_decay_style": style, "lr": 1.0, "min_lr": 0.1, "warmup_step": 4, **changes})


@pytest.mark.parametrize("style", ["cosine", "linear", "constant"])
def test_warm_up_climbs_in_equal_steps_and_starts_above_zero(style):
    rates = [learning_rate(schedule(style, decay_steps=14), update) for update in range(4)]
    assert rates == [0.25, 0.5, 0.75, 1.0]


def test_cosine_goes_from_lr_to_min_lr():
    rates = [learning_rate(schedule("cosine", decay_steps=14), update) for update in range(20)]
    assert rates[4] == 1.0
    assert rates[9] == pytest.approx(0.55)  # half way
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.2)))
    assert rates[14] == rates[19] == pytest.approx(0.1)


def test_linear_goes_from_lr_to_min_lr():
    rates = [learning_rate(schedule("linear", decay_steps=14), update) for update in range(20)]
    assert rates[4:15] == pytest.approx([1 - 0.09 * i for i in range(11)])
    assert rates[19] == pytest.approx(0.1)


def test_constant_stays_at_lr():
    assert learning_rate(schedule("constant", decay_steps=14), 1000) == 1.0


def test_no_warm_up_starts_at_lr():
    assert learning_rate(schedule("cosine", warmup_step=0, decay_steps=10), 0) == 1.0


@pytest.mark.parametrize("style", ["cosine", "linear"])
def test_warm_up_that_fills_the_whole_decay(style):
    rates = [learning_rate(schedule(style, decay_steps=4), update) for update in (3, 4, 5, 6)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1])


@given(st.sampled_from(["cosine", "linear"]), st.integers(0, 20), st.integers(1, 50), st.integers(0, 200))
def test_after_the_warm_up_the_rate_only_falls_and_stays_in_range(style, warmup, length, update):
    settings = schedule(style, warmup_step=warmup, decay_steps=warmup + length)
    now, later = (learning_rate(settings, warmup + update + i) for i in (0, 1))
    assert 0.1 - 1e-12 <= later <= now <= 1.0
