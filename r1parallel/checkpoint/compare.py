"""Whether two checkpoints hold the same tensors, however each is stored, cut and named."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from r1parallel.checkpoint.comparing.findings import LISTED, Finding, Report
from r1parallel.checkpoint.comparing.hashing import byte_count, hash_rows, work_through
from r1parallel.checkpoint.comparing.pairing import Pair, Pairing, known_family, pair_up
from r1parallel.checkpoint.formats.dtypes import CONFIG_DTYPES, DTYPES, WEIGHT_DTYPES
from r1parallel.checkpoint.reading.source import CheckpointSource
from r1parallel.checkpoint.reading.streams import Streams
from r1parallel.checkpoint.reading.tensor_rows import TensorRows, cast_rows, words
from r1parallel.checkpoint.reading.windows import windows
from r1parallel.checkpoint.writing.copy_engine import Progress
from r1parallel.checkpoint.writing.workers import default_workers
from r1parallel.errors import UserError
from r1parallel.parallel.layout.regions import shape_of, whole


@dataclass(frozen=True)
class _Outcome:
    """What became of a pair: equal, or why not. `damaged`: lines of what could not be read as it ought to be."""

    pair: Pair
    equal: bool
    damaged: Sequence[str]


def compare_checkpoints(
    first: CheckpointSource, second: CheckpointSource, dtype: str | None = None, workers: int | None = None
) -> Report:
    """Compare names, shapes, dtypes and hashes of all full tensors. Where files have manifests, and where ranks hold
    copies, these are compared too.

    Args:
        first: A.
        second: B.
        dtype: fp32, bf16 or fp16: A's floating tensors are cast to it first, as a conversion does.
        workers: how many tensors are read at a time; None: as many as there are processors, up to 8.

    Raises:
        UserError: names cannot be brought together; see `pair_up`.
    """
    workers = workers or default_workers()
    pairing = pair_up(first, second)
    pairs = [replace(pair, first=_cast(pair.first, dtype, pair.name)) for pair in pairing.pairs]
    findings = [Finding("missing", text) for text in pairing.missing]
    findings += [found for pair in pairs if (found := _header_finding(pair)) is not None]
    comparable = [pair for pair in pairs if _header_finding(pair) is None]
    outcomes = _hash_all([*comparable, *pairing.heads.values()], workers)
    notes, lone_heads = _head_lines(pairing, outcomes[len(comparable) :])
    # Parts of one concatenated tensor find the same damage.
    damaged = dict.fromkeys(line for outcome in outcomes for line in outcome.damaged)
    findings += [*lone_heads, *(Finding("damaged", line) for line in damaged)]
    read = [outcome for outcome in outcomes[: len(comparable)] if not outcome.damaged]
    findings += _contents([outcome.pair for outcome in read if not outcome.equal], workers)
    about = [_side_line("A", first), _side_line("B", second), *pairing.notes, *notes]
    about.append(_manifest_line(first, second, [outcome.pair for outcome in read]))
    total = f"{len(pairs)} tensors, {tqdm.format_sizeof(sum(byte_count(pair.first) for pair in pairs), 'B')}"
    return Report(tuple(about), tuple(findings), total)


def _cast(rows: TensorRows, dtype: str | None, name: str) -> TensorRows:
    return cast_rows(rows, WEIGHT_DTYPES[dtype], name) if dtype and rows.dtype in CONFIG_DTYPES else rows


def _header_finding(pair: Pair) -> Finding | None:
    one, other = pair.first, pair.second
    if one.shape != other.shape:
        return Finding("shape", f"{pair.name}: {list(one.shape)} in A, {list(other.shape)} in B")
    if one.dtype != other.dtype:
        return Finding("dtype", f"{pair.name}: {one.dtype} in A, {other.dtype} in B")
    return None


def _hash_all(pairs: Sequence[Pair], workers: int) -> list[_Outcome]:
    """In the order of the pairs; the largest are read first, for one at the end would leave other workers idle."""
    largest_first = sorted(range(len(pairs)), key=lambda index: -byte_count(pairs[index].first))
    nbytes = sum(byte_count(rows) for pair in pairs for rows in (pair.first, pair.second))
    results = work_through(_hash_pair, [pairs[index] for index in largest_first], nbytes, workers, "verify")
    by_index = dict(zip(largest_first, results, strict=True))
    return [by_index[index] for index in range(len(pairs))]


def _hash_pair(pair: Pair, progress: Progress) -> _Outcome:
    digests, damaged = [], []
    for rows in (pair.first, pair.second):
        try:
            digests.append(hash_rows(rows, progress))
        except UserError as error:
            damaged.append(str(error))
    return _Outcome(pair, not damaged and digests[0] == digests[1], damaged)


def _head_lines(pairing: Pairing, outcomes: Sequence[_Outcome]) -> tuple[list[str], list[Finding]]:
    """What is to be said of heads that only one side has: notes, and differences."""
    notes, findings = [], []
    for side, outcome in zip(pairing.heads, outcomes, strict=True):
        name = outcome.pair.name
        if outcome.equal:
            notes.append(f"only {side} stores {name}, which equals its embedding")
        elif not outcome.damaged:
            findings.append(Finding("missing", f"{name} is only in {side}, and is not its embedding"))
    return notes, findings


def _contents(pairs: Sequence[Pair], workers: int) -> list[Finding]:
    """What differs in tensors whose hashes do. Only those that are listed are read again."""
    listed = pairs[:LISTED]
    nbytes = sum(byte_count(pair.first) for pair in listed)
    texts = list(work_through(_difference, listed, nbytes, workers, "differences")) if listed else []
    texts += [f"{pair.name} differs" for pair in pairs[LISTED:]]
    return [Finding("content", text) for text in texts]


def _difference(pair: Pair, progress: Progress) -> str:
    """How many elements differ, and the first of them. Bits are compared: -0.0 is not 0.0."""
    count, place, values = 0, [], ["", ""]
    one, other = pair.first, pair.second
    with Streams() as streams:
        for window in windows(max(one, other, key=lambda rows: rows.row_bytes), whole(one.shape)):
            blocks = [np.empty(shape_of(window), words(one.dtype)) for _ in range(2)]
            one.read(window, blocks[0], streams)
            other.read(window, blocks[1], streams)
            progress(blocks[0].nbytes)
            differing = np.flatnonzero(blocks[0] != blocks[1])
            if differing.size and not count:
                index = np.unravel_index(differing[0], shape_of(window))
                place = [int(i) + part.start for i, part in zip(index, window, strict=True)]
                values = _texts([block.reshape(-1)[differing[:1]] for block in blocks], one.dtype)
            count += differing.size
    size = byte_count(one) // DTYPES[one.dtype].itemsize
    where = f"the first at {place}: " if place else ""
    return f"{pair.name}: {count} of {size} elements differ, {where}{values[0]} in A, {values[1]} in B"


def _texts(elements: Sequence[np.ndarray], dtype: str) -> list[str]:
    """Two different words, [1], as numbers; as words too where the numbers look alike, such as two kinds of NaN."""
    texts = [str(element.view(DTYPES[dtype])[0]) for element in elements]
    if texts[0] != texts[1]:
        return texts
    return [f"{text} (0x{int(element[0]):x})" for text, element in zip(texts, elements, strict=True)]


def _side_line(side: str, source: CheckpointSource) -> str:
    family = known_family(source)
    names = f"{family} names" if family else "names of no whole model, compared as stored"
    return f"{side}  {source.path}: {len(source.tensors)} tensors in {len(source.files)} files, {names}"


def _manifest_line(first: CheckpointSource, second: CheckpointSource, pairs: Sequence[Pair]) -> str:
    parts = []
    for index, (side, source) in enumerate((("A", first), ("B", second))):
        names = {pair.stored[index] for pair in pairs}
        checked = sum(all(e.digest for copies in source.tensors[n].pieces.values() for e in copies) for n in names)
        parts.append(f"{checked} of {len(source.tensors)} in {side}")
    return f"hashes also compared with a manifest: {', '.join(parts)}"
