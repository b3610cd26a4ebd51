"""The object that MindSpore's frontend asks for communication groups on the target "CPU": the wheel has none.

The wheel's C++ class CommManager is made here by hand: a table of ctypes callbacks in the order in which its header
declares the virtual functions. The wheel is built with the old, copy-on-write layout of std::string.
"""

import ctypes
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from r1parallel.errors import UserError

WORLD = "mccl_world_group"
# MindSpore's Python code may use the default name of another target.
_WORLD_NAMES = {WORLD, "hccl_world_group", "nccl_world_group"}
_REGISTER = "_ZN9mindspore11CommManager8RegisterERKSsRKSt10shared_ptrIS0_E"
_keep: list[Any] = []  # keeps alive what C++ has pointers to


class Groups(Protocol):
    """What the frontend asks for. Ranks are ranks in the group, those given to `create` ranks in the world."""

    def create(self, name: str, ranks: list[int]) -> bool: ...

    def rank(self, name: str) -> int: ...

    def size(self, name: str) -> int: ...


class RunningGroups:
    """Groups of a job under msrun."""

    def __init__(self) -> None:
        from mindspore._c_expression import CollectiveManager

        self._manager = CollectiveManager.get_instance()

    def create(self, name: str, ranks: list[int]) -> bool:
        return name in self._manager.get_group_map() or bool(self._manager.create_group(name, ranks))

    def rank(self, name: str) -> int:
        return self._manager.get_rank_id(name)

    def size(self, name: str) -> int:
        return self._manager.get_group_size(name)


class SimulatedGroups:
    """Groups of a compile-only process, which acts as one rank of a job that does not run."""

    def __init__(self, rank: int, world: int) -> None:
        self.ranks: dict[str, list[int]] = {}
        self.become(rank, world)

    def become(self, rank: int, world: int) -> None:
        """Act as another rank from now on."""
        self._rank = rank
        self.ranks[WORLD] = list(range(world))

    def create(self, name: str, ranks: list[int]) -> bool:
        self.ranks[name] = ranks
        return True

    def rank(self, name: str) -> int:
        return self._members(name).index(self._rank)

    def size(self, name: str) -> int:
        return len(self._members(name))

    def _members(self, name: str) -> list[int]:
        return self.ranks[WORLD if name in _WORLD_NAMES else name]


def answer_python(groups: SimulatedGroups) -> None:
    """Give MindSpore's Python operators the ranks and sizes of the simulated groups."""
    from mindspore.communication import management

    management._get_size_helper = lambda group: groups.size(group)
    management._get_rank_helper = lambda group: groups.rank(group)
    management._create_group_helper = lambda group, ranks, options=None: groups.create(group, ranks)


def register_comm_manager(groups: Groups, library_folder: Path) -> None:
    """Make `groups` the communication manager of the target "CPU".

    Raises:
        UserError: the wheel has no such class, or one for the CPU already.
    """
    library = ctypes.CDLL(str(library_folder / "libmindspore_common.so"))
    try:
        register = library[_REGISTER]
    except AttributeError:
        raise UserError(f"{library._name} has no CommManager::Register: this wheel was never tested") from None
    register.restype = ctypes.c_bool
    name = ctypes.c_void_p(_cow_string("CPU"))
    # A shared_ptr without a control block: nothing is counted and nothing is freed.
    pointer = (ctypes.c_void_p * 2)(_comm_manager(groups), None)
    _keep.extend([name, pointer])
    if not register(ctypes.byref(name), ctypes.byref(pointer)):
        raise UserError("mindspore has a communication manager for the CPU already: enable the backend once only")


def _comm_manager(groups: Groups) -> int:
    """Make a CommManager, return its address: pointer to the virtual table, then the one member, the library's name."""
    callbacks = _callbacks(groups)
    addresses = [ctypes.cast(callback, ctypes.c_void_p).value for callback in callbacks]
    # A virtual table starts with the offset to the whole object and the type information.
    table = (ctypes.c_void_p * (2 + len(addresses)))(0, 0, *addresses)
    first = ctypes.addressof(table) + 2 * ctypes.sizeof(ctypes.c_void_p)
    manager = (ctypes.c_void_p * 2)(first, _cow_string("mccl"))
    _keep.extend([callbacks, table, manager])
    return ctypes.addressof(manager)


def _callbacks(groups: Groups) -> Sequence[Any]:
    """Two destructors, CreateGroupSync, DestroyGroup, GetRankID, GetRankSize, GetRank."""
    pointer, boolean, number = ctypes.c_void_p, ctypes.c_bool, ctypes.c_uint32

    def create(_: int, name: int, ranks: int) -> bool:
        return groups.create(_read_string(name), _read_vector(ranks))

    def write_rank(_: int, name: int, result: int) -> bool:
        number.from_address(result).value = groups.rank(_read_string(name))
        return True

    def write_size(_: int, name: int, result: int) -> bool:
        number.from_address(result).value = groups.size(_read_string(name))
        return True

    function = ctypes.CFUNCTYPE
    return [
        function(None, pointer)(lambda _: None),
        function(None, pointer)(lambda _: None),
        function(boolean, pointer, pointer, pointer)(_false_on_error(create)),
        # Groups live as long as the process.
        function(boolean, pointer, pointer)(lambda _, name: True),
        function(boolean, pointer, pointer, pointer)(_false_on_error(write_rank)),
        function(boolean, pointer, pointer, pointer)(_false_on_error(write_size)),
        function(number, pointer)(lambda _: groups.rank(WORLD)),
    ]


def _false_on_error(callback: Callable[..., bool]) -> Callable[..., bool]:
    """Print exceptions and return False: they cannot pass through C++, and ctypes would return garbage."""

    def answer(*arguments: int) -> bool:
        try:
            return callback(*arguments)
        except Exception:
            traceback.print_exc()
            return False

    return answer


def _cow_string(text: str) -> int:
    """Make a std::string. Its value is the address of its characters, after length, capacity and refcount."""
    raw = text.encode()
    many = 1 << 20  # references, so that C++ neither writes to it nor frees it
    header = len(raw).to_bytes(8, "little") * 2 + many.to_bytes(8, "little")
    buffer = ctypes.create_string_buffer(header + raw)
    _keep.append(buffer)
    return ctypes.addressof(buffer) + len(header)


def _read_string(address: int) -> str:
    """The std::string at an address."""
    return ctypes.string_at(ctypes.c_void_p.from_address(address).value or 0).decode()


def _read_vector(address: int) -> list[int]:
    """The std::vector<unsigned int> at an address: pointers to its begin and its end come first."""
    begin, end, _ = (ctypes.c_void_p * 3).from_address(address)
    if not begin or not end:
        return []
    return list((ctypes.c_uint32 * ((end - begin) // ctypes.sizeof(ctypes.c_uint32))).from_address(begin))
