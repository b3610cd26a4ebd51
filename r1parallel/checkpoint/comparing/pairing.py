"""Which tensor of one checkpoint is which of another, whatever families their names are of."""

from collections.abc import Mapping
from dataclasses import dataclass

from r1parallel.checkpoint.formats.side_files import CONFIG_FILE
from r1parallel.checkpoint.reading.match import take_part
from r1parallel.checkpoint.reading.source import CheckpointSource
from r1parallel.checkpoint.reading.tensor_rows import TensorRows
from r1parallel.checkpoint.tables.names import EMBEDDING, HEAD, ROTARY_BUFFER, family_of, separate_tensors, translate
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.errors import UserError

SIDES = ("A", "B")


@dataclass(frozen=True)
class _Held:
    """A tensor of one side. `label` is for messages, `stored` the name that it is stored as, or in."""

    label: str
    stored: str
    rows: TensorRows


@dataclass(frozen=True)
class Pair:
    """Two tensors that ought to be equal.

    Attributes:
        name: for messages.
        first: in A.
        second: in B.
        stored: what A and B store it as, or in.
    """

    name: str
    first: TensorRows
    second: TensorRows
    stored: tuple[str, str]


@dataclass(frozen=True)
class Pairing:
    """How the tensors of A and B belong together.

    Attributes:
        pairs: in the order of A.
        heads: "A" or "B" → the head that only this side has, and its own embedding: no difference where they are equal,
            for a tied model needs no head.
        missing: names, and which side alone has them.
        notes: what is passed over.
    """

    pairs: list[Pair]
    heads: dict[str, Pair]
    missing: list[str]
    notes: list[str]


def known_family(source: CheckpointSource) -> str | None:
    """The family of a checkpoint's names, or None where they are no model's, or a part of one's."""
    try:
        return family_of(source.shapes)
    except UserError:
        return None


def beside_config(source: CheckpointSource) -> ModelConfig | None:
    """The sizes beside a checkpoint's weights, where they are there."""
    found = any((source.folder / name).is_file() for name in (CONFIG_FILE, "model.yaml"))
    return load_model_config(source.folder) if found else None


def pair_up(first: CheckpointSource, second: CheckpointSource) -> Pairing:
    """Find the tensors that belong together; only headers are read.

    What both store under one name is one tensor. Other names are translated where both are of known families, and
    concatenated tensors are taken apart.

    Raises:
        UserError: a tensor is stored twice, or no config.json says how a concatenated one is made.
    """
    sources = {"A": first, "B": second}
    families = {side: known_family(source) for side, source in sources.items()}
    shared = {name for name in first.shapes if name in second.shapes}
    pairs = [
        Pair(name, first.tensors[name], second.tensors[name], (name, name)) for name in first.shapes if name in shared
    ]
    if None in families.values():
        held = {side: _as_stored(source, shared) for side, source in sources.items()}
    else:
        held = {side: _by_our_names(sources[side], other, shared) for side, other in (("A", second), ("B", first))}
    for name in [name for name in held["A"] if name in held["B"]]:
        one, other = held["A"].pop(name), held["B"].pop(name)
        pairs.append(Pair(one.label, one.rows, other.rows, (one.stored, other.stored)))
    heads = {side: head for side in SIDES if (head := _lone_head(side, sources, families, held)) is not None}
    missing, notes = [], []
    for side, tensors in held.items():
        for name, tensor in tensors.items():
            if tensor.stored.endswith(ROTARY_BUFFER):
                notes.append(f"only {side} stores {tensor.label}, which follows from the model's sizes")
            elif side not in heads or name != HEAD:
                missing.append(f"{tensor.label} is only in {side}")
    return Pairing(pairs, heads, missing, notes)


def _as_stored(source: CheckpointSource, shared: set[str]) -> dict[str, _Held]:
    return {name: _Held(name, name, rows) for name, rows in source.tensors.items() if name not in shared}


def _by_our_names(source: CheckpointSource, other: CheckpointSource, shared: set[str]) -> dict[str, _Held]:
    """Our name → tensor, of those that are not `shared`. Names of optimizer state and the like stay as they are."""
    found: dict[str, _Held] = {}
    for name, (stored, part) in _places(source, shared).items():
        rows = source.tensors[stored]
        if part is None:
            found[name] = _Held(stored, stored, rows)
        else:
            found[name] = _Held(name, stored, _part(source, other, stored, part))
    return found


def _places(source: CheckpointSource, shared: set[str]) -> dict[str, tuple[str, int | None]]:
    """Our name → the stored tensor and, where it is one of several in it, which."""
    family = family_of(source.shapes)
    stored = [name for name in source.shapes if name not in shared]
    if family == "ours":
        try:
            return separate_tensors(stored)
        except UserError as error:
            raise UserError(f"{source.path}: {error}") from None
    places: dict[str, tuple[str, int | None]] = {}
    for name in stored:
        ours = _translated(name, family)
        if ours in places:
            raise UserError(f"{source.path}: {places[ours][0]} and {name} are one tensor; keep one of them")
        places[ours] = (name, None)
    return places


def _translated(name: str, family: str) -> str:
    try:
        return translate(name, family, "ours")
    except UserError:
        return name


def _part(source: CheckpointSource, other: CheckpointSource, stored: str, index: int) -> TensorRows:
    """One of several tensors in a stored one."""
    config = beside_config(source) or beside_config(other)
    if config is None:
        raise UserError(f"{source.path}: {stored} is several tensors in one; put the model's config.json beside it")
    return take_part(source, stored, index, source.tensors[stored], config)


def _lone_head(
    side: str,
    sources: Mapping[str, CheckpointSource],
    families: Mapping[str, str | None],
    held: Mapping[str, dict[str, _Held]],
) -> Pair | None:
    """The head that only one side has, with its embedding; None where it is none, or the other side needs one too."""
    other, family = "B" if side == "A" else "A", families[side]
    if family is None or HEAD not in held[side] or HEAD in held[other]:
        return None
    config = beside_config(sources[other])
    if config is not None and not config.tie_word_embeddings:
        return None
    head, tensors = held[side][HEAD], sources[side].tensors
    embedding = translate(EMBEDDING, "ours", family)
    return Pair(head.label, head.rows, tensors[embedding], (head.stored, embedding))
