"""Packed rows say of every text what a padded row of its own says."""

import numpy as np
import pytest
from helpers.one_rank import LossGradient
from helpers.packed_texts import Text, inside, pack, padded, random_texts
from mindspore import ParameterTuple, Tensor, nn, ops

from r1parallel.config.model import ModelConfig
from r1parallel.models import logps as logps_module
from r1parallel.models.fused.operators import PLAIN
from r1parallel.models.fused.packing import packed
from r1parallel.models.logps import CompletionLogps, PackedLogps
from r1parallel.models.parameters import load_parameters, share_parameters
from r1parallel.models.qwen2_5 import Qwen2ForCausalLM

PROMPT, COMPLETION, LENGTH = 6, 5, 24
SIZES = [(1, 1), (6, 5), (3, 1), (1, 5), (6, 1), (4, 3), (2, 2), (5, 4)]
# Rows of several texts: one that is full to the last slot, one of many, one with nothing but padding behind a text.
ROWS = [[[1], [4], [0], [6]], [[2], [3], [5]], [[7]]]
TARGETS = 12


class Weighted(nn.Cell):
    """Σ weight · what the log-probs' Cell gives."""

    def __init__(self, logps: nn.Cell):
        super().__init__(auto_prefix=False)
        self.logps, self.mul = logps, ops.Mul()

    def construct(self, tokens: Tensor, segment_map: Tensor, weights: Tensor) -> Tensor:
        return self.mul(self.logps(tokens, segment_map), weights)


