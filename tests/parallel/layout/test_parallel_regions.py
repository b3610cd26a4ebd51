"""Arithmetic of regions, against what NumPy's indexing gives."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from r1parallel.parallel.layout.regions import bounds_of, from_bounds, hull, overlap, shape_of, whole, within

SHAPES = st.lists(st.integers(1, 6), max_size=3).map(tuple)


def numbered(shape):
    """Every element has another value."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape)


@st.composite
def shape_and_regions(draw, count, empty=False):
    """A shape and regions in it, of at least one element unless `empty`."""
    shape = draw(SHAPES)
    regions = []
    for _ in range(count):
        starts = [draw(st.integers(0, size - 1)) for size in shape]
        ends = [draw(st.integers(a + (not empty), size)) for a, size in zip(starts, shape, strict=True)]
        regions.append(tuple(slice(a, b) for a, b in zip(starts, ends, strict=True)))
    return shape, regions


@given(SHAPES)
def test_whole_is_the_array(shape):
    assert shape_of(whole(shape)) == shape
    np.testing.assert_array_equal(numbered(shape)[whole(shape)], numbered(shape))


@given(shape_and_regions(1, empty=True))
def test_shape_and_key(case):
    shape, (region,) = case
    assert shape_of(region) == numbered(shape)[region].shape
    assert from_bounds(bounds_of(region)) == region
    assert {bounds_of(region): 1}[bounds_of(from_bounds(bounds_of(region)))] == 1


@given(shape_and_regions(2, empty=True))
def test_overlap_has_the_elements_of_both(case):
    shape, (one, other) = case
    array = numbered(shape)
    shared = np.intersect1d(array[one], array[other])
    both = overlap(one, other)
    assert both == overlap(other, one)
    if both is None:
        assert not shared.size
    else:
        np.testing.assert_array_equal(np.ravel(array[both]), shared)


@given(shape_and_regions(2))
def test_within_finds_the_same_elements_in_the_outer_slice(case):
    shape, (one, outer) = case
    array = numbered(shape)
    both = overlap(one, outer)
    if both is not None:
        np.testing.assert_array_equal(array[outer][within(both, outer)], array[both])
        np.testing.assert_array_equal(array[one][within(both, one)], array[both])
    assert within(outer, whole(shape)) == outer


@given(shape_and_regions(3))
def test_hull_is_the_smallest_that_holds_all(case):
    shape, regions = case
    around = hull(regions)
    indices = [np.argwhere(np.isin(numbered(shape), numbered(shape)[region])) for region in regions]
    found = np.concatenate(indices)
    assert around == tuple(slice(low, high + 1) for low, high in zip(found.min(axis=0), found.max(axis=0), strict=True))
    assert all(overlap(region, around) == region for region in regions)
