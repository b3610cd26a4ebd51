"""Read and set a model's parameters: from a checkpoint, at random, or from another model in the same process.

Under a parallel layout a rank holds a slice of each parameter of its stage. MindSpore gives a Parameter the slice's
shape when it compiles the graph; a full tensor set after that is accepted and silently wrong. So slices are set after
compiling, each against its shape. Values outside are fp32; a bf16 Parameter rounds what it is given.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from r1parallel.checkpoint.load import ArraySource
from r1parallel.checkpoint.writing.shards import parameter_of, region_of
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.models.layers.layers import Linear
from r1parallel.parallel.layout.regions import Region
from r1parallel.parallel.layout.table import ModelLayout


class TensorSource(Protocol):
    """Full tensors by name, of which a region can be read: a checkpoint, however it is stored, or arrays.

    `path` names it in messages.
    """

    @property
    def path(self) -> str | Path: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str, region: Region | None = None) -> np.ndarray: ...


@contextmanager
def unallocated() -> Iterator[None]:
    """Parameters made in here get no memory: compiling gives each its slice's, and those of other stages none at all.

    MindSpore's `no_init_parameters` does the same but may not be nested.
    """
    before = getattr(ms.Parameter, "init_param", True)  # MindSpore reads it so, too: the class begins without it
    ms.Parameter.init_param = False
    try:
        yield
    finally:
        ms.Parameter.init_param = before


def model_parameters(model: nn.Cell) -> dict[str, ms.Parameter]:
    """Name → Parameter of everything that a checkpoint holds (caches are not)."""
    return {p.name: p for p in model.get_parameters() if not p.name.endswith(("key_cache", "value_cache"))}


def transposed_weights(model: nn.Cell) -> set[str]:
    """Names of the weights that this model keeps as [in, out]; a checkpoint holds [out, in]."""
    return {cell.weight.name for _, cell in model.cells_and_names() if isinstance(cell, Linear) and cell.transposed}


def same_parameters(one: nn.Cell, other: nn.Cell) -> bool:
    """Whether two models keep the same Parameters: names, shapes, types, and weights turned alike."""

    def kinds(model: nn.Cell) -> dict[str, tuple[object, ...]]:
        turned = transposed_weights(model)
        return {name: (tuple(p.shape), p.dtype, name in turned) for name, p in model_parameters(model).items()}

    return kinds(one) == kinds(other)


def share_parameters(source: nn.Cell, target: nn.Cell) -> None:
    """Make `target`, a model of the same sizes, use the Parameters of `source`: from then on their weights are one."""
    cells = dict(target.cells_and_names())
    for path, theirs in source.cells_and_names():
        for attribute, parameter in list(theirs._params.items()):  # under the name that the Cell gives it
            setattr(cells[path], attribute, parameter)


def load_parameters(model: nn.Cell, values: Mapping[str, np.ndarray], source: str) -> None:
    """Set every parameter of a model that no layout splits.

    Args:
        model: its parameters are overwritten in place.
        values: name → array; computed as fp32.
        source: where the values come from, for the message.

    Raises:
        UserError: a name is missing or extra, or a shape differs.
    """
    parameters = model_parameters(model)
    for name in sorted(set(parameters) ^ set(values)):
        raise UserError(f"{source}: {'no' if name in parameters else 'unexpected'} tensor {name}; is it of this model?")
    transposed = transposed_weights(model)
    for name, parameter in parameters.items():
        value = np.asarray(values[name])
        wanted = tuple(parameter.shape)[::-1] if name in transposed else tuple(parameter.shape)
        if value.shape != wanted:
            raise UserError(f"{source}: {name} has shape {value.shape}, the model wants {wanted}")
        _set(parameter, value, name in transposed)


def load_slices(model: nn.Cell, source: TensorSource, layout: ModelLayout, rank: int) -> None:
    """Set what this rank holds of a model; no more than one slice is read at a time.

    Args:
        model: compiled, unless the layout is for one rank. Parameters of other stages are passed over.
        source: holds the full parameters, [out, in].
        layout: of the model. A rank beyond it holds what rank `rank % layout.world_size` does.
        rank: this process's in the job.

    Raises:
        UserError: the source lacks a parameter, or has it in another shape.
        ValueError: a Parameter has not the shape of its slice: the model is not compiled, or under another layout.
    """
    transposed = transposed_weights(model)
    for name, parameter in model_parameters(model).items():
        value = _read_slice(name, source, layout, rank)
        if value is not None:
            _set(parameter, value, name in transposed)


def load_state(state: Mapping[str, ms.Parameter], source: TensorSource, layout: ModelLayout, rank: int) -> None:
    """The same for an optimizer's state: name (`adam_m.<parameter>`) → Parameter."""
    for name, parameter in state.items():
        value = _read_slice(name, source, layout, rank)
        if value is not None:
            _set(parameter, value, transposed=False)


