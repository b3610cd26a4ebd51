"""New weights for a model under another layout, in memory: from the actor to the generator or to the reference.

The plan is made once, out of the two layouts: who sends which region of which tensor to whom. A transport carries it
out; both sides follow the plan's order, which is the same on every rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

import numpy as np

from r1parallel.parallel.layout.regions import Bounds, Region, bounds_of, overlap, shape_of, within
from r1parallel.parallel.layout.table import ModelLayout

ROUND_ELEMENTS = 64 * 2**20  # how much one rank sends in one round; 256 MiB of fp32
Pair = tuple[int, int]  # (sender, receiver), ranks of the job


@dataclass(frozen=True)
class Piece:
    """A region of a full tensor that `sender` holds and `receiver` needs; they may be the same rank."""

    name: str
    sender: int
    receiver: int
    region: Region

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(shape_of(self.region))


@dataclass(frozen=True)
class ReshardPlan:
    """Pieces in rounds. Each rank's need of each tensor is covered, every element by exactly one piece.

    Attributes:
        source: layout of the model that gives its values.
        target: layout of the model that takes them.
        names: the tensors, sorted.
        world_size: ranks of the job. A layout may be for fewer; rank r then holds what rank r % layout.world_size does.
        rounds: pieces in the order of names, then receivers; no rank sends much more than ROUND_ELEMENTS in a round.
    """

    source: ModelLayout
    target: ModelLayout
    names: tuple[str, ...]
    world_size: int
    rounds: tuple[tuple[Piece, ...], ...]


class Transport(Protocol):
    """Carries one round: arrays from every rank to every other."""

    def exchange(self, counts: Mapping[Pair, int], outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Send and receive; every rank calls this, with the same `counts`.

        Args:
            counts: (sender, receiver) → number of elements, for every pair that exchanges anything, in order.
            outgoing: receiver → fp32 [count].

        Returns:
            sender → fp32 [count].
        """


def reshard_plan(
    source: ModelLayout, target: ModelLayout, world_size: int, names: Sequence[str] | None = None
) -> ReshardPlan:
    """Who sends what to whom, of the tensors `names` or, without them, of all.

    A rank takes what it holds itself; the rest comes from the holders who have the least to send so far. Equal
    arguments give equal plans on every rank.

    Raises:
        ValueError: the layouts are of different models, or for more ranks than the job has.
    """
    if source.config != target.config:
        raise ValueError("the two layouts are of different models")
    if max(source.world_size, target.world_size) > world_size:
        raise ValueError(f"layouts for {source.world_size} and {target.world_size} ranks; the job has {world_size}")
    load = [0] * world_size
    chosen = tuple(sorted(source.parameters if names is None else names))
    by_name = [_pieces_of(name, source, target, world_size, load) for name in chosen]
    return ReshardPlan(source, target, chosen, world_size, tuple(_rounds(by_name, world_size)))


def reshard(
    plan: ReshardPlan, rank: int, values: Mapping[str, np.ndarray], transport: Transport
) -> dict[str, np.ndarray]:
    """Carry out a plan; every rank of the job calls this.

    Args:
        plan: the same on every rank.
        rank: this process's in the job.
        values: name → fp32 slice that this rank holds under the source layout, [out, in].
        transport: see `transport.py`.

    Returns:
        name → fp32 slice that this rank needs under the target layout, in arrays of their own.
    """
    holds = {name: _region(plan.source, name, rank) for name in plan.names}
    needs = {name: _region(plan.target, name, rank) for name in plan.names}
    result = {name: np.empty(shape_of(region), np.float32) for name, region in needs.items() if region is not None}

    def held(piece: Piece) -> np.ndarray:
        return values[piece.name][_inside(piece, holds)]

    for pieces in plan.rounds:
        outgoing = {
            receiver: np.concatenate([held(piece).reshape(-1) for piece in own])
            for receiver, own in _grouped(pieces, rank).items()
        }
        counts = exchanged(pieces)
        incoming = transport.exchange(counts, outgoing) if counts else {}
        filled = dict.fromkeys(incoming, 0)
        for piece in pieces:
            if piece.receiver != rank:
                continue
            place = result[piece.name][_inside(piece, needs)]
            if piece.sender == rank:
                place[...] = held(piece)
            else:
                begin = filled[piece.sender]
                place[...] = incoming[piece.sender][begin : begin + piece.size].reshape(place.shape)
                filled[piece.sender] = begin + piece.size
    return result


