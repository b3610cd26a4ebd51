"""A trained model as a folder that every tool here opens: weights, config.json, tokenizer."""

import os
import shutil
from pathlib import Path

from r1parallel.checkpoint.formats.side_files import CONFIG_FILE, copy_side_files
from r1parallel.checkpoint.reading.source import STRATEGY_FILE, open_sliced
from r1parallel.checkpoint.writing.folders import flush
from r1parallel.checkpoint.writing.output import plan_full, write_output
from r1parallel.checkpoint.writing.replace import replaced_checkpoint
from r1parallel.checkpoint.writing.shards import Shards
from r1parallel.checkpoint.writing.tensor_writer import write_tensor_file
from r1parallel.checkpoint.writing.workers import default_workers
from r1parallel.config.model import ModelConfig, write_model_config
from r1parallel.parallel.launch.world import World
from r1parallel.parallel.layout.strategy_files import write_merged_strategy
from r1parallel.parallel.moving.collectives import barrier

_METADATA = {"format": "ms"}


def save_model_merged(
    folder: Path, shards: Shards, tokenizer_dir: str | Path, stop_ids: list[int], world: World
) -> Path:
    """Write full values as model.safetensors in our names, config.json and the tokenizer's files; all ranks call this.

    What is there is replaced, weights file by weights file. The slices of the ranks go through files beside the folder,
    which rank 0 puts together.
    """
    config, layout = shards.layout.config, shards.layout
    slices = folder.with_name(f"{folder.name}.slices.tmp")
    _write_slices(slices, shards, world)
    if world.is_leader:
        source = open_sliced(slices, layout)
        output = plan_full({name: source.firsts[name] for name in config.parameter_shapes()}, _METADATA)
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_checkpoint(folder, list(output.files)) as temporary:
            write_output(output, temporary, default_workers(), durable=True)
            _write_beside(temporary, config, tokenizer_dir, stop_ids)
        flush(folder)
        shutil.rmtree(slices)
    barrier(world, f"{folder}: saved")
    return folder


def save_model_ranks(
    folder: Path, shards: Shards, tokenizer_dir: str | Path, stop_ids: list[int], world: World
) -> Path:
    """Write the slices of all ranks as rank_N/checkpoint_N.safetensors, and how they are cut; every rank calls this.

    The whole folder takes the place of the one that is there.
    """
    temporary = folder.with_name(f"{folder.name}.tmp")
    _write_slices(temporary, shards, world)
    if world.is_leader:
        write_merged_strategy(shards.layout, temporary / STRATEGY_FILE)
        _write_beside(temporary, shards.layout.config, tokenizer_dir, stop_ids)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        flush(folder.parent)
    barrier(world, f"{folder}: saved")
    return folder


def _write_slices(folder: Path, shards: Shards, world: World) -> None:
    """Make the folder anew, with the file of every rank that the layout has."""
    if world.is_leader:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier(world, f"{folder}: the folder is made")
    if world.rank < shards.layout.world_size:
        own = folder / f"rank_{world.rank}"
        own.mkdir(parents=True)
        write_tensor_file(own / f"checkpoint_{world.rank}.safetensors", shards.entries(world.rank), _METADATA)
    barrier(world, f"{folder}: every rank has written")


def _write_beside(folder: Path, config: ModelConfig, tokenizer_dir: str | Path, stop_ids: list[int]) -> None:
    copy_side_files(Path(tokenizer_dir), folder)
    write_model_config(config, folder / CONFIG_FILE, eos_token_id=stop_ids)
