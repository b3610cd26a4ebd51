"""Which part of which tensor of a checkpoint lies on which rank, by the tables of a layout."""

from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path

from r1parallel.checkpoint.tables.names import separate_tensors, to_hf
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import Region, whole
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout


def find_layout(table: Mapping[str, TensorLayout], name: str) -> TensorLayout | None:
    """How a stage's table cuts a tensor; None where it says nothing about it.

    Optimizer state (`adam_m.<parameter>`) that the table does not name is cut as its parameter is.
    """
    if name in table:
        return table[name]
    for index, character in enumerate(name):
        if character == "." and name[index + 1 :] in table:
            return table[name[index + 1 :]]
    return None


def is_everywhere(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor that no table names lies on every rank: a single number, such as a step or a learning rate."""
    return shape in ((), (1,)) and not _is_parameter(name)


def stage_tensors(
    layout: StageLayouts, stage: int, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, TensorLayout | None]:
    """Which tensors a stage holds, and how it cuts them; None: whole, on every rank."""
    result: dict[str, TensorLayout | None] = {}
    for name, shape in shapes.items():
        found = find_layout(layout.stages[stage], name)
        if found is not None:
            result[name] = found
        elif is_everywhere(name, shape) and not any(find_layout(table, name) for table in layout.stages):
            result[name] = None
    return result


def cut_tensor(found: TensorLayout | None, name: str, shape: tuple[int, ...], device: int) -> Region:
    """The part of a tensor of full `shape` that a device of its stage holds.

    Raises:
        UserError: the layout cannot cut this shape.
    """
    if found is None:
        return whole(shape)
    try:
        return _slices(found, shape, device)
    except ValueError as error:
        raise UserError(f"{name}: {error}; is it the right strategy?") from None


@lru_cache(maxsize=2**16)  # a model's layers are alike
def _slices(found: TensorLayout, shape: tuple[int, ...], device: int) -> Region:
    return found.slices(shape, device)


def missing_names(table: Mapping[str, TensorLayout], present: Collection[str]) -> list[str]:
    """The tensors that a stage's table asks for and a checkpoint lacks.

    A table may list more than parameters: MindSpore's has optimizer state, gradients and caches, which may be absent.
    Where it names parameters of the model, these must be there; otherwise all that it names. A checkpoint of
    nothing but optimizer state has no parameters at all.
    """
    behind_prefix = {name for name in table if _is_state(table, name)}
    own = [name for name in table if name not in behind_prefix]
    wanted = [name for name in own if _is_parameter(name)] or own
    if not any(name in table for name in present) and any(find_layout(table, name) for name in present):
        return []
    return sorted(set(wanted) - set(present))


def check_all_placed(path: Path, shapes: Mapping[str, tuple[int, ...]], layout: StageLayouts) -> None:
    """See that no tensor of a checkpoint gets lost under a layout, and none is missing.

    Raises:
        UserError: one does, or is.
    """
    for name, shape in shapes.items():
        if not any(find_layout(table, name) for table in layout.stages) and not is_everywhere(name, shape):
            raise UserError(
                f"{path}: {name} is in no stage of --dst_strategy; is it the right one? "
                "A Hugging Face checkpoint goes through tools/convert_weight.py"
            )
    for table in layout.stages:
        for name in missing_names(table, shapes):
            raise UserError(f"{path}: has no {name}, which --dst_strategy asks for; is it the right one?")


def _is_state(table: Mapping[str, TensorLayout], name: str) -> bool:
    return any(name[index + 1 :] in table for index, character in enumerate(name) if character == ".")


def _is_parameter(name: str) -> bool:
    """Whether our model, with or without concatenated tensors, has a parameter of this name."""
    try:
        to_hf(next(iter(separate_tensors([name]))))
    except UserError:
        return False
    return True
