import _ctypes
import ctypes
import shutil

import pytest

from r1parallel.cpu_backend import comm_manager
from r1parallel.cpu_backend.comm_manager import WORLD, SimulatedGroups, register_comm_manager
from r1parallel.errors import UserError

P, B, U = ctypes.c_void_p, ctypes.c_bool, ctypes.c_uint32


@pytest.fixture
def groups():
    return SimulatedGroups(rank=3, world=4)


@pytest.fixture
def call(groups):
    """Calls function number n of the object's table, as C++ does."""
    manager = comm_manager._comm_manager(groups)
    table = P.from_address(manager).value

    def function(number, result, *arguments):
        address = P.from_address(table + number * ctypes.sizeof(P)).value
        return ctypes.CFUNCTYPE(result, P, *[P] * len(arguments))(address)(manager, *arguments)

    return function


def string(text):
    """Address of a std::string."""
    holder = P(comm_manager._cow_string(text))
    comm_manager._keep.append(holder)
    return ctypes.addressof(holder)


def vector(numbers):
    """A std::vector<unsigned>, and what keeps it alive."""
    data = (U * len(numbers))(*numbers)
    end = ctypes.addressof(data) + ctypes.sizeof(data)
    return (P * 3)(ctypes.addressof(data), end, end), data


def test_groups_are_created_and_asked_for_through_the_table(call, groups):
    ranks, _data = vector([1, 3])
    number = U(99)
    assert call(2, B, string("pair"), ctypes.addressof(ranks))
    assert groups.ranks["pair"] == [1, 3]
    assert call(4, B, string("pair"), ctypes.addressof(number))
    assert number.value == 1
    assert call(5, B, string("pair"), ctypes.addressof(number))
    assert number.value == 2
    assert call(6, U) == 3
    assert call(3, B, string("pair"))


def test_destructors_do_nothing(call, groups):
    call(0, None)
    call(1, None)
    assert groups.ranks == {WORLD: [0, 1, 2, 3]}


@pytest.mark.parametrize("number", [4, 5])
def test_an_unknown_group_is_a_failure_for_the_caller(call, capsys, number):
    assert not call(number, B, string("nobody"), ctypes.addressof(U()))
    assert "KeyError: 'nobody'" in capsys.readouterr().err


def test_an_empty_vector_is_an_empty_list():
    assert comm_manager._read_vector(ctypes.addressof((P * 3)())) == []


def test_strings_go_through_unchanged():
    assert comm_manager._read_string(string("2-ä" * 50)) == "2-ä" * 50
    assert comm_manager._read_string(string("")) == ""


@pytest.mark.parametrize("name", [WORLD, "hccl_world_group", "nccl_world_group"])
def test_the_world_goes_by_the_names_of_all_targets(groups, name):
    assert (groups.size(name), groups.rank(name)) == (4, 3)


def test_a_rank_outside_a_group_is_an_error(groups):
    groups.create("others", [0, 1])
    with pytest.raises(ValueError, match="not in list"):
        groups.rank("others")


def test_a_library_without_the_class_is_refused(groups, tmp_path):
    shutil.copy(_ctypes.__file__, tmp_path / "libmindspore_common.so")
    with pytest.raises(UserError, match="has no CommManager::Register"):
        register_comm_manager(groups, tmp_path)
