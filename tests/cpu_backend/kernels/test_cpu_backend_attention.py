"""FlashAttentionScore and its gradient on the CPU, against float64."""

import numpy as np
import pytest
from kernel_runs import Flash, attention, normal, run, run_both
from mindspore import Tensor, nn
from mindspore.ops.auto_generate import FlashAttentionScore

pytestmark = pytest.mark.usefixtures("fused_kernels")

ROWS = 3
# Queries, keys, heads, key heads, head size.
SIZES = {
    "a tile and a bit": (37, 37, 9, 3, 24),
    "whole tiles": (32, 16, 4, 2, 16),
    "a size that no vector divides": (21, 43, 6, 2, 5),
    "more queries than keys": (50, 3, 2, 1, 12),
    "a head each": (7, 30, 3, 3, 8),
    "all share one": (18, 25, 5, 1, 33),
    "queries in halves": (131, 140, 4, 2, 16),
    "one query": (1, 29, 6, 2, 24),
    "one query, long heads": (1, 70, 8, 1, 128),
    "one query of an odd size": (1, 29, 4, 2, 13),
    "one query, one key": (1, 1, 2, 1, 8),
    "one key": (19, 1, 2, 2, 4),
}


def causal(queries, keys):
    return np.broadcast_to(np.triu(np.ones((queries, keys), bool), 1 + max(0, keys - queries)), (ROWS, queries, keys))


def random(queries, keys):
    """Everybody sees something."""
    hidden = np.random.default_rng(1).random((ROWS, queries, keys)) < 0.7
    hidden[..., 0] = False
    return hidden


