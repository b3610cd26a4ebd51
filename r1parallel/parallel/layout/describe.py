"""A layout in words: which slice of which tensor lies on a rank."""

import re
from collections.abc import Sequence
from itertools import groupby
from math import prod

from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import Region, shape_of
from r1parallel.parallel.layout.table import ModelLayout

_HEAD = ("parameter", "full shape", "slice", "local shape")
_BF16_BYTES = 2


def parse_ranks(text: str, world_size: int) -> list[int]:
    """Ranks separated by commas, each once, in the order given.

    Raises:
        UserError: something else stands there, or a rank that a run of `world_size` processes does not have.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdecimal() or int(word) >= world_size:
            raise UserError(f"--ranks has {word!r}; give numbers from 0 to {world_size - 1}, separated by commas")
    return list(dict.fromkeys(int(word) for word in words))


def first_ranks(layout: ModelLayout) -> list[int]:
    """The first rank of each pipeline stage."""
    return list(range(0, layout.world_size, layout.stage_size))


def describe_rank(layout: ModelLayout, rank: int) -> str:
    """A table of what `rank` holds, for people. Layers that are cut alike share their lines."""
    dp, stage, tp = layout.mesh.coordinates(rank)
    held = [name for name in layout.parameters if layout.slices(name, rank) is not None]
    size = sum(prod(layout.local_shape(name, rank) or ()) for name in held)
    rows = [_HEAD, *(_row(layout, names, rank) for names in _alike(held))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    place = f"data-parallel copy {dp}, pipeline stage {stage}, tensor-parallel part {tp}"
    total = f"{size:,} numbers, {size * _BF16_BYTES / 2**30:.3g} GiB in bf16"
    return "\n".join([f"rank {rank} of {layout.world_size}: {place}", *lines, total])


def _alike(names: Sequence[str]) -> list[list[str]]:
    """Names that differ by their layer alone, together; a stage's layers are all cut alike."""
    ordered = sorted(enumerate(names), key=lambda item: (_without_layer(item[1]), item[0]))
    groups = [list(group) for _, group in groupby(ordered, key=lambda item: _without_layer(item[1]))]
    return [[name for _, name in group] for group in sorted(groups, key=lambda group: group[0][0])]


def _without_layer(name: str) -> str:
    return re.sub(r"\.layers\.\d+\.", ".layers.N.", name)


def _row(layout: ModelLayout, names: Sequence[str], rank: int) -> tuple[str, str, str, str]:
    shape, slices = layout.parameters[names[0]].shape, layout.slices(names[0], rank) or ()
    return _range_of_layers(names), _by(shape), slices_text(shape, slices), _by(shape_of(slices))


def _range_of_layers(names: Sequence[str]) -> str:
    first, last = names[0], names[-1]
    if first == last:
        return first
    numbers = [name.split(".layers.")[1].split(".")[0] for name in (first, last)]
    return _without_layer(first).replace(".N.", f".{numbers[0]}-{numbers[1]}.")


def slices_text(shape: Sequence[int], slices: Region) -> str:
    """Region of a tensor of full `shape`, as NumPy writes them; `:` is a dim that is not cut."""
    whole = (held == size for held, size in zip(shape_of(slices), shape, strict=True))
    parts = (":" if uncut else f"{part.start}:{part.stop}" for part, uncut in zip(slices, whole, strict=True))
    return f"[{', '.join(parts)}]"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