class Pair:
    """One model's weights with padded rows and with packed ones."""

    def __init__(self, config: ModelConfig, values: dict[str, np.ndarray]):
        self.config = config
        self.padded = Qwen2ForCausalLM(config, PROMPT + COMPLETION)
        self.packed = Qwen2ForCausalLM(config, LENGTH, operators=packed(PLAIN))
        load_parameters(self.padded, values, "test")
        share_parameters(self.padded, self.packed)
        self.cells: dict[tuple, nn.Cell] = {}

    def texts(self, seed: int = 3, sizes=SIZES) -> list[Text]:
        return random_texts(np.random.default_rng(seed), self.config.vocab_size, sizes)

    def padded_values(self, texts: list[Text], **settings) -> np.ndarray:
        """Log-probs and, if asked for, entropies, zero behind a completion's end: [kinds, N, C]."""
        cell = CompletionLogps(self.padded, len(texts), PROMPT, COMPLETION, **settings)
        values = cell(*(Tensor(x) for x in padded(texts, PROMPT, COMPLETION))).asnumpy()
        return np.where(inside(texts, COMPLETION), np.split(values, values.shape[1] // COMPLETION, axis=1), 0.0)

    def packed_cell(self, rows: int, **settings) -> nn.Cell:
        """One cell, which is compiled once, for each number of rows and settings."""
        key = rows, *sorted(settings.items())
        if key not in self.cells:
            self.cells[key] = PackedLogps(self.packed, rows, LENGTH, TARGETS, **settings)
        return self.cells[key]

    def packed_values(self, texts: list[Text], rows=ROWS, filler: int = 0, **settings) -> np.ndarray:
        """The same from packed rows."""
        rows = pack(texts, rows, LENGTH, TARGETS, filler)
        cell = self.packed_cell(len(rows.tokens), **settings)
        values = cell(Tensor(rows.tokens), Tensor(rows.segment_map.concatenated())).asnumpy()
        assert np.isfinite(values).all()  # padding and unused targets too
        like = np.zeros((len(texts), COMPLETION))
        return np.stack([rows.put(kind, like) for kind in np.split(values, values.shape[1] // TARGETS, axis=1)])


@pytest.fixture(scope="module")
def pair(mindspore_cpu, tiny_config, noisy_values) -> Pair:
    return Pair(tiny_config, noisy_values(tiny_config, seed=8))


@pytest.mark.parametrize("split_vocab", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_rows_give_the_padded_rows_numbers(pair, split_vocab, temperature):
    settings = {"split_vocab": split_vocab, "temperature": temperature, "entropy": True}
    expected = pair.padded_values(pair.texts(), **settings)
    found = pair.packed_values(pair.texts(), **settings)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 1


def fill(rng: np.random.Generator, texts: list[Text]) -> list[list[list[int]]]:
    """The texts in random order, each in the first of three rows that has room for it, or in none."""
    rows: list[list[list[int]]] = [[], [], []]
    for text in rng.permutation(len(texts)).tolist():
        for row in rows:
            held = [texts[group[0]] for group in (*row, [text])]
            tokens = sum(len(t.prompt) + len(t.completion) for t in held)
            if tokens <= LENGTH and sum(len(t.completion) for t in held) <= TARGETS:
                row.append([text])
                break
    return rows


def test_random_packings_give_the_padded_rows_numbers(pair):
    """Lengths, order and rows at random; the graph is the same for all of them."""
    rng = np.random.default_rng(0)
    packed_cell = pair.packed_cell(3, entropy=True)
    padded_cell = CompletionLogps(pair.padded, 8, PROMPT, COMPLETION, entropy=True)
    for _ in range(25):
        sizes = [(rng.integers(1, PROMPT + 1), rng.integers(1, COMPLETION + 1)) for _ in range(8)]
        texts = random_texts(rng, pair.config.vocab_size, sizes)
        rows = fill(rng, texts)
        held = sorted(group[0] for row in rows for group in row)
        assert len(held) > 3
        filled = pack(texts, rows, LENGTH, TARGETS, int(rng.integers(37)))
        values = packed_cell(Tensor(filled.tokens), Tensor(filled.segment_map.concatenated())).asnumpy()
        whole = padded_cell(*(Tensor(x) for x in padded(texts, PROMPT, COMPLETION))).asnumpy()
        for ours, theirs in zip(np.split(values, 2, axis=1), np.split(whole, 2, axis=1), strict=True):
            expected = np.where(inside(texts, COMPLETION), theirs, 0.0)[held]
            np.testing.assert_allclose(filled.put(ours, theirs)[held], expected, rtol=0, atol=1e-5)


def with_shared_prompts(pair: Pair) -> tuple[list[Text], list[list[list[int]]]]:
    """Three completions of one prompt and two of another; rows where each prompt stands once."""
    texts = pair.texts(5, [(5, 4), (5, 1), (5, 3), (2, 2), (2, 4)])
    texts = [text._replace(prompt=texts[0 if i < 3 else 3].prompt) for i, text in enumerate(texts)]
    return texts, [[[0, 2, 1]], [[4, 3]]]


def test_a_shared_prompt_stands_in_a_row_once(pair):
    texts, rows = with_shared_prompts(pair)
    expected = pair.padded_values(texts, entropy=True)
    np.testing.assert_allclose(pair.packed_values(texts, rows, entropy=True), expected, rtol=0, atol=1e-5)
    beside = [[[3, 4], [0, 1]], [[2]]]  # two prompts in one row, one of them once more in another
    np.testing.assert_allclose(pair.packed_values(texts, beside, entropy=True), expected, rtol=0, atol=1e-5)


class Gradients:
    """Of Σ weight · what a log-probs' Cell gives; → gradients by name."""

    def __init__(self, pair: Pair, cell: nn.Cell):
        self.parameters = ParameterTuple(pair.padded.trainable_params())
        self.gradient = LossGradient(Weighted(cell), self.parameters)

    def __call__(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        _, gradients = self.gradient(*(Tensor(x) for x in inputs))
        return {p.name: g.asnumpy().copy() for p, g in zip(self.parameters, gradients, strict=True)}


@pytest.mark.parametrize("case", ["whole", "split", "chunks", "shared"])
def test_packed_rows_give_the_padded_rows_gradients(pair, monkeypatch, case):
    texts, rows = with_shared_prompts(pair) if case == "shared" else (pair.texts(), ROWS)
    weights = np.random.default_rng(1).normal(size=(2, len(texts), COMPLETION)).astype(np.float32)
    weights *= inside(texts, COMPLETION)
    cell = CompletionLogps(pair.padded, len(texts), PROMPT, COMPLETION, temperature=0.8, entropy=True)
    expected = Gradients(pair, cell)(*padded(texts, PROMPT, COMPLETION), np.concatenate(weights, axis=1))
    if case == "chunks":
        monkeypatch.setattr(logps_module, "_CHUNK_ELEMENTS", 8 * pair.config.vocab_size)
    filled = pack(texts, rows, LENGTH, TARGETS)
    used = filled.origin[..., 0] >= 0
    own = np.zeros((2, *used.shape), np.float32)
    own[:, used] = weights[(slice(None), *filled.origin[used].T)]
    cell = PackedLogps(pair.packed, len(rows), LENGTH, TARGETS, case == "split", 0.8, entropy=True)
    assert (len(cell.chunks) > 1) == (case == "chunks")
    gradients, inputs = (
        Gradients(pair, cell),
        (filled.tokens, filled.segment_map.concatenated(), np.concatenate(own, axis=1)),
    )
    found = gradients(*inputs)
    assert len(expected) == len(pair.config.parameter_shapes())
    for name, wanted in expected.items():
        limit = 2e-5 * max(np.abs(wanted).max(), 1e-2)  # a key's bias has a gradient of rounding errors alone
        np.testing.assert_allclose(found[name], wanted, rtol=0, atol=limit, err_msg=name)
    again = gradients(*inputs)
    assert all(np.array_equal(again[name], found[name]) for name in found)


def test_nothing_leaks_from_one_text_into_another(pair):
    """Another text in a row, or another filler of its padding, changes no bit of the rest."""
    texts = pair.texts()
    start = pair.packed_values(texts, entropy=True)
    rng = np.random.default_rng(2)
    for changed in (4, 3):  # with texts before and behind it in its row
        prompt, completion = ((np.array(ids) + rng.integers(1, 37)) % 37 for ids in texts[changed])
        others = [*texts]
        others[changed] = Text(prompt.tolist(), completion.tolist())
        found = pair.packed_values(others, entropy=True)
        rest = np.arange(len(texts)) != changed
        np.testing.assert_array_equal(found[:, rest], start[:, rest])
        assert np.abs(found[:, changed] - start[:, changed]).max() > 0.1
    np.testing.assert_array_equal(pair.packed_values(texts, filler=36, entropy=True), start)


def test_completions_of_one_prompt_do_not_see_each_other(pair):
    texts, rows = with_shared_prompts(pair)
    start = pair.packed_values(texts, rows, entropy=True)
    others = [*texts]
    others[0] = texts[0]._replace(completion=[(token + 1) % 37 for token in texts[0].completion])
    found = pair.packed_values(others, rows, entropy=True)
    np.testing.assert_array_equal(found[:, 1:], start[:, 1:])
    assert np.abs(found[:, 0] - start[:, 0]).max() > 0.1


def test_places_stand_side_by_side():
    texts = [Text([7, 8], [9, 6]), Text([5], [4])]
    segment_map = pack(texts, [[[0], [1]]], 7, 4).segment_map
    assert [part.tolist() for part in segment_map] == [
        [[0, 1, 2, 3, 0, 1, 0]],
        [[0, 0, 0, 0, 1, 1, -1]],
        [[0, 0, 0, 0, 1, 1, -1]],
        [[1, 2, 4, 0]],
        [[9, 6, 4, 0]],
    ]
    joined = segment_map.concatenated()
    assert joined.dtype == np.int32 and joined.shape == (1, 3 * 7 + 2 * 4)
    assert joined[0, 21:].tolist() == [1, 2, 4, 0, 9, 6, 4, 0]
    with pytest.raises(AssertionError, match="int64"):
        segment_map._replace(targets_BK=segment_map.targets_BK.astype(np.int64)).concatenated()
