"""Our model's parameters in a checkpoint, under whichever names they are stored, after all were found to fit."""

from collections.abc import Mapping

from r1parallel.checkpoint.formats.dtypes import CONFIG_DTYPES
from r1parallel.checkpoint.reading.source import CheckpointSource
from r1parallel.checkpoint.reading.tensor_rows import PartRows, TensorRows
from r1parallel.checkpoint.reading.windows import are_equal
from r1parallel.checkpoint.tables.names import (
    EMBEDDING,
    HEAD,
    ROTARY_BUFFER,
    family_of,
    group_rows,
    separate_tensors,
    translate,
)
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError

_FIT = "does the model configuration fit?"


def match_model(
    source: CheckpointSource, tensors: Mapping[str, TensorRows], config: ModelConfig
) -> dict[str, TensorRows]:
    """Our names → tensors, in the model's order. No data is read, but to compare a tied model's two copies.

    Args:
        source: names and shapes, whatever family they are of; queries, keys and values may be concatenated.
        tensors: of the source, `tensors` or `firsts`.
        config: which names and shapes to expect.

    Raises:
        UserError: a tensor is missing, extra, mis-shaped or no weight, or a tied model has a head of its own.
    """
    family = _family(source)
    held = _by_our_names(source, family)
    found: dict[str, TensorRows] = {}
    expected = config.parameter_shapes()
    for ours, (stored, part) in held.items():
        rows = tensors[stored]
        if ours == HEAD and config.tie_word_embeddings:
            _check_tied(source, stored, held[EMBEDDING][0], tensors)
            continue
        if ours not in expected:
            raise UserError(f"{source.path}: {stored} {rows.shape} is no parameter of the model; {_FIT}")
        if part is not None:
            rows = take_part(source, stored, part, rows, config)
        _check(source, stored, rows, expected[ours])
        found[ours] = rows
    for ours, shape in expected.items():
        if ours not in found:
            raise UserError(f"{source.path}: {translate(ours, 'ours', family)} {shape} is missing; {_FIT}")
    return {ours: found[ours] for ours in expected}


def take_part(source: CheckpointSource, stored: str, index: int, rows: TensorRows, config: ModelConfig) -> PartRows:
    """One of the tensors that are concatenated in a stored one, which is read through `rows`.

    Raises:
        UserError: it has another number of rows than such a tensor of this model.
    """
    group = group_rows(config, stored)
    if not rows.shape or rows.shape[0] % sum(group):
        raise UserError(f"{source.path}: {stored} {rows.shape} is not made of groups of {sum(group)} rows; {_FIT}")
    return PartRows(rows, group, index)


def _family(source: CheckpointSource) -> str:
    try:
        return family_of(source.shapes)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def _by_our_names(source: CheckpointSource, family: str) -> dict[str, tuple[str, int | None]]:
    """Our name → the stored tensor and, where it is one of several in it, which."""
    stored = [name for name in source.shapes if not name.endswith(ROTARY_BUFFER)]
    try:
        if family == "ours":
            return separate_tensors(stored)
        return {translate(name, family, "ours"): (name, None) for name in stored}
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def _check(source: CheckpointSource, name: str, rows: TensorRows, shape: tuple[int, ...]) -> None:
    if rows.shape != shape:
        raise UserError(f"{source.path}: {name} has shape {rows.shape}, the model wants {shape}; {_FIT}")
    if rows.dtype not in CONFIG_DTYPES:
        raise UserError(f"{source.path}: {name} is stored as {rows.dtype}; weights must be F32, F16 or BF16")


def _check_tied(source: CheckpointSource, head: str, embedding: str, tensors: Mapping[str, TensorRows]) -> None:
    """A tied model may store its head too, as long as it is the embedding."""
    if not are_equal(tensors[head], tensors[embedding]):
        raise UserError(
            f"{source.path}: {head} differs from {embedding}, but the model configuration says "
            "tie_word_embeddings; set it to false if the head was trained on its own"
        )
