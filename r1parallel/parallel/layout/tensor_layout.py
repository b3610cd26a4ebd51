"""How one tensor lies on the devices of a stage, and how all tensors of a model lie on all stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from r1parallel.parallel.layout.regions import Region


@dataclass(frozen=True)
class TensorLayout:
    """MindSpore's description of a split tensor.

    `dev_matrix` arranges the devices of one stage. `tensor_map` has one number for each dim of a tensor: the
    axis of `dev_matrix`, counted from the right, that splits it, or -1. With the optimizer parallel on
    (`opt_shard_step` > 0), dim 0 of what a device holds is split once more among the devices that hold the
    same part: among all of them where `opt_shard_size` is -1, otherwise in groups of that size.
    """

    dev_matrix: tuple[int, ...]
    tensor_map: tuple[int, ...]
    opt_shard_step: int = 0
    opt_shard_size: int = 0

    @property
    def stage_size(self) -> int:
        """Number of devices."""
        return prod(self.dev_matrix)

    @property
    def parts(self) -> tuple[int, ...]:
        """Number of pieces that each dim is cut into."""
        parts = [1 if axis < 0 else self.dev_matrix[-1 - axis] for axis in self.tensor_map]
        if self._opt_parts > 1:
            parts[0] *= self._opt_parts
        return tuple(parts)

    def slices(self, shape: Sequence[int], device: int) -> Region:
        """The part of a tensor of full `shape` that device 0 … stage_size - 1 holds.

        Raises:
            ValueError: the shape has another number of dims than the layout, or a dim cannot be cut evenly.
        """
        if len(shape) != len(self.tensor_map):
            raise ValueError(f"shape {tuple(shape)} does not fit the {len(self.tensor_map)} dims of its layout")
        result = []
        for size, parts, index in zip(shape, self.parts, self._indices(device), strict=True):
            if size % parts:
                raise ValueError(f"shape {tuple(shape)} cannot be cut into {self.parts} equal pieces")
            piece = size // parts
            result.append(slice(index * piece, (index + 1) * piece))
        return tuple(result)

    @property
    def _replica_axes(self) -> list[int]:
        """Axes of dev_matrix, from the left, that split no dim."""
        used = {len(self.dev_matrix) - 1 - axis for axis in self.tensor_map if axis >= 0}
        return [axis for axis in range(len(self.dev_matrix)) if axis not in used]

    @property
    def _opt_parts(self) -> int:
        if self.opt_shard_step == 0 or self.opt_shard_size == 0:
            return 1
        if self.opt_shard_size > 0:
            return self.opt_shard_size
        return prod(self.dev_matrix[axis] for axis in self._replica_axes)

    def _indices(self, device: int) -> list[int]:
        """Which piece of each dim a device holds."""
        coordinates: list[int] = []
        for size in reversed(self.dev_matrix):
            device, coordinate = divmod(device, size)
            coordinates.insert(0, coordinate)
        indices = [0 if axis < 0 else coordinates[-1 - axis] for axis in self.tensor_map]
        if self._opt_parts > 1:
            replica = 0
            for axis in self._replica_axes:
                replica = replica * self.dev_matrix[axis] + coordinates[axis]
            indices[0] = indices[0] * self._opt_parts + replica % self._opt_parts
        return indices


@dataclass(frozen=True)
class StageLayouts:
    """Where every tensor lies: one table of names for each pipeline stage."""

    stage_size: int
    stages: tuple[Mapping[str, TensorLayout], ...]

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.stage_size * len(self.stages)

    def tensor_layout(self, name: str, rank: int) -> TensorLayout | None:
        """The layout of a tensor on the stage of `rank`; None where that stage does not own it."""
        return self.stages[rank // self.stage_size].get(name)

    def cut(self, name: str, shape: Sequence[int], rank: int) -> Region | None:
        """The part of a tensor of full `shape` that `rank` holds; None where its stage does not own it.

        Raises:
            ValueError: the shape does not fit the layout.
        """
        layout = self.tensor_layout(name, rank)
        return None if layout is None else layout.slices(shape, rank % self.stage_size)

    def owners(self, name: str) -> Iterator[tuple[int, TensorLayout]]:
        """Every rank whose stage owns a tensor, in order, with the layout there."""
        for rank in range(self.world_size):
            layout = self.tensor_layout(name, rank)
            if layout is not None:
                yield rank, layout