def tiles(queries, keys):
    """Whole tiles of queries see nothing of whole stretches of keys, and other tiles nothing at all."""
    hidden = np.zeros((ROWS, queries, keys), bool)
    hidden[0, : queries // 2, keys // 4 : keys // 4 + 16] = True
    hidden[1, 16:] = True
    hidden[2, :, : keys - keys // 3] = True
    return hidden


def blind(queries, keys):
    """Some queries see nothing, between others that do; in the last row nobody does."""
    hidden = random(queries, keys).copy()
    hidden[:, queries // 2] = True
    hidden[ROWS - 1] = True
    return hidden


def nothing(queries, keys):
    return np.zeros((ROWS, queries, keys), bool)


def to_layout(x_BNSD, layout):
    rows, heads, tokens, size = x_BNSD.shape
    x_BSND = np.ascontiguousarray(x_BNSD.transpose(0, 2, 1, 3))
    shapes = {"BSND": x_BSND, "BNSD": x_BNSD, "BSH": x_BSND.reshape(rows, tokens, heads * size)}
    return shapes[layout]


def inputs_of(sizes, seed=0):
    """Query, key, value and slope, [B, heads, S, D]."""
    queries, keys, heads, key_heads, size = sizes
    key = (ROWS, key_heads, keys, size)
    return normal(seed, (ROWS, heads, queries, size), key, key, (ROWS, heads, queries, size))


def check(sizes, hidden, mask, layout, scale=0.3):
    """A mask of None: the operator is given none."""
    query, key, value, slope = inputs_of(sizes)
    expected = attention(query, key, value, hidden[:, None], scale, slope)
    inputs = [to_layout(x, layout) for x in (query, key, value)] + ([] if mask is None else [mask])
    cell = Flash(sizes[2], scale_value=scale, input_layout=layout)
    output, gradients = run_both(cell, tuple(inputs), to_layout(slope, layout))
    found = [output, *gradients[:3]]
    for name, ours, theirs in zip(expected._fields, found, expected, strict=True):
        assert ours.dtype == np.float32
        largest = max(1.0, np.abs(theirs).max())
        wanted = to_layout(theirs, layout)
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=5e-6 * largest, err_msg=name)
    return found, expected


@pytest.mark.parametrize("hide", [causal, random, tiles, blind])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_outputs_and_gradients_are_those_of_float64(sizes, hide):
    hidden = hide(*sizes[:2])
    check(sizes, hidden, np.ascontiguousarray(hidden[:, None]), "BSND")


@pytest.mark.parametrize("layout", ["BSH", "BNSD"])
@pytest.mark.parametrize("sizes", [SIZES["a tile and a bit"], SIZES["one query"]], ids=["many", "one query"])
def test_heads_may_stand_in_other_layouts(sizes, layout):
    hidden = random(*sizes[:2])
    check(sizes, hidden, hidden[:, None], layout)


@pytest.mark.parametrize("sizes", [SIZES["a tile and a bit"], SIZES["one query"]], ids=["many", "one query"])
def test_without_a_mask_everything_is_seen(sizes):
    check(sizes, nothing(*sizes[:2]), None, "BSND")


@pytest.mark.parametrize("shape", [(1, 1), ()], ids=["[1, 1, S, K]", "[S, K]"])
@pytest.mark.parametrize("sizes", [SIZES["a tile and a bit"], SIZES["one query"]], ids=["many", "one query"])
def test_rows_may_share_a_mask(sizes, shape):
    one = random(*sizes[:2])[0]
    check(sizes, np.broadcast_to(one, (ROWS, *one.shape)), one.reshape(*shape, *one.shape), "BSND")


@pytest.mark.parametrize("sizes", [SIZES["a tile and a bit"], SIZES["one query"]], ids=["many", "one query"])
def test_a_query_that_sees_nothing_gives_zeros_and_has_no_gradient(sizes):
    hidden = blind(*sizes[:2])
    found, _ = check(sizes, hidden, hidden[:, None], "BSND")
    nobody = hidden.all(-1)
    assert nobody.any()
    for x_BSND in found[:2]:
        assert not x_BSND[nobody].any()
    for x_BKMD in found[2:]:
        assert not x_BKMD[hidden.all(1)].any()  # nor has a key that nobody sees


@pytest.mark.parametrize("layout", ["BSND", "BNSD"])
def test_what_stands_in_hidden_keys_changes_nothing(layout):
    """Not even as rounding: these are earlier texts in a cache, and padding."""
    sizes = SIZES["a tile and a bit"]
    query, key, value, slope = inputs_of(sizes)
    hidden = tiles(*sizes[:2])
    unseen = hidden.all(1)
    answers = []
    for filler in (0.0, 50.0):
        for x_BMKD in (key, value):
            x_BMKD.transpose(0, 2, 1, 3)[unseen] = filler
        inputs = [to_layout(x, layout) for x in (query, key, value)]
        cell = Flash(sizes[2], scale_value=0.3, input_layout=layout)
        answers.append(run_both(cell, (*inputs, hidden[:, None]), to_layout(slope, layout)))
    assert unseen.any()
    np.testing.assert_array_equal(answers[1][0], answers[0][0])
    for ours, theirs in zip(answers[1][1][:3], answers[0][1][:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("sizes", [SIZES["a tile and a bit"], SIZES["one query"]], ids=["many", "one query"])
def test_large_scores_stay_finite(sizes):
    """Their exponentials alone would not."""
    query, key, value, _ = inputs_of(sizes)
    output = run(Flash(sizes[2], scale_value=1.0, input_layout="BNSD"), 100 * query, 10 * key, value)
    hidden = nothing(*sizes[:2])[:, None]
    expected = attention(100 * query, 10 * key, value, hidden, 1.0, query).output
    np.testing.assert_allclose(output, expected, rtol=0, atol=2e-3)
    assert np.isfinite(output).all()


def test_a_token_alone_has_the_numbers_that_it_has_among_others():
    """The kernel for one query computes in another order, so up to rounding."""
    sizes = SIZES["a tile and a bit"]
    query, key, value, _ = inputs_of(sizes)
    hidden = random(*sizes[:2])[:, None]
    cell, one = (Flash(sizes[2], scale_value=0.3, input_layout="BNSD") for _ in range(2))
    together = run(cell, query, key, value, hidden)
    for token in (0, 20, 36):
        place = np.s_[:, :, token : token + 1]
        alone = run(one, np.ascontiguousarray(query[place]), key, value, np.ascontiguousarray(hidden[place]))
        np.testing.assert_allclose(alone, together[place], rtol=0, atol=2e-6)


class Shifted(nn.Cell):
    def __init__(self):
        super().__init__()
        self.flash = FlashAttentionScore(4, input_layout="BSND")

    def construct(self, query, key, value, shift):
        return self.flash(query, key, value, shift, None, None, None)[3]


QUERY, KEY, OTHER = (ROWS, 6, 4, 16), (ROWS, 6, 2, 16), (ROWS, 6, 2, 8)
ALL, FLOAT, HALF = np.zeros((ROWS, 1, 6, 6), bool), np.float32, np.float16


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"keep_prob": 0.9}, None, "has no dropout"),
        ({"sparse_mode": 1}, None, "has sparse_mode 0 only"),
        ({"sparse_mode": 2}, None, "has sparse_mode 0 only"),
        ({"pre_tokens": 3}, None, "has no window of keys"),
        ({"next_tokens": 0}, None, "has no window of keys"),
        ({"input_layout": "SBH"}, [(6, ROWS, 64)] * 3, "has the layouts BSH, BSND and BNSD only"),
        ({}, [QUERY, KEY, OTHER], "takes keys and values of one shape"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_what_these_kernels_do_not_do_is_refused(options, inputs, message):
    arrays = normal(0, *(inputs or [QUERY, KEY, KEY]))
    with pytest.raises(RuntimeError, match=f"^FlashAttentionScore on CPU {message}"):
        run(Flash(4, **{"input_layout": "BSND"} | options), *arrays, ALL)


@pytest.mark.parametrize("types", [(HALF, HALF, HALF), (FLOAT, HALF, HALF), (FLOAT, FLOAT, HALF)])
def test_other_types_are_refused(types):
    """Also of the keys alone, which would be read as twice as many bytes."""
    arrays = [x.astype(kind) for x, kind in zip(normal(0, QUERY, KEY, KEY), types, strict=True)]
    with pytest.raises(RuntimeError, match=r"^FlashAttentionScore on CPU computes in float32 only"):
        run(Flash(4, input_layout="BSND"), *arrays)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((ROWS, 4, 6, 6), bool), "takes one mask for all heads"),
        (np.zeros((ROWS, 1, 6, 6), np.uint8), "computes in float32 only, with masks of bool"),
        (np.zeros((ROWS, 1, 6, 6), np.float32), "takes a mask of bool only"),
    ],
    ids=["of each head", "uint8", "float32"],
)
def test_other_masks_are_refused(mask, message):
    with pytest.raises(RuntimeError, match=f"^FlashAttentionScore on CPU {message}"):
        run(Flash(4, input_layout="BSND"), *normal(0, QUERY, KEY, KEY), mask)


def test_another_input_is_refused():
    inputs = [Tensor(x) for x in normal(0, QUERY, KEY, KEY, (ROWS, 4, 6, 6))]
    with pytest.raises(RuntimeError, match=r"^FlashAttentionScore on CPU takes a mask and nothing else"):
        Shifted()(*inputs).asnumpy()
