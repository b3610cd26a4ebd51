"""What passes through one block of the model, and where ranks must talk to each other: read out of the layout table."""

from dataclasses import dataclass

from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.operators import DP, OPERATORS, ROWS, TP
from r1parallel.parallel.layout.table import split_dim

Split = tuple[str | None, ...]  # the mesh axis that splits the rows, and the one that splits the columns
HALVES = ("attention", "feed forward")


@dataclass(frozen=True)
class Step:
    """Operators that ranks run on their own: how the activations lie that they take, and those that they give.

    With `partial`, every tp rank gives a part of the sum.
    """

    words: str
    takes: Split
    gives: Split
    columns: str
    partial: bool = False


def block_steps(half: str) -> list[Step]:
    """The steps of one of `HALVES`, in their order."""
    between: Split = OPERATORS["RMSNorm"]["normalize"][0]
    if half == "attention":
        heads: Split = OPERATORS["SoftmaxCore"]["scores"][0][:2]  # [B, heads, …]: a row's batch and its heads
        return [
            Step("attention_norm", between, between, "hidden"),
            _projection("wq, wk, wv", "attention.wq.weight", "heads"),
            Step("scores, softmax, weighted sum", heads, heads, "heads"),
            _projection("wo", "attention.wo.weight", "hidden"),
            _same("+ x", OPERATORS["Block"]["add_attention"][0], "hidden"),
        ]
    return [
        Step("ffn_norm", between, between, "hidden"),
        _projection("w1, w3", "feed_forward.w1.weight", "inner"),
        _same("silu(w1 x) · w3 x", OPERATORS["FeedForward"]["gate"][0], "inner"),
        _projection("w2", "feed_forward.w2.weight", "hidden"),
        _same("+ x", OPERATORS["Block"]["add_feed_forward"][0], "hidden"),
    ]


def num_parts(split: Split, mesh: Mesh, sequence_parallel: bool) -> tuple[int, ...]:
    """How many parts the rows and the columns are cut into."""
    return tuple(_size(axis, mesh, sequence_parallel) for axis in split)


def part_of(split: Split, mesh: Mesh, sequence_parallel: bool, rank: int) -> tuple[int, ...]:
    """Which part of the rows and of the columns a rank holds."""
    dp, _, tp = mesh.coordinates(rank)
    place = {DP: dp, TP: tp, ROWS: dp * mesh.tp + tp if sequence_parallel else dp, None: 0}
    return tuple(place[axis] for axis in split)


def collective(before: Step, after: Step, mesh: Mesh, sequence_parallel: bool) -> str | None:
    """What the tp ranks do between two steps of a forward pass, or None."""
    given = num_parts(before.gives, mesh, sequence_parallel)
    taken = num_parts(after.takes, mesh, sequence_parallel)
    if before.partial and mesh.tp > 1:
        return "AllReduce" if taken == given else "ReduceScatter"
    return None if taken == given else "AllGather"


def _size(axis: str | None, mesh: Mesh, sequence_parallel: bool) -> int:
    sizes = {DP: mesh.dp, TP: mesh.tp, ROWS: mesh.dp * mesh.tp if sequence_parallel else mesh.dp, None: 1}
    return sizes[axis]


def _same(words: str, split: Split, columns: str) -> Step:
    return Step(words, split, split, columns)


def _projection(words: str, weight: str, columns: str) -> Step:
    """A product with a weight [out, in]: what splits its outputs or inputs follows from the weight."""
    if split_dim(weight) == 0:
        return Step(f"{words}: column parallel", (DP, None), (DP, TP), columns)
    return Step(f"{words}: row parallel", (DP, TP), (DP, None), columns, partial=True)
