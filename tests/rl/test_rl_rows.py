from dataclasses import replace

import made_up
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.schema import RLConfig
from r1parallel.models.packing import Places
from r1parallel.rl.rows import RowShape, first_fit

PROMPT, SLOTS = 5, 6
SETTINGS = RLConfig(num_generations=4)
SHAPES = [RowShape(PROMPT, SLOTS), *(RowShape(PROMPT, SLOTS, length) for length in (11, 16, 30))]
chosen = st.tuples(st.integers(0, 50), st.integers(1, 12), st.integers(1, 5))


def cut(seed, count, multiple, shape):
    """An experience of 12 completions, `count` of them in some order, and the graph rows that hold these."""
    made = made_up.experience(seed, SETTINGS, 3, PROMPT, SLOTS)
    samples = np.random.default_rng(seed).permutation(12)[:count]
    return made, samples, shape.rows(made, samples, multiple)


def parts_of(shape, rows):
    """The five fields of `Places` again."""
    length, targets = shape.length, shape.targets
    return Places(*np.split(rows.places, np.cumsum([length, length, length, targets]), axis=1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(chosen)
def test_every_token_stands_in_exactly_one_slot(shape, case):
    made, samples, rows = cut(*case, shape)
    assert len(rows.tokens) % case[2] == 0
    assert rows.tokens.shape[1] == shape.length and rows.tokens.dtype == rows.places.dtype == np.int32
    places = list(zip(rows.sample[rows.used].tolist(), rows.token[rows.used].tolist(), strict=True))
    expected = [(n, c) for n in sorted(samples.tolist()) for c in range(made.lengths[n])]
    assert sorted(places) == expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(chosen)
def test_put_reverses_take(shape, case):
    made, samples, rows = cut(*case, shape)
    numbers = np.arange(1.0, made.inside.size + 1).reshape(made.inside.shape)
    taken = rows.take(numbers)
    assert not taken[~rows.used].any()
    back = np.zeros_like(numbers)
    rows.put(taken, back)
    there = made.inside & np.isin(np.arange(12), samples)[:, None]
    np.testing.assert_array_equal(back, np.where(there, numbers, 0.0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_behind_a_completion_are_never_taken(shape):
    made, _, rows = cut(3, 12, 2, shape)
    assert np.isnan(made.old_logps).any()
    assert np.isfinite(rows.take(made.old_logps)).all()


@settings(deadline=None, max_examples=50)
@given(chosen)
def test_a_padded_row_is_the_completions_own(case):
    made, samples, rows = cut(*case, SHAPES[0])
    np.testing.assert_array_equal(rows.tokens[: len(samples)], made.tokens[samples])
    np.testing.assert_array_equal(rows.places[: len(samples)], made.starts[samples])
    assert not rows.used[len(samples) :].any()
    assert len(rows.tokens) - len(samples) < case[2]


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@settings(deadline=None, max_examples=50)
@given(chosen)
def test_a_packed_segment_is_a_prompt_and_its_completion(shape, case):
    made, _, rows = cut(*case, shape)
    places = parts_of(shape, rows)
    np.testing.assert_array_equal(places.parents_BT, places.segments_BT)  # no prompt is shared
    for row in range(len(rows.tokens)):
        segments = places.segments_BT[row]
        filled = int((segments >= 0).sum())
        assert (np.diff(segments[:filled]) >= 0).all()
        assert (segments[filled:] == -1).all()  # padding stands at the end
        for segment in range(segments.max() + 1):
            slots = np.flatnonzero(segments == segment)
            mine = np.flatnonzero(rows.used[row] & (places.sources_BK[row] >= slots[0]))
            mine = mine[places.sources_BK[row][mine] <= slots[-1]]
            (name,) = set(rows.sample[row][mine].tolist())
            text = made.tokens[name, made.starts[name] : PROMPT + made.lengths[name]]
            np.testing.assert_array_equal(rows.tokens[row][slots], text)
            np.testing.assert_array_equal(places.positions_BT[row][slots], np.arange(len(text)))
            # The state before a token predicts it.
            np.testing.assert_array_equal(
                places.targets_BK[row][mine], rows.tokens[row][places.sources_BK[row][mine] + 1]
            )
            np.testing.assert_array_equal(places.targets_BK[row][mine], text[len(text) - made.lengths[name] :])
            np.testing.assert_array_equal(rows.token[row][mine], np.arange(made.lengths[name]))
        unused = ~rows.used[row]
        assert not places.sources_BK[row][unused].any() and not places.targets_BK[row][unused].any()


def test_more_room_takes_fewer_rows():
    counts = [len(cut(1, 12, 1, shape)[2].tokens) for shape in SHAPES]
    assert counts[0] == 12
    assert counts[0] >= counts[1] > counts[2] > counts[3]


@pytest.mark.parametrize(("length", "targets"), [(11, 6), (12, 7), (16, 9), (22, 12), (1000, 546)])
def test_target_slots_are_the_completions_share_of_a_row(length, targets):
    assert RowShape(PROMPT, SLOTS, length).targets == targets


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=30),
    st.integers(11, 40),
    st.integers(6, 20),
)
def test_first_fit_holds_both_limits_and_loses_nothing(sizes, length, targets):
    prompts, lengths = zip(*sizes, strict=True)
    rows = first_fit(prompts, lengths, length, targets)
    assert sorted(member for row in rows for member in row) == list(range(len(sizes)))
    for row in rows:
        assert row == sorted(row)
        assert sum(prompts[i] + lengths[i] for i in row) <= length
        assert sum(lengths[i] for i in row) <= targets
    assert rows == first_fit(prompts, lengths, length, targets)
    order = sorted(range(len(sizes)), key=lambda i: (-prompts[i] - lengths[i], i))
    for number, row in enumerate(rows):  # a row was begun only because no earlier one had room
        first = min(row, key=order.index)
        before = set(order[: order.index(first)])
        for earlier in rows[:number]:
            held = [*before.intersection(earlier), first]
            assert sum(prompts[i] + lengths[i] for i in held) > length or sum(lengths[i] for i in held) > targets


def test_parts_cut_rows_evenly():
    _, _, rows = cut(0, 7, 4, SHAPES[0])
    parts = list(rows.parts(4))
    assert [len(part.tokens) for part in parts] == [4, 4]
    for name in ("tokens", "places", "sample", "token"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(rows, name))
    with pytest.raises(AssertionError):
        list(rows.parts(3))


def test_a_text_longer_than_a_row_is_no_silent_cut():
    made = made_up.experience(0, SETTINGS, 1, PROMPT, SLOTS)
    made = replace(made, lengths=np.full(4, SLOTS, np.int32), starts=np.zeros(4, np.int32))
    with pytest.raises(AssertionError):
        RowShape(PROMPT, SLOTS, 10).rows(made, np.arange(4), 1)