def exchanged(pieces: Sequence[Piece]) -> dict[Pair, int]:
    """(sender, receiver) → number of elements that pass between two ranks, in order of pairs."""
    counts: dict[Pair, int] = {}
    for piece in pieces:
        if piece.sender != piece.receiver:
            pair = (piece.sender, piece.receiver)
            counts[pair] = counts.get(pair, 0) + piece.size
    return dict(sorted(counts.items()))


def distinct_regions(layout: ModelLayout, name: str) -> list[tuple[int, Region]]:
    """The parts that a tensor is cut into, each with the lowest rank that holds it."""
    found: dict[Bounds, tuple[int, Region]] = {}
    for rank in range(layout.world_size):
        region = layout.slices(name, rank)
        if region is not None:
            found.setdefault(bounds_of(region), (rank, region))
    return list(found.values())


def _holders(layout: ModelLayout, name: str, world_size: int) -> list[tuple[Region, list[int]]]:
    """Each part that a tensor is cut into, and the ranks of the job that hold it."""
    parts = distinct_regions(layout, name)
    regions = [layout.slices(name, rank % layout.world_size) for rank in range(world_size)]
    return [(part, [rank for rank in range(world_size) if regions[rank] == part]) for _, part in parts]


def _pieces_of(name: str, source: ModelLayout, target: ModelLayout, world_size: int, load: list[int]) -> list[Piece]:
    """All pieces of one tensor; `load`, what each rank sends so far, is added to."""
    needs, holders = _holders(target, name, world_size), _holders(source, name, world_size)
    by_receiver: dict[int, list[tuple[Region, list[int]]]] = {}
    for need, receivers in needs:
        parts = [(both, ranks) for part, ranks in holders if (both := overlap(part, need)) is not None]
        by_receiver |= dict.fromkeys(receivers, parts)
    pieces = []
    for receiver, parts in sorted(by_receiver.items()):
        for region, ranks in parts:
            sender = receiver if receiver in ranks else min(ranks, key=lambda rank: (load[rank], rank))
            pieces.append(Piece(name, sender, receiver, region))
            if sender != receiver:
                load[sender] += pieces[-1].size
    return pieces


def _rounds(by_name: list[list[Piece]], world_size: int) -> Iterator[tuple[Piece, ...]]:
    """Whole tensors together as long as nobody sends more than ROUND_ELEMENTS."""
    together: list[Piece] = []
    sent = [0] * world_size
    for pieces in by_name:
        more = [0] * world_size
        for piece in pieces:
            if piece.sender != piece.receiver:
                more[piece.sender] += piece.size
        if together and any(a + b > ROUND_ELEMENTS for a, b in zip(sent, more, strict=True)):
            yield tuple(together)
            together, sent = [], [0] * world_size
        together += pieces
        sent = [a + b for a, b in zip(sent, more, strict=True)]
    yield tuple(together)


def _grouped(pieces: Sequence[Piece], rank: int) -> dict[int, list[Piece]]:
    """What a rank sends, by receiver."""
    groups: dict[int, list[Piece]] = {}
    for piece in pieces:
        if piece.sender == rank != piece.receiver:
            groups.setdefault(piece.receiver, []).append(piece)
    return groups


def _region(layout: ModelLayout, name: str, rank: int) -> Region | None:
    return layout.slices(name, rank % layout.world_size)


def _inside(piece: Piece, regions: Mapping[str, Region | None]) -> Region:
    """Where a piece lies in the slice of its tensor that a rank has."""
    region = regions[piece.name]
    assert region is not None
    return within(piece.region, region)
