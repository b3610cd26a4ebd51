"""Every preset against its paper, 200 random updates each.

MindSpore's Exp on a CPU is off by up to 5e-7 for |x| below 0.25 and, measured over |x| up to 25, by up to 1e-5 beyond.
So the loss of an update whose log ratios stay below 0.25 has to be right to 1e-6, and that of any other to EXP_ERROR,
both as a share of all that is added up (or absolutely where that is less than 1). With MindSpore's Exp in the reference
all of them have to be right to 1e-6: nothing else is off. Gradients have to be right to 1e-5 of what policy and KL
bring to them, whatever the ratio.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from helpers import paper_pieces
from helpers import paper_presets as papers
from helpers.given_logps import GivenLogps
from helpers.paper_cases import GROUP, ROWS, SLOTS, random_case, settings_of, stacked, told
from mindspore import Tensor, ops

from r1parallel.config.presets import PRESETS
from r1parallel.rl.objective.losses import TokenInputs, TokenValues

pytestmark = pytest.mark.usefixtures("mindspore_cpu")
CASES = range(200)
EXP_ERROR, EXACT_BELOW = 1e-5, 0.25
# Only what docs/algorithms.md names as another value than the paper's, or what the paper leaves to its user.
REFERENCES = {
    "grpo": lambda batch: papers.grpo(batch, beta=0.01),
    "dr_grpo": lambda batch: papers.dr_grpo(batch, limit=SLOTS),
    "dapo": papers.dapo,
    "gspo": papers.gspo,
    "cispo": papers.cispo,
    "rloo": lambda batch: papers.rloo(batch, beta=0.05),
    "reinforce_plus_plus": papers.reinforce_plus_plus,
}


def allowed(case, size):
    return (1e-6 if case.farthest < EXACT_BELOW else EXP_ERROR) * max(1.0, size)


@cache
def graph(preset, on_policy=False):
    """One for all cases at once: compiling is what takes time."""
    return GivenLogps(settings_of(preset), len(CASES) * ROWS, SLOTS, on_policy)


def run(preset, logps, given, on_policy=False):
    """Fewer rows than the graph has: the others are copies that weigh nothing."""
    rows, whole = len(logps), len(CASES) * ROWS
    filled = TokenInputs(*(np.resize(field, (whole, SLOTS)) for field in given))
    for weights in (filled.weights, filled.policy_weights, filled.kl_weights):
        weights[rows:] = 0.0
    values, gradient = graph(preset, on_policy)(np.resize(logps, (whole, SLOTS)), filled)
    return TokenValues(*(field[:rows] for field in values)), gradient[:rows]


@cache
def launched(preset):
    """What the package says of all cases: (what it was told, values, gradient), the last two by case."""
    settings = settings_of(preset)
    given = [told(random_case(seed), settings) for seed in CASES]
    values, gradient = run(preset, np.concatenate([random_case(seed).logps for seed in CASES]), stacked(given))
    by_case = (len(CASES), ROWS, SLOTS)
    return given, TokenValues(*(field.reshape(by_case) for field in values)), gradient.reshape(by_case)


def test_every_preset_has_a_reference():
    assert set(REFERENCES) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_advantages_are_the_papers(preset):
    given, _, _ = launched(preset)
    for seed in CASES:
        batch = random_case(seed).batch
        expected = REFERENCES[preset](batch).advantages
        np.testing.assert_allclose(given[seed].advantages, expected, rtol=1e-6, atol=1e-6, err_msg=f"case {seed}")


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_is_the_papers(preset):
    _, values, _ = launched(preset)
    for seed in CASES:
        case = random_case(seed)
        paper = REFERENCES[preset](case.batch)
        ours, expected = values.loss[seed].sum(dtype=np.float64), paper.loss(case.logps)
        assert abs(ours - expected) <= allowed(case, paper.size(case.logps)), (seed, ours, expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_is_the_papers_but_for_mindspores_exp(preset, monkeypatch):
    _, values, _ = launched(preset)
    exp = ops.Exp()
    monkeypatch.setattr(paper_pieces, "EXP", lambda x: exp(Tensor(x.astype(np.float32))).asnumpy().astype(np.float64))
    for seed in CASES:
        case = random_case(seed)
        paper = REFERENCES[preset](case.batch)
        ours, expected = values.loss[seed].sum(dtype=np.float64), paper.loss(case.logps)
        assert abs(ours - expected) <= 1e-6 * max(1.0, paper.size(case.logps)), (seed, ours, expected)


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_is_the_slope_of_the_papers_loss(preset):
    _, _, gradients = launched(preset)
    for seed in CASES:
        case = random_case(seed)
        logps = np.where(case.batch.inside, case.logps, 0.0)
        parts = REFERENCES[preset](case.batch).slopes(logps)
        error = np.abs(gradients[seed] - sum(parts))
        assert (error <= 1e-5 * sum(np.abs(part) for part in parts) + 1e-7).all(), (seed, error.max())


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_not_counted_is_exactly_nothing(preset):
    _, values, gradients = launched(preset)
    for seed in CASES:
        outside = ~random_case(seed).batch.tokens
        assert not values.loss[seed][outside].any()
        assert not gradients[seed][outside].any()


def test_cases_cover_what_they_claim():
    cases = [random_case(seed) for seed in CASES]
    assert max(case.farthest for case in cases) == 20.0
    assert sum(case.farthest < EXACT_BELOW for case in cases) >= 40
    assert sum(not case.batch.counted.any() for case in cases) >= 2
    assert sum(bool(case.batch.masked.any()) for case in cases) >= 40
    assert sum(bool(np.isnan(case.batch.rewards).any()) for case in cases) == 20
    assert sum(len(set(case.batch.rewards)) == 1 for case in cases) == 20
    assert all({1, SLOTS} <= set(case.batch.lengths) for case in cases)
    assert any(np.isnan(case.logps).any() for case in cases)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "rloo"])
def test_clipping_is_met_from_both_sides(preset):
    """Every preset but RLOO clips in many cases, and in many does not."""
    _, values, _ = launched(preset)
    clipped = np.concatenate([values.clipped[seed][random_case(seed).batch.tokens] for seed in CASES])
    assert 200 < clipped.sum() < len(clipped) - 200


@pytest.mark.parametrize("preset", PRESETS)
def test_a_masked_completion_counts_nowhere(preset):
    """Neither in the numerator nor in the denominator: the loss is that of the others' advantages without it."""
    settings = settings_of(preset)
    case = random_case(18)
    masked = np.array([False, True, False, False, False, True])
    case = replace(case, batch=replace(case.batch, masked=masked))
    given = told(case, settings)
    assert not given.weights[masked].any()
    left = ~masked
    logps = case.logps.copy()
    before = run(preset, logps, given)
    logps[masked] = np.nan
    after = run(preset, logps, given)
    np.testing.assert_array_equal(before[0].loss, after[0].loss)
    np.testing.assert_array_equal(before[1], after[1])
    inside = case.batch.inside[left]
    shares = {
        "sequence_mean": inside / case.batch.lengths[left][:, None] / left.sum(),
        "token_mean": inside / inside.sum(),
        "constant": inside / left.sum() / (settings.loss_constant or SLOTS),
    }
    np.testing.assert_allclose(given.weights[left], shares[settings.loss_aggregation], rtol=1e-12)


