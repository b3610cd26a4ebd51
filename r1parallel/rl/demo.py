"""`run_grpo.py` without a configuration: the tiny model on problems made here, on as many processes as there are."""

import shutil
from pathlib import Path

from r1parallel.config.checks import check_config
from r1parallel.config.loading.load import GRPO_SECTIONS, SFT_SECTIONS, load_config
from r1parallel.config.schema import RunConfig
from r1parallel.config.tiny import TINY_LAYOUTS, actor_flags, tiny_grpo_flags
from r1parallel.data.preprocess import preprocess
from r1parallel.data.problems.arithmetic import generate_arithmetic, write_character_tokenizer
from r1parallel.data.problems.problem_files import write_problems
from r1parallel.errors import UserError

FOLDER = Path("runs/demo")
_MARK = "made_by_the_demo"  # a folder with this file in it may be replaced
_NUM_PROBLEMS, _SFT_UPDATES, _GRPO_STEPS = 640, 100, 10


def run_demo(configs: Path, world_size: int) -> Path:
    """A short SFT, then a few steps of GRPO; returns the folder of the final model.

    Args:
        configs: folder of the tiny model's YAML files.
        world_size: number of processes.

    Raises:
        UserError: there is no layout for so many processes, or FOLDER holds something else.
    """
    tiny_grpo_flags(world_size)
    from r1parallel.config.schema import ContextConfig
    from r1parallel.parallel.device import setup_device
    from r1parallel.parallel.moving.collectives import barrier
    from r1parallel.rl.grpo import run_grpo
    from r1parallel.training.sft import run_sft

    world = setup_device(ContextConfig())
    if world.is_leader:
        _make_data()
    barrier(world, "problems for the demo")
    model = run_sft(_sft_config(configs, world_size))
    return run_grpo(_grpo_config(configs, world_size, model))


def _make_data() -> None:
    if FOLDER.exists() and not (FOLDER / _MARK).exists():
        raise UserError(f"{FOLDER}: holds files that are not the demo's; move them away or give --config")
    shutil.rmtree(FOLDER, ignore_errors=True)
    data = FOLDER / "data"
    data.mkdir(parents=True)
    (FOLDER / _MARK).touch()
    write_problems(data / "train.jsonl", generate_arithmetic(_NUM_PROBLEMS, seed=0, digits=[1, 2]))
    write_character_tokenizer(data / "tokenizer")
    preprocess("arithmetic", data / "train.jsonl", data / "tokenizer", data / "train.mindrecord", 8, 40, "raw")


def _sft_config(configs: Path, world_size: int) -> RunConfig:
    layout = TINY_LAYOUTS[world_size]
    dp, _, pp = layout.actor
    flags = actor_flags(layout) | {
        "actor_config.parallel_config.micro_batch_num": str(pp),
        "sft_config.batch_size": str(64 // (dp * pp)),
        "sft_config.max_steps": str(_SFT_UPDATES),
        "actor_config.lr_schedule.decay_steps": str(_SFT_UPDATES),
        "sft_config.dataset_file": str(FOLDER / "data" / "train.mindrecord"),
        "sft_config.tokenizer_dir": str(FOLDER / "data" / "tokenizer"),
        "sft_config.output_dir": str(FOLDER / "sft"),
        "sft_config.save_strategy_dir": str(FOLDER / "sft" / "strategy"),
    }
    return _checked(configs / "sft.yaml", flags, SFT_SECTIONS, world_size)


def _grpo_config(configs: Path, world_size: int, model: Path) -> RunConfig:
    flags = tiny_grpo_flags(world_size) | {
        "rl_config.max_steps": str(_GRPO_STEPS),
        "rl_config.dataset_file": str(FOLDER / "data" / "train.mindrecord"),
        "rl_config.tokenizer_dir": str(FOLDER / "data" / "tokenizer"),
        "rl_config.output_dir": str(FOLDER / "grpo"),
        "rl_config.save_strategy_dir": str(FOLDER / "strategy"),
        "actor_config.load": str(model),
    }
    return _checked(configs / "grpo.yaml", flags, GRPO_SECTIONS, world_size)


def _checked(file: Path, flags: dict[str, str], sections: tuple[str, ...], world_size: int) -> RunConfig:
    config = load_config(file, flags, sections)
    check_config(config, sections, world_size)
    return config
