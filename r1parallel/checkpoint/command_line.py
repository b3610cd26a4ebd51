"""Flags that the checkpoint tools share, and those of mindformers' converters."""

import argparse
import re
from pathlib import Path

from r1parallel.checkpoint.convert import Target
from r1parallel.checkpoint.formats.dtypes import WEIGHT_DTYPES
from r1parallel.checkpoint.formats.tensor_file import FORMATS
from r1parallel.checkpoint.tables.names import FAMILIES
from r1parallel.checkpoint.writing.output import MAX_SHARD_SIZE
from r1parallel.errors import UserError
from r1parallel.parallel.layout.strategy_files import read_strategy
from r1parallel.parallel.layout.tensor_layout import StageLayouts

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of every tool that writes a checkpoint."""
    parser.add_argument("--prefix", default="checkpoint_", help="start of the file names in the rank folders")
    parser.add_argument("--output_format", choices=list(FORMATS), default="safetensors", help="default: safetensors")
    parser.add_argument(
        "--max_shard_size", type=_byte_count, default=MAX_SHARD_SIZE, help="of a full checkpoint's files; default: 5GB"
    )
    add_workers_flag(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="print what would be written, and the disk space; do nothing"
    )


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    """How many workers read and write."""
    parser.add_argument(
        "--transform_process_num", type=_positive, help="tensors moved at a time; default: processors, up to 8"
    )


def add_convert_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of convert_weight: ours, mindformers' root script's, and those of its Qwen2.5 scripts."""
    parser.add_argument("--model", choices=["qwen2_5", "qwen2"], help="both mean the same; for mindformers' commands")
    parser.add_argument("--input_path", "--torch_ckpt_dir", "--pre_ckpt_path", help="checkpoint: a file or a folder")
    parser.add_argument("--output_path", "--torch_ckpt_path", help="folder to write, or .safetensors or .ckpt file")
    parser.add_argument("--mindspore_ckpt_path", help="mindformers': the output; with --reversed the input")
    parser.add_argument("--config_path", help="config.json or model.yaml; default: beside the input")
    parser.add_argument("--dtype", choices=sorted(WEIGHT_DTYPES), help="default: keep as stored")
    parser.add_argument("--reversed", action="store_true", help="to Hugging Face's names; the same as --names hf")
    parser.add_argument("--names", choices=FAMILIES, help="names to write; default: ours, which are mindformers'")
    parser.add_argument(
        "--qkv_concat", type=_true_or_false, nargs="?", const=True, default=False, help="w_qkv and w_gate_hidden"
    )
    parser.add_argument("--is_lora", type=_true_or_false, default=False, help="only False: adapters are not supported")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint in the output folder")
    parser.add_argument("--dst_strategy", default="None", help="cut for the ranks of this strategy at once; None: full")
    parser.add_argument("--world_size", type=int, help="ranks that --dst_strategy must be for")


def convert_target(args: argparse.Namespace) -> Target:
    """What the flags ask for; `input_path` and `output_path` are filled in.

    Raises:
        UserError: flags contradict each other, or one is missing.
    """
    if args.mindspore_ckpt_path:
        place = "input_path" if args.reversed else "output_path"
        if getattr(args, place):
            raise UserError(f"--mindspore_ckpt_path: is the --{place} here, which is given too; leave one out")
        setattr(args, place, args.mindspore_ckpt_path)
    for place in ("input_path", "output_path"):
        if not getattr(args, place):
            raise UserError(f"--{place} is missing; give a file or a folder")
    if args.is_lora:
        raise UserError("--is_lora True: adapters are not supported; merge them into the weights first")
    if args.reversed and args.names not in (None, "hf"):
        raise UserError(f"--reversed asks for Hugging Face's names, --names for {args.names}; leave one out")
    names = "hf" if args.reversed else args.names or "ours"
    layout = read_layout(args.dst_strategy, args.world_size)
    return Target(names, args.dtype, args.qkv_concat, args.output_format, args.max_shard_size, layout, args.prefix)


def read_layout(path: str, world_size: int | None = None) -> StageLayouts | None:
    """The layout of a strategy; None where the flag is "None".

    Raises:
        UserError: the strategy is not readable, or is for another number of ranks.
    """
    if path == "None":
        return None
    layout = read_strategy(Path(path))
    if world_size not in (None, layout.world_size):
        raise UserError(f"--world_size {world_size}: {path} is for {layout.world_size} ranks")
    return layout


def read_ranks(text: str | None, layout: StageLayouts | None) -> list[int] | None:
    """The ranks of `--rank_id`, such as 3 or 0,2 or 8-15; None: all.

    Raises:
        UserError: these are no ranks, or nothing is cut.
    """
    if text is None:
        return None
    if layout is None:
        raise UserError("--rank_id: a full checkpoint has no ranks; give --dst_strategy")
    ranks: set[int] = set()
    last = layout.world_size - 1
    for item in text.split(","):
        found = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", item.strip())
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise UserError(f"--rank_id {text}: give ranks as 3 or 0,2 or 8-15")
        if int(found[2] or found[1]) > last:
            raise UserError(f"--rank_id {text}: --dst_strategy is for ranks 0 to {last}")
        ranks.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    return sorted(ranks)


def _byte_count(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", text.strip().upper())
    if found is None or found[2] not in _UNITS or float(found[1]) * _UNITS[found[2]] < 1:
        raise UserError(f"--max_shard_size {text}: is no size; give bytes, or as 500MB or 5GB")
    return int(float(found[1]) * _UNITS[found[2]])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--transform_process_num {text}: must be a whole number, at least 1")
    return int(text)


def _true_or_false(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise UserError(f"{text}: is neither True nor False, which --qkv_concat and --is_lora take")
    return text.lower() == "true"