@pytest.mark.parametrize("preset", PRESETS)
def test_order_of_prompts_and_completions_changes_nothing(preset):
    """Advantages follow their completions; loss and gradient are the same sums in another order."""
    settings = settings_of(preset)
    case = random_case(17)
    rng = np.random.default_rng(5)
    groups = np.arange(ROWS).reshape(-1, GROUP)[::-1]
    order = np.concatenate([rng.permutation(group) for group in groups])
    batch = case.batch
    moved = replace(
        case,
        logps=case.logps[order],
        batch=replace(
            batch,
            rewards=batch.rewards[order],
            lengths=batch.lengths[order],
            old=batch.old[order],
            ref=batch.ref[order],
            masked=batch.masked[order],
        ),
    )
    straight, followed = told(case, settings), told(moved, settings)
    np.testing.assert_allclose(followed.advantages, straight.advantages[order], rtol=1e-6, atol=1e-7)
    (first, slope), (second, moved_slope) = run(preset, case.logps, straight), run(preset, moved.logps, followed)
    sums = [values.loss.sum(dtype=np.float64) for values in (first, second)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-6, abs=1e-6)
    np.testing.assert_allclose(moved_slope, slope[order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("preset", PRESETS)
def test_several_completions_in_a_row_are_judged_as_apart(preset):
    """Two in a row of the graph, the slots of one behind those of the other."""
    settings = settings_of(preset)
    case = random_case(18)
    given = told(case, settings)
    apart = run(preset, case.logps, given)
    whole = (ROWS // 2, 2 * SLOTS)
    together = GivenLogps(settings, *whole)(case.logps.reshape(whole), type(given)(*(x.reshape(whole) for x in given)))
    for name in ("loss", "ratio", "clipped"):
        joined = getattr(together[0], name).reshape(ROWS, SLOTS)
        np.testing.assert_allclose(joined, getattr(apart[0], name), rtol=1e-6, atol=1e-7, err_msg=name)
    np.testing.assert_allclose(together[1].reshape(ROWS, SLOTS), apart[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_first_update_has_ratio_one_and_no_kl(preset):
    """Old log-probs and the reference's are the policy's own."""
    settings = settings_of(preset)
    case = random_case(20)
    batch = replace(case.batch, old=case.logps, ref=case.logps)
    given = told(replace(case, batch=batch), settings)
    for on_policy in (False, True):
        values, gradient = run(preset, case.logps, given, on_policy)
        assert (values.ratio == 1.0).all()
        assert not values.kl.any()
        assert not values.clipped.any()
        assert np.abs(gradient).max() > 0.01
        # What is left is REINFORCE, in every preset; a sequence's ratio shares its gradient out among its tokens.
        np.testing.assert_allclose(gradient, -given.weights * given.advantages, rtol=1e-6, atol=1e-8)
