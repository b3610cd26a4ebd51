"""Loss and gradients of an update do not depend on how its completions are laid out in the graph's rows.

First for every preset, down to the gradient of each log-prob, where nothing differs at all; then through a whole model,
where losses were measured to differ by 3e-7 at most and gradients by 1.5e-6 of their length.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from helpers import made_up
from helpers.given_logps import GivenLogps
from helpers.tiny_runs import MODEL
from helpers.update_recorder import assert_same_gradients, make_model, make_recorder, update
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RLConfig
from r1parallel.rl.experience.rows import RowShape
from r1parallel.rl.metrics import update_metrics
from r1parallel.rl.objective.losses import token_values
from r1parallel.rl.update import Batch, token_inputs

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
GROUP, GROUPS, PROMPT, SLOTS = 4, 2, 4, 5
ROWS = GROUPS * GROUP
PADDED, PACKED = RowShape(PROMPT, SLOTS), RowShape(PROMPT, SLOTS, 21)
WIDE = RowShape(PROMPT + 3, SLOTS + 2)
SHORTEST, LONG = RowShape(PROMPT, SLOTS, PROMPT + SLOTS), RowShape(PROMPT, SLOTS, 60)


def settings_of(preset, **changes):
    """With a KL term and a bonus for entropy, so that all terms are looked at."""
    common = {"num_generations": GROUP, "beta": 0.04, "entropy_coef": 0.01}
    chosen = replace(RLConfig(), **PRESETS[preset] | common | changes)
    constant = chosen.loss_constant or SLOTS  # of the run, whatever the slots
    return replace(chosen, loss_constant=constant if chosen.loss_aggregation == "constant" else 0)


def spread_of(chosen):
    """Of the log ratios: some are clipped, and others are not."""
    return 2e-3 if chosen.importance_level == "sequence" else 0.3


def wider(made, shape):
    """The same completions with more padding, of other tokens, before the prompts and behind the completions."""
    rng = np.random.default_rng(1)
    left, right = shape.prompt - PROMPT, shape.completion - SLOTS
    rows, size = made.tokens.shape
    tokens = rng.integers(0, MODEL.vocab_size, (rows, left + size + right)).astype(np.int32)
    tokens[:, left : left + size] = made.tokens
    behind = np.arange(shape.completion) >= made.lengths[:, None]
    tokens[:, shape.prompt :][behind] = rng.integers(0, MODEL.vocab_size, behind.sum())
    values = {
        name: np.pad(getattr(made, name), ((0, 0), (0, right)), constant_values=np.float32(np.nan))
        for name in ("rollout_logps", "drawn_logps", "old_logps", "ref_logps", "advantages", "corrections")
    }
    return replace(made, tokens=tokens, starts=made.starts + left, **values)


def regrouped(made, order):
    """Whole groups in another order, with all that belongs to them."""
    rows = (np.asarray(order)[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
    return replace(made, **{k: v[rows] for k, v in vars(made).items() if isinstance(v, np.ndarray)}), rows


# What a graph is made from; presets that agree in it share one.
IN_THE_GRAPH = ("policy_loss", "importance_level", "epsilon_low", "epsilon_high", "kl_place", "beta", "entropy_coef")


@cache
def loss_alone(shape, *graph):
    """The loss over given log-probs, of as many rows as there are completions."""
    return GivenLogps(replace(RLConfig(), **dict(zip(IN_THE_GRAPH, graph, strict=True))), ROWS, shape.targets)


def judge_logps(preset, shape, made, samples, logps, entropies):
    """Loss of an update and its gradients by each log-prob and entropy, [N, 2·C]."""
    chosen = settings_of(preset)
    rows = shape.rows(made, samples, ROWS)
    assert len(rows.tokens) == ROWS
    given_now = token_inputs(made, Batch(0, samples, rows), chosen, chosen.beta)
    noise = np.where(rows.used, 0.0, 50.0)  # stands where nothing is to be looked at
    beside = np.concatenate([rows.take(logps) + noise, rows.take(entropies) + noise], axis=1)
    graph = loss_alone(shape, *(getattr(chosen, name) for name in IN_THE_GRAPH))
    values, gradient = graph(beside, given_now)
    by_token = [np.zeros(logps.shape) for _ in range(2)]
    for part, into in zip(np.split(gradient, 2, axis=1), by_token, strict=True):
        assert not part[~rows.used].any()
        rows.put(part, into)
    return float(values.loss.sum(dtype=np.float64)), np.concatenate(by_token, axis=1)


@pytest.mark.parametrize("preset", PRESETS)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(seed=st.integers(0, 1000), count=st.integers(1, ROWS))
def test_a_token_counts_the_same_wherever_it_stands(preset, seed, count):
    """Any of the completions, in any order, packed or padded, with filler rows that come out even or not."""
    chosen, rng = settings_of(preset), np.random.default_rng(seed)
    made = made_up.experience(seed, chosen, GROUPS, PROMPT, SLOTS, MODEL.vocab_size)
    made = replace(made, corrections=rng.random(made.inside.shape).astype(np.float32))
    logps = (made.old_logps + rng.normal(0, spread_of(chosen), made.inside.shape)).astype(np.float32)
    entropies = rng.random(logps.shape).astype(np.float32)
    samples = rng.permutation(ROWS)[:count]
    loss, gradient = judge_logps(preset, PADDED, made, samples, logps, entropies)
    assert gradient.any() or not made.counted[samples].any()
    for shape in (PADDED, PACKED):
        other = judge_logps(preset, shape, made, rng.permutation(samples), logps, entropies)
        assert other[0] == pytest.approx(loss, abs=1e-6)
        np.testing.assert_allclose(other[1], gradient, rtol=1e-6, atol=1e-7)
    extra = ((0, 0), (0, WIDE.completion - SLOTS))
    wide = judge_logps(preset, WIDE, wider(made, WIDE), samples, np.pad(logps, extra), np.pad(entropies, extra))
    assert wide[0] == pytest.approx(loss, abs=1e-6)
    wanted = np.concatenate([np.pad(part, extra) for part in np.split(gradient, 2, axis=1)], axis=1)
    np.testing.assert_allclose(wide[1], wanted, rtol=1e-6, atol=1e-7)
    moved, order = regrouped(made, rng.permutation(GROUPS))
    samples = np.flatnonzero(np.isin(order, samples))
    other = judge_logps(preset, PACKED, moved, samples, logps[order], entropies[order])
    assert other[0] == pytest.approx(loss, abs=1e-6)
    np.testing.assert_allclose(other[1], gradient[order], rtol=1e-6, atol=1e-7)


@cache
def recorder(preset, shape, micro_rows):
    return make_recorder(make_model(MODEL, shape), shape, settings_of(preset), micro_rows)


def measure(preset, shape, micro_rows, made, samples, **changes):
    """Loss, gradients and metrics of one update."""
    chosen, step = settings_of(preset, **changes), recorder(preset, shape, micro_rows)
    metrics = update_metrics(update(step, shape, made, samples, chosen), chosen)
    return step.loss, step.gradients, metrics


def near(preset, seed):
    """An experience whose old policy is near the model."""
    chosen, rng = settings_of(preset), np.random.default_rng(seed)
    made = made_up.experience(seed, chosen, GROUPS, PROMPT, SLOTS, MODEL.vocab_size)
    nothing = np.zeros_like(made.old_logps)
    plain = replace(made, counted=np.ones(ROWS, bool), old_logps=nothing, ref_logps=nothing)
    step, rows, samples = recorder(preset, PADDED, 2), PADDED.rows(made, np.arange(ROWS), 2), np.arange(ROWS)
    given_now = token_inputs(plain, Batch(0, samples, rows), chosen, 0.0)
    old = np.zeros_like(nothing)
    rows.put(token_values(step.accumulate(rows.tokens, rows.row_data, given_now.concatenated())).logps, old)
    shifts = rng.normal(0, 1, (2, *old.shape)).astype(np.float32)
    return replace(
        made, old_logps=old + np.float32(spread_of(chosen)) * shifts[0], ref_logps=old + np.float32(0.3) * shifts[1]
    )


def assert_same(actual, expected):
    assert actual[0] == pytest.approx(expected[0], abs=1e-6)
    assert_same_gradients(actual[1], expected[1])
    assert actual[2] == pytest.approx(expected[2], rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("preset", ["grpo", "gspo"])
@settings(deadline=None, max_examples=6, derandomize=True)
@given(seed=st.integers(0, 1000), count=st.integers(1, ROWS))
def test_packing_order_and_filler_rows_change_no_gradient_of_a_model(preset, seed, count):
    rng = np.random.default_rng(seed)
    made, samples = near(preset, seed % 7), rng.permutation(ROWS)[:count]
    expected = measure(preset, PADDED, 2, made, samples)
    assert_same(measure(preset, PACKED, 2, made, rng.permutation(samples)), expected)
    assert_same(measure(preset, PADDED, 2, made, rng.permutation(samples)), expected)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
@pytest.mark.parametrize(
    ("shape", "micro_rows"), [(WIDE, 2), (SHORTEST, 1), (LONG, 2)], ids=["more padding", "shortest packs", "long packs"]
)
def test_padding_and_pack_length_change_no_gradient_of_a_model(shape, micro_rows, aggregation):
    constant = {"loss_aggregation": aggregation, "loss_constant": SLOTS * (aggregation == "constant")}
    for seed in range(3):
        made = near("grpo", seed)
        samples = np.random.default_rng(seed).permutation(ROWS)[: ROWS - seed]
        expected = measure("grpo", PADDED, 2, made, samples, **constant)
        assert_same(measure("grpo", shape, micro_rows, wider(made, shape), samples, **constant), expected)


@pytest.mark.parametrize("preset", ["grpo", "gspo"])
def test_what_is_compared_is_not_just_small(preset):
    loss, gradients, metrics = measure(preset, PADDED, 2, near(preset, 0), np.arange(ROWS))
    assert abs(loss) > 1e-3
    assert all(np.abs(gradient).max() > 1e-4 for gradient in gradients.values())
    assert 0 < metrics["clip_fraction"] < 1
