import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh

AXES = st.integers(1, 4)


@settings(deadline=None)
@given(AXES, AXES, AXES)
def test_coordinates_and_ranks_are_inverse(dp, pp, tp):
    mesh = Mesh(dp=dp, pp=pp, tp=tp)
    assert [mesh.rank_of(*mesh.coordinates(rank)) for rank in range(mesh.world_size)] == list(range(mesh.world_size))


@settings(deadline=None)
@given(AXES, AXES, AXES)
def test_each_kind_of_group_covers_every_rank_once(dp, pp, tp):
    mesh = Mesh(dp=dp, pp=pp, tp=tp)
    for group_of in (mesh.dp_group, mesh.tp_group, mesh.pp_group):
        groups = {group_of(rank) for rank in range(mesh.world_size)}
        assert sorted(rank for group in groups for rank in group) == list(range(mesh.world_size))
        assert all(rank in group_of(rank) for rank in range(mesh.world_size))


def test_order_is_mindspores():
    mesh = Mesh(dp=2, pp=2, tp=2)
    assert mesh.coordinates(5) == (0, 1, 1)  # stage 1 is ranks 4 to 7
    assert mesh.tp_group(5) == (4, 5)
    assert mesh.dp_group(5) == (5, 7)
    assert mesh.pp_group(5) == (1, 5)
    assert mesh.stage_size == 4


def test_bad_axis_and_bad_rank_are_refused():
    with pytest.raises(UserError, match="tp is 0"):
        Mesh(tp=0)
    with pytest.raises(ValueError, match="rank 2"):
        Mesh(dp=2).coordinates(2)
    with pytest.raises(ValueError, match="outside"):
        Mesh(dp=2).rank_of(0, 1, 0)
