"""How every operator of the model is split: the operator half of the layout table.

An entry names the mesh axis that splits each dimension of each input: DP, TP or ROWS, or None for a whole dimension.
ROWS are the activations between the blocks: split over dp, and with sequence parallelism over tp too. Which way round
a projection is split is not said here but follows from its weight in `layout.py`.
Shape letters as in `models/`: T = B·S rows.
"""

from mindspore import nn

from r1parallel.parallel.layout.table import split_dim

DP, TP, ROWS = "dp", "tp", "rows"
Strategy = tuple[tuple[str | None, ...], ...]

_ROWS: Strategy = ((ROWS, None),)  # [T, H]: whole rows
REPLICATED: Strategy = ((None, None),)
_REPLICATED_3: Strategy = ((None, None, None),)
_WHOLE: Strategy = ((DP, None),)  # [T, V] and [B, V] of an unsplit vocabulary
_INNER: Strategy = ((DP, TP),)  # [T, columns of a column-parallel projection]
_HEADS: Strategy = ((DP, TP, None, None),)  # [B, heads, S, D] and [B, heads, G·S, K]
_PER_ROW: Strategy = ((DP,),)
_SCALAR: Strategy = ((),)

# Operators that only rename dimensions get no strategy: the compiler follows their input. Nor do those that stand where
# nothing is split; see `parallelize`.
UNSPLIT = ("Reshape", "Cast", "BlockForward", "BlockBackward", "MultiTensorAdd")

_ALL_HEADS: Strategy = ((DP, None, None, None),)  # [B, 1, S, D] and [B, 1, S, K]
_BEHIND: Strategy = ((DP, None, TP, None),)  # [B, S, heads, D]
_BEHIND_ALL: Strategy = ((DP, None, None, None),)  # [B, S, 1, D]

