"""Strategy files: a layout as MindSpore writes it when it compiles a parallel graph, and reads it back."""

import hashlib
import os
import re
from collections.abc import Collection, Container, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError

from r1parallel.atomic import replacing
from r1parallel.errors import UserError
from r1parallel.parallel.layout.strategy_proto import ParallelStrategyMap
from r1parallel.parallel.layout.tensor_layout import StageLayouts, TensorLayout
from r1parallel.wire import BYTES, Field, WireError, WireFile

_RANK_FILE = re.compile(r"(?:ckpt_)?strategy_(?:rank_)?(\d+)\.ckpt")  # ours and MindSpore's; mindformers'
_MERGED_NAME = re.compile(r"(\d+)-(.+)")
# MindSpore writes 2 into a file of one rank and 1 into a merged file. It never reads the number.
_CURRENT_STAGE, _CURRENT_STAGE_MERGED = 2, 1
# What a file may claim. 72B with optimizer and gradients has some ten thousand items in less than 2 MB.
_MAX_FILE, _MAX_ITEM = 2**30, 2**16  # bytes
_MAX_OPERATORS, _MAX_LAYOUTS = 1_000_000, 50_000
_MAX_RANKS, _MAX_DIMS, _MAX_NAME = 2**20, 32, 512
# The fields of ParallelStrategyMap that are read, and what is in them.
_OPERATOR, _LAYOUT = 2, 3
_OperatorItem: Any = type(ParallelStrategyMap().parallel_strategy_item.add())
_LayoutItem: Any = type(ParallelStrategyMap().parallel_layout_item.add())
# Which model of a GRPO run → what its folder and merged file are called.
STRATEGY_NAMES = {"actor": "train_policy", "ref": "infer_ref", "generate": "infer_policy"}


def write_model_strategies(layout: StageLayouts, model: str, output_dir: str | Path) -> Path:
    """Write the files of one of a run's models, and the merged file, under the names users know.

    Args:
        layout: of that model.
        model: a key of `STRATEGY_NAMES`.
        output_dir: gets `<name>_strategy/strategy_<rank>.ckpt` and `merge_strategy/<name>_merged_strategy.ckpt`.

    Returns:
        The folder of the rank files.
    """
    name, output_dir = STRATEGY_NAMES[model], Path(output_dir)
    folder = output_dir / f"{name}_strategy"
    write_strategy_files(layout, folder)
    write_merged_strategy(layout, output_dir / "merge_strategy" / f"{name}_merged_strategy.ckpt")
    return folder


