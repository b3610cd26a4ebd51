"""Regions: boxes of elements of a tensor, as one slice a dim; those of a scalar have none. They index a NumPy array.

All slices have a start, a stop that is no smaller, and step 1, counted in the full tensor unless said otherwise.
"""

from collections.abc import Iterable, Sequence

Region = tuple[slice, ...]
Bounds = tuple[tuple[int, int], ...]  # a region as (start, stop) in each dim: slices cannot be keys of a dict


def whole(shape: Sequence[int]) -> Region:
    """The region that is all of a tensor."""
    return tuple(slice(0, size) for size in shape)


def shape_of(region: Region) -> tuple[int, ...]:
    """The shape of a region."""
    return tuple(part.stop - part.start for part in region)


def bounds_of(region: Region) -> Bounds:
    """A region as a key."""
    return tuple((part.start, part.stop) for part in region)


def from_bounds(bounds: Bounds) -> Region:
    """The region of a key."""
    return tuple(slice(start, stop) for start, stop in bounds)


def overlap(one: Region, other: Region) -> Region | None:
    """The elements that are in both regions; None where there are none."""
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    return both if all(part.start < part.stop for part in both) else None


def within(region: Region, outer: Region) -> Region:
    """A region counted from the start of another that holds it: where its elements are in an array of `outer`."""
    return tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(region, outer, strict=True))


def hull(regions: Iterable[Region]) -> Region:
    """The smallest region that holds all of some, of which there is at least one."""
    dims = zip(*regions, strict=True)
    return tuple(slice(min(part.start for part in dim), max(part.stop for part in dim)) for dim in dims)