_ATTENTION: dict[str, Strategy] = {
    "to_heads": _BEHIND,
    "from_heads": _HEADS,
}
_ANGLES: dict[str, Strategy] = {
    "angle": ((DP, None, None, None), (None, None, None, None)),
    "cos": _ALL_HEADS,
    "sin": _ALL_HEADS,
}
_MASK: Strategy = ((DP, None, None),)  # [B, S, K]
# Cell → operator's attribute → strategy
OPERATORS: dict[str, dict[str, Strategy]] = {
    "Embedding": {"gather": ((TP, None), (DP,))},
    "RMSNorm": {
        "square": _ROWS,
        "mean": _ROWS,
        "add": _ROWS + _SCALAR,
        "rsqrt": _ROWS,
        "expand": ((None,),),
        "tile_inverse": _ROWS,
        "tile_weight": _ROWS,
        "normalize": _ROWS * 2,
        "scale": _ROWS * 2,
    },
    "FeedForward": {"silu": _INNER, "gate": _INNER * 2},
    "Rotate": {"split": _HEADS, "mul": _HEADS * 2, "sub": _HEADS * 2, "add": _HEADS * 2, "join": _HEADS * 2},
    "FusedRotate": {"rotate": _BEHIND + _BEHIND_ALL * 2},
    "WideRotate": {
        "split": _BEHIND,
        "mul": _BEHIND + _BEHIND_ALL,
        "add": _BEHIND * 2,
        "negate": _BEHIND,
        "join": _BEHIND * 2,
    },
    "SoftmaxCore": {
        "scale": _HEADS + _SCALAR,
        "scores": _HEADS * 2,
        "add_mask": _HEADS * 2,
        "softmax": _HEADS,
        "weighted_sum": _HEADS * 2,
    },
    "FlashCore": {"flash": _BEHIND * 3 + _ALL_HEADS},
    "FusedRMSNorm": {"norm": (*_ROWS, (None,))},
    "Attention": _ATTENTION,
    # What writes to the cache is laid out in generation/programs.py.
    "KVCache": {"part": _WHOLE},
    "Block": {"add_attention": _ROWS * 2, "add_feed_forward": _ROWS * 2},
    "PaddedRows": {
        "sub": ((None, None), (DP, None)),
        "clip": ((DP, None), ()),
        "after": _REPLICATED_3 + _MASK,
        "before": _REPLICATED_3 * 2,
        "same": _REPLICATED_3 * 2,
        "both": _MASK + _REPLICATED_3,
        "either": _MASK + _REPLICATED_3,
    },
    "TokenRows": {"until": _REPLICATED_3 + _MASK},
    "ChunkRows": {"add": _WHOLE + REPLICATED, "until": _REPLICATED_3 + _MASK},
    "PackedRows": {
        "part": _WHOLE,
        "tile_keys": _MASK,
        "tile_queries": _MASK,
        "tile_causal": _MASK,
        "own": _MASK * 2,
        "of_parent": _MASK * 2,
        "before": _REPLICATED_3 * 2,
        "either": _MASK * 2,
        "both": _MASK * 2,
    },
    "Geometry": _ANGLES
    | {
        "seen": ((), (DP, None, None)),
        "hide": ((DP, None, None), ()),
        "tile_heads": _HEADS,
        "tile_mask": _HEADS,
    },
    "FlashGeometry": _ANGLES
    | {
        "join": _ALL_HEADS * 2,
        "invert": _MASK,
    },
    # What they join has an entry of its own in `strategies`.
    "CompletionLogps": {
        "divide": _INNER + _SCALAR,
        "slice_hidden": ((DP, None, None),),
        "slice_tokens": ((DP, None),),
    },
    "PackedLogps": {
        "divide": _INNER + _SCALAR,
        "part": _WHOLE,
        "one_hot": _WHOLE + _SCALAR * 2,
        "take": ((DP, None, None), (DP, None, None)),
    },
    "TokenLogps": {
        "log_softmax": _WHOLE,
        "pick": _WHOLE * 2,
        "exp": _WHOLE,
        "mul": _WHOLE * 2,
        "expected": _WHOLE,
        "negate": _PER_ROW,
    },
    "SplitVocabularyLogps": {
        "max": _INNER,
        "tile": _INNER,
        "shift": _INNER * 2,
        "exp": _INNER,
        "total": _INNER,
        "minus_one": _PER_ROW + _SCALAR,
        "log1p": _PER_ROW,
        "one_hot": _INNER + _SCALAR * 2,
        "pick": _INNER * 2,
        "picked": _INNER,
        "subtract": _PER_ROW * 2,
        "mul": _INNER * 2,
        "weighted": _INNER,
        "mean": _PER_ROW * 2,
        "less": _PER_ROW * 2,
    },
    # Losses work on [R, K] tensors, small enough to have them whole on every rank.
    "SFTLoss": {"mul": REPLICATED * 2, "negate": REPLICATED},
    "PolicyLoss": {
        "split_inputs": REPLICATED,
        "split_logps": REPLICATED,
        "zero": REPLICATED + _SCALAR,
        "counts": REPLICATED + _SCALAR,
        "select": REPLICATED * 3,
        "old_difference": REPLICATED * 2,
        "ratio": REPLICATED,
        "clip_low": REPLICATED + _SCALAR,
        "clip_high": REPLICATED + _SCALAR,
        "gain": REPLICATED * 2,
        "smaller": REPLICATED * 2,
        "negate": REPLICATED,
        "dual": REPLICATED + _SCALAR,
        "negative": REPLICATED + _SCALAR,
        "larger": REPLICATED * 2,
        "less": REPLICATED * 2,
        "differs": REPLICATED * 2,
        "weigh": REPLICATED * 2,
        "add": REPLICATED * 2,
        "reward_entropy": REPLICATED + _SCALAR,
        "join": REPLICATED * 6,
    },
    "SequenceRatio": {
        "same": _REPLICATED_3 * 2,
        "share": REPLICATED * 2,
        "mean": _REPLICATED_3 * 2,
        "tile_rows": _REPLICATED_3,
        "tile_columns": _REPLICATED_3,
    },
    "KL": {
        "difference": REPLICATED * 2,
        "clamp_low": REPLICATED + _SCALAR,
        "clamp_high": REPLICATED + _SCALAR,
        "square": REPLICATED,
        "half": REPLICATED + _SCALAR,
        "abs": REPLICATED,
        "negate": REPLICATED,
        "exp": REPLICATED,
        "plus": REPLICATED * 2,
        "minus_one": REPLICATED + _SCALAR,
        "rest": REPLICATED * 2,
        "through": REPLICATED * 2,
        "times_ratio": REPLICATED * 2,
    },
    "Placed": {"place": REPLICATED * 2},
    # A token is drawn from the whole vocabulary, by every tp rank alike.
    "FillCache": {"done": ((None,), ())},
    "NextTokens": {
        "go_on": _WHOLE + REPLICATED,
        "at_most": _WHOLE + REPLICATED,
        "later": _PER_ROW + _SCALAR,
        "uniform": _WHOLE,
    },
    "Sampler": {
        "divide": _WHOLE + _SCALAR,
        "times": _WHOLE + _SCALAR,
        "hold_back": _WHOLE * 2,
        "greater": _WHOLE + _SCALAR,
        "greater_equal": _WHOLE + _SCALAR,
        "select": _WHOLE * 3,
        "largest": _WHOLE,
        "sort": _WHOLE,
        "column": _WHOLE,
        "less": _WHOLE * 2,
        "less_equal": _WHOLE * 2,
        "fill": _WHOLE * 2 + _SCALAR,
        "softmax": _WHOLE,
        "cumulative": _WHOLE,
        "sub": _WHOLE * 2,
        "min": _WHOLE,
        "sum": _WHOLE,
        "max": _WHOLE,
        "best": _WHOLE,
        "scale": _WHOLE * 2,
        "at_most": _WHOLE * 2,
        "first_of": _WHOLE + _SCALAR,
        "place": _WHOLE + REPLICATED,
        "inside": _WHOLE * 2,
        "pick": _WHOLE * 2,
        "mean": _WHOLE,
        "part": _WHOLE * 2,
        "log": _WHOLE,
        "less_log": _WHOLE + _SCALAR,
        "add": _WHOLE * 2,
        "join": _WHOLE * 2,
    },
    "TiedHead": {"matmul": ((DP, None), (TP, None))},
}
# A projection whose weight [out, in] is split over dimension 0 (column parallel) or 1 (row parallel).
_LINEAR: dict[int | None, dict[str, Strategy]] = {
    0: {"matmul": ((DP, None), (TP, None)), "add": ((DP, TP), (TP,))},
    1: {"matmul": ((DP, TP), (None, TP))},
}


def strategies(cell: nn.Cell) -> dict[str, Strategy]:
    """Attribute → strategy of the operators that this cell itself holds; empty for a cell without an entry."""
    for kind in type(cell).__mro__:
        if kind.__name__ == "Linear":
            table = _LINEAR[split_dim(cell.weight.name)]
            if cell.transposed:  # the weight's two dimensions change places
                return table | {"matmul": (table["matmul"][0], table["matmul"][1][::-1])}
            return table
        if kind.__name__ in ("CompletionLogps", "PackedLogps", "NextTokens"):  # each joins as many parts as it says
            return OPERATORS[kind.__name__] | {"join": _WHOLE * cell.parts}
        if kind.__name__ in OPERATORS:
            return OPERATORS[kind.__name__]
    return {}


def outputs(cell: nn.Cell) -> dict[str, Strategy]:
    """Attribute → split of the result, of the operators whose partial sums sequence parallelism scatters over rows."""
    is_linear = any(kind.__name__ == "Linear" for kind in type(cell).__mro__)
    is_row_parallel = is_linear and split_dim(cell.weight.name) == 1
    return {"matmul": _ROWS} if is_row_parallel else {}