def write_strategy_files(layout: StageLayouts, output_dir: str | Path) -> list[Path]:
    """Write `strategy_<rank>.ckpt` for every rank; older ones of a larger world are removed.

    Returns:
        The files, in order of ranks.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for stage, table in enumerate(layout.stages):
        content = _stage_message(stage, table).SerializeToString()  # the same on every rank of the stage
        for rank in range(stage * layout.stage_size, (stage + 1) * layout.stage_size):
            files.append(folder / f"strategy_{rank}.ckpt")
            with replacing(files[-1]) as temporary:
                temporary.write_bytes(content)
    for rank, file in _rank_files(folder):
        if rank >= layout.world_size:
            file.unlink()
    return files


def write_merged_strategy(layout: StageLayouts, file: str | Path) -> None:
    """Write the tables of all stages into one file, where `<name>` becomes `<stage>-<name>`."""
    merged = ParallelStrategyMap(current_stage=_CURRENT_STAGE_MERGED)
    for stage, table in enumerate(layout.stages):
        message = _stage_message(stage, table)
        for item in message.parallel_layout_item:
            item.param_name = f"{stage}-{item.param_name}"
        merged.parallel_strategy_item.extend(message.parallel_strategy_item)
        merged.parallel_layout_item.extend(message.parallel_layout_item)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(merged.SerializeToString())


def read_strategy(path: str | Path) -> StageLayouts:
    """Read a folder of `strategy_<rank>.ckpt`, a merged file, or one rank's file of a model with one stage.

    Raises:
        UserError: nothing is there, a file is damaged, a stage is missing, or a layout is of a kind that only
            MindSpore can cut (one dim split over two axes).
    """
    path = Path(path)
    stages: dict[int, dict[str, TensorLayout]] = {}
    known: set[bytes] = set()
    files = _require_rank_files(path) if path.is_dir() else [path]
    for file in files:
        with _open(file) as stream:
            if len(files) > 1 and _is_known(stream, known):  # most ranks of a stage have the same file
                continue
            tables = _read_tables(file, stream)
        for stage, table in tables.items():
            if stages.setdefault(stage, table) != table:
                raise UserError(f"{file}: differs from another file of stage {stage}; write the folder anew")
    if sorted(stages) != list(range(len(stages))):
        raise UserError(f"{path}: has stages {_few(stages)} only; give the folder of all ranks or a merged file")
    sizes = {layout.stage_size for table in stages.values() for layout in table.values()}
    if len(sizes) != 1:
        raise UserError(f"{path}: stages of unequal numbers of devices: {_few(sizes)}")
    return _checked_world(path, StageLayouts(sizes.pop(), tuple(stages[stage] for stage in sorted(stages))))


def read_rank_strategy(file: str | Path, names: Container[str]) -> dict[str, TensorLayout]:
    """Read of one rank's file only the tensors that are called `names`; MindSpore lists gradients and caches too.

    Raises:
        UserError: the file is missing or damaged, or a layout is of a kind that only MindSpore can cut.
    """
    file = Path(file)
    with _open(file) as stream:
        items = [item for _, item in _items(file, stream) if item.param_name in names]
    return {item.param_name: _tensor_layout(file, item.param_name, item.parallel_layouts) for item in items}


def _checked_world(path: Path, layout: StageLayouts) -> StageLayouts:
    if layout.world_size > _MAX_RANKS:
        raise UserError(f"{path}: describes {layout.world_size} ranks, at most {_MAX_RANKS} are supported")
    if path.is_dir():
        ranks = [rank for rank, _ in _rank_files(path)]
        if ranks != list(range(layout.world_size)):
            raise UserError(f"{path}: describes {layout.world_size} ranks but has files for ranks {_few(ranks)}")
    return layout


def _stage_message(stage: int, table: Mapping[str, TensorLayout]) -> Any:
    message = ParallelStrategyMap(current_stage=_CURRENT_STAGE)
    # MindSpore lists the operators here. Readers need one of them, for its stage: the first parameter's.
    name, layout = next(iter(table.items()))
    item = message.parallel_strategy_item.add(node_name=name)
    item.parallel_strategys.stage = stage
    item.parallel_strategys.parallel_strategy.add(dim=TensorLayout(layout.dev_matrix, layout.tensor_map).parts)
    for name, layout in table.items():
        target = message.parallel_layout_item.add(param_name=name).parallel_layouts
        target.dev_matrix.add(dim=layout.dev_matrix)
        target.tensor_map.add(dim=layout.tensor_map)
        target.param_split_shape.add()
        target.indices_offset.add()
        target.field = 0
        target.opt_weight_shard_step = layout.opt_shard_step
        target.opt_weight_shard_size = layout.opt_shard_size
    return message


def _read_tables(file: Path, stream: BinaryIO) -> dict[int, dict[str, TensorLayout]]:
    """Stage → name → layout. A merged file has the stage in each name, a rank's in its first operator."""
    stages: dict[int, dict[str, TensorLayout]] = {}
    for own_stage, item in _items(file, stream):
        merged = _MERGED_NAME.fullmatch(item.param_name)
        stage, name = (int(merged[1]), merged[2]) if merged else (own_stage, item.param_name)
        if stage >= _MAX_RANKS:
            raise UserError(f"{file}: {name} is of stage {stage}, at most {_MAX_RANKS} are supported")
        table = stages.setdefault(stage, {})
        layout = _tensor_layout(file, name, item.parallel_layouts)
        if table.setdefault(name, layout) != layout:
            raise UserError(f"{file}: has two different layouts of {name}")
    return stages


def _items(file: Path, stream: BinaryIO) -> Iterator[tuple[int, Any]]:
    """The stage of the first operator with each layout item.

    One item after the other is read: a parsed message takes a hundred times the memory of the file.
    """
    try:
        wire, (operator, layouts) = WireFile(stream.fileno()), _fields(stream)
        parallel = _parse(wire, operator, _OperatorItem).parallel_strategys
        for field in layouts:
            item = _parse(wire, field, _LayoutItem)
            if not item.param_name.isprintable() or len(item.param_name) > _MAX_NAME:
                raise WireError(f"a name of {len(item.param_name)} characters is not printable or too long")
            yield parallel.stage, item
    except (DecodeError, ValueError) as error:  # a WireError, a name that is not UTF-8
        raise UserError(f"{file}: is no strategy file, or is damaged ({' '.join(str(error).split())})") from None


