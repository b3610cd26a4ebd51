"""The grid of processes: which rank is which data-parallel copy, pipeline stage and tensor-parallel part."""

from dataclasses import dataclass, fields

from r1parallel.errors import UserError


@dataclass(frozen=True)
class Mesh:
    """A grid of dp × pp × tp processes, numbered as MindSpore numbers them.

    The pipeline stage is the slowest axis (stage = rank // (world_size / pp)), tp is the fastest.

    Raises:
        UserError: an axis is smaller than 1.
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        for axis in fields(self):
            if getattr(self, axis.name) < 1:
                raise UserError(f"mesh: {axis.name} is {getattr(self, axis.name)}; it must be at least 1")

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.dp * self.pp * self.tp

    @property
    def stage_size(self) -> int:
        """Number of processes in one pipeline stage."""
        return self.dp * self.tp

    def coordinates(self, rank: int) -> tuple[int, int, int]:
        """Return (dp, pp, tp) of a rank.

        Raises:
            ValueError: the rank is not in [0, world_size).
        """
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is not in [0, {self.world_size})")
        stage, inside = divmod(rank, self.stage_size)
        dp, tp = divmod(inside, self.tp)
        return dp, stage, tp

    def rank_of(self, dp: int, pp: int, tp: int) -> int:
        """Return the rank at (dp, pp, tp).

        Raises:
            ValueError: a coordinate lies outside the grid.
        """
        if not (0 <= dp < self.dp and 0 <= pp < self.pp and 0 <= tp < self.tp):
            raise ValueError(f"(dp {dp}, pp {pp}, tp {tp}) lies outside {self}")
        return (pp * self.dp + dp) * self.tp + tp

    def dp_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that hold the same weights as `rank` and see other rows of the batch, itself included."""
        _, pp, tp = self.coordinates(rank)
        return tuple(self.rank_of(dp, pp, tp) for dp in range(self.dp))

    def tp_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that share every matrix product with `rank`, itself included."""
        dp, pp, _ = self.coordinates(rank)
        return tuple(self.rank_of(dp, pp, tp) for tp in range(self.tp))

    def pp_group(self, rank: int) -> tuple[int, ...]:
        """Ranks that hold the other layers for `rank`, in order of stages, itself included."""
        dp, _, tp = self.coordinates(rank)
        return tuple(self.rank_of(dp, pp, tp) for pp in range(self.pp))