def set_slices(model: nn.Cell, values: Mapping[str, np.ndarray]) -> None:
    """Set what this rank holds of a model from slices in memory, [out, in].

    Raises:
        KeyError: the model has no such parameter.
        ValueError: a Parameter has not the shape of its slice.
    """
    parameters, transposed = model_parameters(model), transposed_weights(model)
    for name, value in values.items():
        _set(parameters[name], value, name in transposed)


def rounded_as(model: nn.Cell, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the Parameters of a model hold once these fp32 values are set: those of fp32 Parameters as they are."""
    parameters = model_parameters(model)
    return {name: _rounded(value, parameters[name].dtype) for name, value in values.items()}


def parameter_values(
    model: nn.Cell, layout: ModelLayout | None = None, rank: int = 0, *, copy: bool = True
) -> dict[str, np.ndarray]:
    """What this rank holds of a model, name → fp32 array, [out, in].

    Args:
        model: compiled, unless the layout is for one rank.
        layout: of the model; None: not split, everything is held.
        rank: this process's in the job; see `load_slices`.
        copy: False: arrays may show the live buffers, which the next step overwrites, and then take no memory.
    """
    transposed, values = transposed_weights(model), {}
    for name, parameter in model_parameters(model).items():
        if layout is None or region_of(name, layout, rank) is not None:
            value = parameter.asnumpy()
            values[name] = (value.T if name in transposed else value).astype(np.float32, order="C", copy=copy)
    return values


def state_values(state: Mapping[str, ms.Parameter], layout: ModelLayout, rank: int) -> dict[str, np.ndarray]:
    """What this rank holds of an optimizer's state, under the same names: live buffers."""
    return {name: p.asnumpy() for name, p in state.items() if region_of(name, layout, rank) is not None}


def random_values(config: ModelConfig, seed: int, scale: float = 0.02) -> dict[str, np.ndarray]:
    """Weights to train from scratch: normal(0, scale), norms one, biases zero (Qwen2's own initialisation)."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, shape in config.parameter_shapes().items():
        if name.endswith("bias"):
            values[name] = np.zeros(shape, np.float32)
        elif "norm" in name:
            values[name] = np.ones(shape, np.float32)
        else:
            values[name] = rng.normal(0.0, scale, shape).astype(np.float32)
    return values


def random_source(config: ModelConfig, seed: int) -> ArraySource:
    """The same values as a source of slices."""
    return ArraySource(random_values(config, seed), "random weights")


def _read_slice(name: str, source: TensorSource, layout: ModelLayout, rank: int) -> np.ndarray | None:
    """What a rank holds of one tensor, or None where it holds nothing of it."""
    shape = layout.parameters[parameter_of(name, layout)].shape
    if name not in source.shapes:
        raise UserError(f"{source.path}: no tensor {name}; is it of this model and of this kind of optimizer?")
    if tuple(source.shapes[name]) != shape:
        raise UserError(f"{source.path}: {name} has shape {source.shapes[name]}, the model wants {shape}")
    region = region_of(name, layout, rank)
    return None if region is None else source.read(name, region)


def _rounded(value: np.ndarray, dtype: object) -> np.ndarray:
    return value if dtype == ms.float32 else Tensor(value, dtype).asnumpy().astype(np.float32)


def _set(parameter: ms.Parameter, value: np.ndarray, transposed: bool) -> None:
    value = np.ascontiguousarray(value.T if transposed else value, dtype=np.float32)
    if value.shape != tuple(parameter.shape):
        raise ValueError(
            f"{parameter.name} has shape {tuple(parameter.shape)}, its slice {value.shape}; "
            "is the model compiled, and under this layout?"
        )
    parameter.set_data(Tensor(value, parameter.dtype))