def _fields(stream: BinaryIO) -> tuple[Field, list[Field]]:
    """Where the first operator and all layouts lie."""
    operators: list[Field] = []
    layouts: list[Field] = []
    for count, field in enumerate(WireFile(stream.fileno()).fields(0, os.fstat(stream.fileno()).st_size)):
        if field.kind == BYTES and field.number == _OPERATOR and not operators:
            operators.append(field)
        elif field.kind == BYTES and field.number == _LAYOUT:
            layouts.append(field)
        if count > _MAX_OPERATORS or len(layouts) > _MAX_LAYOUTS:
            raise WireError(f"it has more than {_MAX_OPERATORS} operators or {_MAX_LAYOUTS} layouts")
    if not operators or not layouts:
        raise WireError("it holds no layouts")
    return operators[0], layouts


def _parse(wire: WireFile, field: Field, message_class: Any) -> Any:
    message = message_class()
    message.ParseFromString(wire.read(field, _MAX_ITEM))
    return message


def _tensor_layout(file: Path, name: str, layouts: Any) -> TensorLayout:
    if len(layouts.dev_matrix) != 1 or len(layouts.tensor_map) != 1:
        raise UserError(f"{file}: {name} splits one dim over several axes, which is not supported here")
    layout = TensorLayout(
        tuple(layouts.dev_matrix[0].dim),
        tuple(layouts.tensor_map[0].dim),
        layouts.opt_weight_shard_step,
        layouts.opt_weight_shard_size,
    )
    if max(len(layout.dev_matrix), len(layout.tensor_map)) > _MAX_DIMS:
        raise UserError(f"{file}: {name} has a dev_matrix or tensor_map of more than {_MAX_DIMS} numbers")
    axes = [axis for axis in layout.tensor_map if axis != -1]
    if any(not 0 <= axis < len(layout.dev_matrix) for axis in axes) or len(set(axes)) < len(axes):
        raise UserError(f"{file}: {name} has tensor_map {layout.tensor_map} for dev_matrix {layout.dev_matrix}")
    if not 0 < layout.stage_size <= _MAX_RANKS:
        raise UserError(f"{file}: {name} lies on {layout.stage_size} devices, 1 to {_MAX_RANKS} are supported")
    _check_optimizer_shards(file, name, layout)
    return layout


def _check_optimizer_shards(file: Path, name: str, layout: TensorLayout) -> None:
    """Dim 0 can be cut once more only where there is one, and only by what divides the devices that share a part."""
    step, size = layout.opt_shard_step, layout.opt_shard_size
    split = prod(layout.dev_matrix[-1 - axis] for axis in layout.tensor_map if axis >= 0)
    copies = layout.stage_size // split
    parts = 1 if 0 in (step, size) else copies if size == -1 else size
    if step < 0 or size < -1 or copies % parts or (parts > 1 and not layout.tensor_map):
        raise UserError(
            f"{file}: {name} has opt_weight_shard_step {step} and opt_weight_shard_size {size}, "
            f"but {len(layout.tensor_map)} dims on {copies} devices that hold the same part"
        )


def _open(file: Path) -> BinaryIO:
    if not file.is_file():
        raise UserError(f"{file}: no such strategy file; make it with tools/make_strategy.py")
    if file.stat().st_size > _MAX_FILE:
        raise UserError(f"{file}: has {file.stat().st_size} bytes, no strategy file has more than {_MAX_FILE}")
    return file.open("rb")


def _is_known(stream: BinaryIO, known: set[bytes]) -> bool:
    """Whether the hash of a file is in `known`, where it is put."""
    digest = hashlib.sha256()
    while block := stream.read(2**20):
        digest.update(block)
    found = digest.digest() in known
    known.add(digest.digest())
    return found


def _few(numbers: Collection[int]) -> str:
    """Numbers for a message."""
    first = [str(number) for number in sorted(numbers)[:20]]
    return f"[{', '.join(first)}{', …' if len(numbers) > len(first) else ''}]"


def _rank_files(folder: Path) -> list[tuple[int, Path]]:
    found = ((_RANK_FILE.fullmatch(file.name), file) for file in folder.iterdir())
    return sorted((int(match[1]), file) for match, file in found if match)


def _require_rank_files(folder: Path) -> list[Path]:
    files = [file for _, file in _rank_files(folder)] if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder}: no strategy_<rank>.ckpt here; make them with tools/make_strategy.py")
    return files
