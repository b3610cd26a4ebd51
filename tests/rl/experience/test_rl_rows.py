from dataclasses import replace

import numpy as np
import pytest
from helpers import made_up
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.config.schema import RLConfig
from r1parallel.models.fused.packing import SegmentMap
from r1parallel.rl.experience.rows import RowShape, first_fit

PROMPT, SLOTS = 5, 6
SETTINGS = RLConfig(num_generations=4)
SHAPES = [RowShape(PROMPT, SLOTS), *(RowShape(PROMPT, SLOTS, length, 4) for length in (11, 16, 30))]
chosen = st.tuples(st.integers(0, 50), st.integers(1, 12), st.integers(1, 5))


def cut(seed, count, multiple, shape):
    """An experience of 12 completions, `count` of them in some order, and the graph rows that hold these."""
    made = made_up.experience(seed, SETTINGS, 3, PROMPT, SLOTS)
    samples = np.random.default_rng(seed).permutation(12)[:count]
    return made, samples, shape.rows(made, samples, multiple)


def parts_of(shape, rows):
    """The five fields of `SegmentMap` again."""
    length, targets = shape.length, shape.targets
    return SegmentMap(*np.split(rows.row_data, np.cumsum([length, length, length, targets]), axis=1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@settings(deadline=None, max_examples=25)
@given(chosen)
def test_every_token_stands_in_exactly_one_slot(shape, case):
    made, samples, rows = cut(*case, shape)
    assert len(rows.tokens) % case[2] == 0
    assert rows.tokens.shape[1] == shape.length and rows.tokens.dtype == rows.row_data.dtype == np.int32
    tokens = list(zip(rows.sample[rows.used].tolist(), rows.token[rows.used].tolist(), strict=True))
    expected = [(n, c) for n in sorted(samples.tolist()) for c in range(made.lengths[n])]
    assert sorted(tokens) == expected


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
    np.testing.assert_array_equal(rows.row_data[: len(samples)], made.starts[samples])
    assert not rows.used[len(samples) :].any()
    assert len(rows.tokens) - len(samples) < case[2]


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@settings(deadline=None, max_examples=50)
@given(chosen)
def test_a_packed_row_is_prompts_each_with_its_completions(shape, case):
    made, _, rows = cut(*case, shape)
    segment_map = parts_of(shape, rows)
    for row in range(len(rows.tokens)):
        segments, parents = segment_map.segments_BT[row], segment_map.parents_BT[row]
        filled = int((segments >= 0).sum())
        assert (np.diff(segments[:filled]) >= 0).all()
        assert (segments[filled:] == -1).all() and (parents[filled:] == -1).all()  # padding stands at the end
        prompts = []
        for segment in range(segments.max() + 1):
            slots = np.flatnonzero(segments == segment)
            (parent,) = set(parents[slots].tolist())
            text = rows.tokens[row][slots].tolist()
            if parent == segment:
                prompts.append(tuple(text))
                np.testing.assert_array_equal(segment_map.positions_BT[row][slots], np.arange(len(text)))
            else:
                check_completion(made, rows, segment_map, row, slots, np.flatnonzero(segments == parent))
        assert len(set(prompts)) == len(prompts)  # none stands twice in a row
        unused = ~rows.used[row]
        assert not segment_map.sources_BK[row][unused].any() and not segment_map.targets_BK[row][unused].any()


def check_completion(made, rows, segment_map, row, slots, prompt_slots):
    """The targets of one completion of a packed row: what they are called, what predicts them, what they are."""
    follows = np.concatenate([prompt_slots[-1:], slots[:-1]])
    names = {rows.sample[row][k] for k in np.flatnonzero(rows.used[row]) if segment_map.sources_BK[row][k] in slots}
    length = len(slots)
    candidates = names or {
        n
        for n in set(rows.sample[row][rows.used[row]].tolist())
        if made.lengths[n] == 1 and made.tokens[n, PROMPT] == rows.tokens[row][slots[0]]
    }
    for name in candidates:
        mine = np.flatnonzero(rows.sample[row] == name)
        if made.lengths[name] != length or not (segment_map.sources_BK[row][mine] == follows).all():
            continue
        prompt = made.tokens[name, made.starts[name] : PROMPT]
        np.testing.assert_array_equal(rows.tokens[row][prompt_slots], prompt)
        text = made.tokens[name, PROMPT : PROMPT + length]
        np.testing.assert_array_equal(rows.tokens[row][slots], text)
        np.testing.assert_array_equal(segment_map.targets_BK[row][mine], text)
        np.testing.assert_array_equal(segment_map.positions_BT[row][slots], len(prompt) + np.arange(length))
        np.testing.assert_array_equal(rows.token[row][mine], np.arange(length))
        return
    pytest.fail(f"no completion of row {row} stands in slots {slots}")


def test_a_group_in_one_row_takes_its_prompt_once():
    made = made_up.experience(0, SETTINGS, 2, PROMPT, SLOTS)
    made = replace(made, lengths=np.full(8, SLOTS, np.int32), starts=np.repeat([0, 2], 4).astype(np.int32))
    made.tokens[:, :PROMPT] = np.repeat(made.tokens[[0, 4], :PROMPT], 4, axis=0)
    shape = RowShape(PROMPT, SLOTS, PROMPT + 4 * SLOTS, 4)
    rows = shape.rows(made, np.arange(8), 1)
    assert shape.targets == 4 * SLOTS and rows.used.all()
    filled = (parts_of(shape, rows).segments_BT >= 0).sum(axis=1)
    assert sorted(filled.tolist()) == [PROMPT - 2 + 4 * SLOTS, PROMPT + 4 * SLOTS]


def test_more_room_takes_fewer_rows():
    counts = [len(cut(1, 12, 1, shape)[2].tokens) for shape in SHAPES]
    assert counts[0] == 12
    assert counts[0] >= counts[1] > counts[2] > counts[3]


@pytest.mark.parametrize(
    ("length", "group", "targets"),
    [
        (11, 1, 6),
        (12, 1, 7),
        (16, 1, 9),
        (22, 1, 12),
        (1000, 1, 546),
        (16, 8, 9),
        (17, 8, 12),
        (29, 4, 24),
        (58, 4, 48),
    ],
)
def test_target_slots_are_the_completions_share_of_a_row(length, group, targets):
    assert RowShape(PROMPT, SLOTS, length, group).targets == targets


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=30),
    st.integers(11, 40),
    st.integers(6, 20),
)
def test_first_fit_holds_both_limits_and_loses_nothing(sizes, length, targets):
    """Prompts of one length are the same prompt here."""
    prompts, lengths = [(size,) * size for size, _ in sizes], [completion for _, completion in sizes]
    rows = first_fit(prompts, lengths, length, targets)
    assert sorted(member for row in rows for member in row) == list(range(len(sizes)))
    for row in rows:
        assert row == sorted(row)
        assert sum(map(len, {prompts[i] for i in row})) + sum(lengths[i] for i in row) <= length
        assert sum(lengths[i] for i in row) <= targets
    assert rows == first_fit(prompts, lengths, length, targets)


