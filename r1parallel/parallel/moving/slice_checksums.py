"""Whether all ranks' slices of one model are, bit for bit, those of another, whatever plan brought them there."""

from collections.abc import Mapping
from math import prod

import numpy as np

from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.regions import Region, overlap, within
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.moving.collectives import all_gather
from r1parallel.parallel.moving.reshard import distinct_regions

_CHUNK = 2**20  # elements at a time: their numbers take twice the memory of the values


def check_resharded_slices(
    source: ModelLayout,
    target: ModelLayout,
    world: World,
    values: Mapping[str, np.ndarray],
    result: Mapping[str, np.ndarray],
) -> None:
    """Compare the target's slices with the same slices of the merged source; every rank calls this.

    Only checksums travel. A checksum adds up, over the elements, bits × a number that belongs to the element's place in
    the full tensor; so the checksum of a target slice is the sum of those of its parts, wherever they lie. One changed
    element always changes it, as the numbers are odd; other changes are missed once in 2⁶⁴ times.

    Args:
        source: layout of the model that gave its values.
        target: layout of the model that took them.
        world: which rank this is; a rank beyond a layout holds what rank `rank % layout.world_size` does.
        values: name → fp32 slice of this rank under the source layout, rounded as the target's Parameters are.
        result: name → fp32 slice of this rank under the target layout, read back from the target's Parameters.

    Raises:
        RuntimeError: on every rank, where any slice differs; with the first tensors and ranks.
    """
    wanted, own = [], []  # one number for each part of the target
    for name, param in source.parameters.items():
        own_need = target.slices(name, world.rank % target.world_size)
        for _, need in distinct_regions(target, name):
            wanted.append(_share(source, name, param.shape, need, world.rank, values))
            held = result[name] if need == own_need else None
            own.append(None if held is None else checksum(held, param.shape, need))
    shares = np.array(wanted, np.uint64)
    sums = all_gather(world, shares, "checksums of the weights to copy").sum(axis=0, dtype=np.uint64)
    differs = np.array([mine is not None and mine != int(s) for mine, s in zip(own, sums, strict=True)], np.uint8)
    wrong = all_gather(world, differs, "checksums of the copied weights")
    if wrong.any():
        names = [name for name in source.parameters for _ in distinct_regions(target, name)]
        found = [f"{names[part]} on rank {rank}" for rank, part in np.argwhere(wrong)]
        raise RuntimeError(f"resharding changed {len(found)} slices: {', '.join(found[:4])}")


def checksum(values: np.ndarray, shape: tuple[int, ...], region: Region) -> int:
    """Σ bits · place number over a region of a full tensor, modulo 2⁶⁴.

    Args:
        values: fp32, the region.
        shape: of the full tensor.
        region: where the values lie in it.
    """
    inner = max(1, prod(values.shape[1:]))
    rows = max(1, _CHUNK // inner)
    total = 0
    for first in range(0, values.shape[0], rows):
        chunk = np.ascontiguousarray(values[first : first + rows], np.float32)
        begin = region[0].start + first
        numbers = _element_numbers(shape, (slice(begin, begin + len(chunk)), *region[1:]))
        mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
        mixed = (mixed ^ (mixed >> np.uint64(29))) | np.uint64(1)
        total += int((chunk.view(np.uint32) * mixed).sum(dtype=np.uint64))
    return total % 2**64


def _element_numbers(shape: tuple[int, ...], region: Region) -> np.ndarray:
    """The number of each element of a region in the full tensor, uint64."""
    numbers = np.zeros((1,) * len(shape), np.uint64)
    for dim, part in enumerate(region):
        steps = np.arange(part.start, part.stop, dtype=np.uint64) * np.uint64(prod(shape[dim + 1 :]))
        numbers = numbers + steps.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return numbers


def _share(
    source: ModelLayout, name: str, shape: tuple[int, ...], need: Region, rank: int, values: Mapping[str, np.ndarray]
) -> int:
    """What this rank adds to the checksum of a region: the part that it is the lowest rank to hold."""
    for holder, part in distinct_regions(source, name):
        both = overlap(part, need)
        if holder == rank and both is not None:
            return checksum(values[name][within(both, part)], shape, both)
    return 0
