"""What one rank holds of a model or of its optimizer's state, and which part of which tensor that is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from r1parallel.checkpoint.formats.dtypes import dtype_name
from r1parallel.checkpoint.writing.tensor_writer import Tensor
from r1parallel.parallel.layout.regions import Region
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts


@dataclass(frozen=True)
class Shards:
    """One rank's slices of a group of tensors.

    Attributes:
        layout: of the parameters. It may be for fewer ranks than the job has; the others then hold copies.
        values: name → slice. A name is a parameter's, or a parameter's behind a prefix (`adam_m.<parameter>`), which
            is cut as the parameter is. Every rank has the same prefixes.
    """

    layout: ModelLayout
    values: Mapping[str, np.ndarray]

    def entries(self, rank: int) -> list[Tensor]:
        """The slices as a rank's file takes them.

        Raises:
            ValueError: a tensor is missing, extra, or has another shape than the layout gives this rank.
        """
        expected = set(self.full_layout().stages[rank // self.layout.stage_size])
        if set(self.values) != expected:
            raise ValueError(f"rank {rank}: tensors {sorted(set(self.values) ^ expected)[:3]} are missing or extra")
        for name, value in self.values.items():
            wanted = self.layout.local_shape(parameter_of(name, self.layout), rank)
            if value.shape != wanted:
                raise ValueError(f"rank {rank}: {name} has shape {value.shape}, its layout says {wanted}")
        return [(name, value.shape, dtype_name(value.dtype), value) for name, value in self.values.items()]

    def full_layout(self) -> StageLayouts:
        """The layout of all these tensors, under their own names, on all stages."""
        names = {name: parameter_of(name, self.layout) for name in self.values}
        prefixes = list(dict.fromkeys(name.removesuffix(parameter) for name, parameter in names.items()))
        tables = tuple({p + name: layout for p in prefixes for name, layout in t.items()} for t in self.layout.stages)
        return StageLayouts(self.layout.stage_size, tables)


def parameter_of(name: str, layout: ModelLayout) -> str:
    """The parameter that a tensor belongs to: itself, or the one behind the prefix of optimizer state.

    Raises:
        ValueError: the model has no such parameter.
    """
    parts = name.split(".")
    for start in range(len(parts)):
        if (parameter := ".".join(parts[start:])) in layout.parameters:
            return parameter
    raise ValueError(f"{name}: belongs to no parameter of the model")


def region_of(name: str, layout: ModelLayout, rank: int) -> Region | None:
    """The part of a tensor, optimizer state included, that a rank of the job holds; None where it holds none."""
    return layout.slices(parameter_of(name, layout), rank % layout.world_size)