def test_first_fit_takes_long_groups_first_and_keeps_them_together():
    a, b, c = (1,) * 5, (2,) * 3, (3,) * 4
    prompts, lengths = [b, a, c, b, a, a], [2, 6, 1, 2, 5, 4]
    assert first_fit(prompts, lengths, 20, 20) == [[1, 4, 5], [0, 2, 3]]
    assert first_fit(prompts, lengths, 11, 20) == [[1], [4], [5], [0, 3], [2]]
    assert first_fit(prompts, lengths, 20, 11) == [[1, 4], [0, 3, 5], [2]]


def test_parts_cut_rows_evenly():
    _, _, rows = cut(0, 7, 4, SHAPES[0])
    parts = list(rows.parts(4))
    assert [len(part.tokens) for part in parts] == [4, 4]
    for name in ("tokens", "row_data", "sample", "token"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(rows, name))
    with pytest.raises(AssertionError):
        list(rows.parts(3))


def test_a_text_longer_than_a_row_is_no_silent_cut():
    made = made_up.experience(0, SETTINGS, 1, PROMPT, SLOTS)
    made = replace(made, lengths=np.full(4, SLOTS, np.int32), starts=np.zeros(4, np.int32))
    with pytest.raises(AssertionError):
        RowShape(PROMPT, SLOTS, 10).rows(made, np.arange(4), 1)
