"""Values of a model's parameters: from a checkpoint, at random, or from another model in the same process."""

from collections.abc import Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.models.layers import Linear


def model_parameters(model: nn.Cell) -> dict[str, ms.Parameter]:
    """Name → Parameter of everything that a checkpoint holds (caches are not)."""
    return {p.name: p for p in model.get_parameters() if not p.name.endswith(("key_cache", "value_cache"))}


def transposed_weights(model: nn.Cell) -> set[str]:
    """Names of the weights that this model keeps as [in, out]; a checkpoint holds [out, in]."""
    return {cell.weight.name for _, cell in model.cells_and_names() if isinstance(cell, Linear) and cell.transposed}


def load_parameters(model: nn.Cell, values: Mapping[str, np.ndarray], source: str) -> None:
    """Set every parameter of `model`.

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
        value = value.T if name in transposed else value
        if value.shape != tuple(parameter.shape):
            raise UserError(f"{source}: {name} has shape {value.shape}, the model wants {tuple(parameter.shape)}")
        parameter.set_data(Tensor(np.ascontiguousarray(value, dtype=np.float32)))


def parameter_values(model: nn.Cell) -> dict[str, np.ndarray]:
    """Copies of all values, name → fp32 array."""
    transposed, values = transposed_weights(model), {}
    for name, parameter in model_parameters(model).items():
        value = parameter.asnumpy()
        # asnumpy() shows the live buffer, which the next step overwrites: copy.
        values[name] = (value.T if name in transposed else value).copy()
    return values


def copy_parameters(source: nn.Cell, target: nn.Cell) -> None:
    """Give `target` the values of `source`; both hold the same names."""
    targets, turned = model_parameters(target), transposed_weights(source) ^ transposed_weights(target)
    for name, parameter in model_parameters(source).items():
        value = parameter.asnumpy().T if name in turned else parameter.asnumpy()
        assert tuple(targets[name].shape) == value.shape, name
        targets[name].set_data(Tensor(value.copy()))


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
