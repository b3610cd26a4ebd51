"""Arrays of the host between all ranks. Every rank calls the same functions in the same order.

The values travel as 32-bit integers, so that their bits arrive unchanged whatever their type is, and behind a header
that tells which call they belong to. MindSpore's world AllGather and Broadcast of integers exist on every backend.
"""

import zlib
from typing import Any

import numpy as np

from r1parallel.parallel.launch.waiting import waiting
from r1parallel.parallel.launch.world import World

_HEADER_WORDS = 2  # a checksum of the call, and one of the array's type and shape


def all_gather(world: World, array: np.ndarray, what: str) -> np.ndarray:
    """Every rank's array, bit for bit.

    Args:
        world: which rank this is, of how many.
        array: [...], the same shape and type on every rank.
        what: the same text on every rank; named when the others do not come.

    Returns:
        [size, ...] of the array's type, in the order of ranks.

    Raises:
        RuntimeError: another rank is in another call, or its array has another shape or type.
    """
    if world.size == 1:
        return array[np.newaxis].copy()
    from mindspore import Tensor, ops

    words = _pack(array, what)
    with waiting(what):
        gathered = ops.AllGather()(Tensor(words)).asnumpy()
    rows = gathered.reshape(world.size, words.size)
    for rank, row in enumerate(rows):
        _check(row, words, rank, what)
    return np.stack([_unpack(row, array) for row in rows])


def broadcast(world: World, array: np.ndarray, what: str) -> np.ndarray:
    """Rank 0's array, bit for bit.

    Args:
        world: which rank this is, of how many.
        array: [...]; on ranks other than 0 only its shape and type count.
        what: the same text on every rank; named when the others do not come.

    Raises:
        RuntimeError: rank 0 is in another call, or its array has another shape or type.
    """
    if world.size == 1:
        return array.copy()
    from mindspore import Tensor, ops

    words = _pack(array, what)
    with waiting(what):
        received: Any = ops.Broadcast(0)((Tensor(words),))[0].asnumpy()
    _check(received, words, 0, what)
    return _unpack(received, array)


def all_reduce(world: World, array: np.ndarray, what: str) -> np.ndarray:
    """The sum over ranks in float64, added in the order of ranks: the same bits on every rank and in every run.

    Args:
        world: which rank this is, of how many.
        array: [...], numbers; the same shape on every rank. For metrics and counts: every rank receives all arrays.
        what: the same text on every rank; named when the others do not come.

    Returns:
        [...] of float64.

    Raises:
        RuntimeError: another rank is in another call, or its array has another shape.
    """
    total, *others = all_gather(world, array.astype(np.float64), what)
    for other in others:
        total = total + other
    return np.asarray(total)


def barrier(world: World, what: str) -> None:
    """Wait until every rank is here."""
    all_gather(world, np.zeros(0, np.int32), what)


def _pack(array: np.ndarray, what: str) -> np.ndarray:
    """Header and bytes of an array as int32 words, the last one filled up with zeros."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    words = np.zeros(_HEADER_WORDS + -(-raw.size // 4), np.int32)
    words[:_HEADER_WORDS] = np.array(
        [zlib.crc32(what.encode()), zlib.crc32(f"{array.dtype} {array.shape}".encode())], np.uint32
    ).view(np.int32)
    words[_HEADER_WORDS:].view(np.uint8)[: raw.size] = raw
    return words


def _unpack(words: np.ndarray, like: np.ndarray) -> np.ndarray:
    raw = words[_HEADER_WORDS:].view(np.uint8)[: like.nbytes]
    return raw.view(like.dtype).reshape(like.shape).copy()


def _check(received: np.ndarray, own: np.ndarray, rank: int, what: str) -> None:
    if received[0] != own[0]:
        raise RuntimeError(f"'{what}': rank {rank} is in another call; every rank must make the same calls in order")
    if received[1] != own[1]:
        raise RuntimeError(f"'{what}': the array of rank {rank} has another shape or type than this rank's")
