"""The runs of benchmarks.learning: the start of a seed, a preset from there, and TRL from there."""

import json
import runpy
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import yaml

from benchmarks.common.commands import Commands
from benchmarks.common.machine import write
from r1parallel.config.loading.load import GRPO_SECTIONS, load_config
from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RunConfig
from r1parallel.data.batches import RowOrder
from r1parallel.data.mindrecord import read_mindrecord
from r1parallel.data.text.tokenizer import load_tokenizer
from r1parallel.training.schedule import learning_rate

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "model_configs" / "tiny"
READING = Lock()  # MindRecord's reader is made for one thread
EVERY = 2  # steps between checkpoints
EVALUATED = (*range(2, 20, 2), *range(20, 1000, 10))  # most is learned early
# Every preset runs with the numbers of tiny/grpo.yaml, but for the keys of `PRESETS` and these.
OWN: dict[str, tuple[dict[str, object], str]] = {
    "dapo": (
        {"rl_config.overlong_buffer": 3},
        "right answers with a carry take 21 of the 24 tokens; the default, a fifth of 24, would punish them",
    ),
}
# name → preset, flags: DAPO's dynamic sampling draws several times as many completions as the others see.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "dapo_same_draws": ("dapo", {"rl_config.dynamic_sampling": "false"}),
}
OURS = (*PRESETS, *VARIANTS)
# Of GRPOConfig. What stands neither here nor in `peer_config` is TRL's own default; the first has no KL term.
PEERS: dict[str, dict[str, object]] = {
    "trl": {},
    "trl_grpo": {"loss_type": "grpo", "beta": 0.005, "use_bias_correction_kl": False},
    "trl_dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
}


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    out: Path
    steps: int
    commands: Commands
    peer_python: Path | None

    @property
    def evaluated(self) -> list[int]:
        """Steps whose checkpoints are evaluated."""
        return sorted({step for step in EVALUATED if step < self.steps} | {self.steps})


def perform(bench: Bench, seed: int, name: str, folder: Path) -> dict[str, Any]:
    """Run "start", a preset or a peer in an empty folder: step → accuracy, and seconds."""
    work = start if name == "start" else train_peer if name in PEERS else train
    return work(bench, seed, name, folder)


def settings_of(bench: Bench, name: str) -> dict[str, Any]:
    """What decides a run's outcome besides its seed."""
    if name == "start":
        return {"yaml": yaml.safe_load((CONFIGS / "sft.yaml").read_text(encoding="utf-8"))}
    values = yaml.safe_load((CONFIGS / "grpo.yaml").read_text(encoding="utf-8"))
    settings = {"steps": bench.steps, "evaluated": bench.evaluated, "yaml": values}
    if name in PEERS:
        return settings | {"config": peer_config(name, bench.steps)}
    preset, flags = preset_and_flags(name)
    return settings | {"preset": PRESETS[preset], "flags": flags}


def preset_and_flags(name: str) -> tuple[str, dict[str, object]]:
    """What the command line says of a preset or a variant of one."""
    preset, more = VARIANTS.get(name, (name, {}))
    beta = {"rl_config.beta": PRESETS[preset]["beta"]} if "beta" in PRESETS[preset] else {}  # the YAML's is stronger
    return preset, beta | OWN.get(preset, ({}, ""))[0] | more


def start(bench: Bench, seed: int, name: str, folder: Path) -> dict[str, Any]:
    """Data and SFT model, made as scripts/quickstart.py makes them."""
    data, log, stages = folder / "data", folder / "log.txt", Stages(bench.commands, folder / "log.txt")
    runpy.run_path(str(ROOT / "scripts" / "quickstart.py"))["make_data"](stages, data, data / "tokenizer", seed)
    words = ["--config", CONFIGS / "sft.yaml", *data_flags(folder, seed), "--output_dir", folder / "sft"]
    words += ["--sft_config.eval_dataset_file", data / "test.mindrecord"]
    seconds = bench.commands.run(log, sys.executable, ROOT / "run_sft.py", *words, cwd=folder)
    convert = ("--reversed", "--input_path", folder / "sft" / "model", "--output_path", folder / "hf")
    stages.run("export", "tools/convert_weight.py", *convert)
    return {"accuracies": evaluate(bench, seed, folder, {0: folder / "sft" / "model"}), "seconds": seconds}


def train(bench: Bench, seed: int, name: str, folder: Path) -> dict[str, Any]:
    """One preset, in one process."""
    begin, (preset, own) = start_folder(bench, seed), preset_and_flags(name)
    flags = own | {
        "rl_config.algorithm": preset,
        "rl_config.max_steps": bench.steps,
        "actor_config.lr_schedule.decay_steps": grpo_config(bench.steps).actor_config.lr_schedule.decay_steps,
        "rl_config.save_ckpt_interval": EVERY,
        "rl_config.save_max_ckpt_num": bench.steps,
        "rl_config.save_strategy_dir": folder / "strategy",
        "rl_config.tensorboard": "false",
        "monitor_config.report": "false",
    }
    words = ["--config", CONFIGS / "grpo.yaml", *data_flags(begin, seed), "--output_dir", folder / "run"]
    words += ["--actor_checkpoint_path", begin / "sft" / "model"]
    words += [word for key, value in flags.items() for word in (f"--{key}", value)]
    seconds = bench.commands.run(folder / "log.txt", sys.executable, ROOT / "run_grpo.py", *words, cwd=folder)
    saved = folder / "run" / "checkpoints"
    accuracies = evaluate(bench, seed, folder, {step: saved / f"step_{step}" for step in bench.evaluated})
    shutil.rmtree(saved)
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    per_step, group = completions_per_step(grpo_config(bench.steps))
    drawn = sum(per_step + group * int(line.get("refill_groups", 0)) for line in lines)
    return {"accuracies": accuracies, "seconds": seconds, "completions": drawn}


def train_peer(bench: Bench, seed: int, name: str, folder: Path) -> dict[str, Any]:
    """TRL, from the same weights in Hugging Face's form."""
    begin, saved = start_folder(bench, seed), folder / "run"
    config, tokenizer = grpo_config(bench.steps), begin / "data" / "tokenizer"
    optimizer = config.actor_config.optimizer
    job = {
        "model": begin / "hf",
        "tokenizer_dir": tokenizer,
        "rows": peer_rows(bench, seed, folder),
        "config": peer_config(name, bench.steps) | {"output_dir": saved, "seed": seed},
        "optimizer": {
            "betas": [optimizer.adam_beta1, optimizer.adam_beta2],
            "eps": optimizer.eps,
            "weight_decay": optimizer.weight_decay,
        },
        "lrs": [learning_rate(config.actor_config.lr_schedule, update) for update in range(bench.steps)],
        "stop_id": load_tokenizer(tokenizer).eos_token_id,
        "metrics": folder / "metrics.json",
        "versions": folder / "versions.json",
    }
    write(folder / "job.json", json.dumps(job, default=str))
    words = ("-m", "benchmarks.learning.trl_peer", folder / "job.json")
    seconds = bench.commands.run(folder / "log.txt", bench.peer_python, *words, cwd=folder)
    accuracies = evaluate(bench, seed, folder, {step: saved / f"checkpoint-{step}" for step in bench.evaluated})
    shutil.rmtree(saved)
    versions = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    drawn = bench.steps * completions_per_step(config)[0]
    return {"accuracies": accuracies, "seconds": seconds, "completions": drawn, "versions": versions}


def peer_config(name: str, steps: int) -> dict[str, Any]:
    """Keys of TRL's GRPOConfig that make it do what grpo.yaml tells ours: one update of all completions a step."""
    config = grpo_config(steps)
    sampling, (per_step, group) = config.generate_config.sampling_config, completions_per_step(config)
    return {
        "num_generations": group,
        "per_device_train_batch_size": per_step,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "max_completion_length": sampling.max_tokens,
        "temperature": sampling.temperature,
        "reward_weights": config.reward_config.verifier_weight,
        "max_grad_norm": config.actor_config.optimizer.max_grad_norm,
        "shuffle_dataset": False,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "steps",
        "save_steps": EVERY,
        "save_only_model": True,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        **PEERS[name],
    }


def grpo_config(steps: int) -> RunConfig:
    """What grpo.yaml says, for a run of so many steps; the learning rate falls over at least as many as there."""
    config = load_config(CONFIGS / "grpo.yaml", {}, GRPO_SECTIONS)
    config.rl_config.max_steps = steps
    config.actor_config.lr_schedule.decay_steps = max(config.actor_config.lr_schedule.decay_steps, steps)
    return config


def completions_per_step(config: RunConfig) -> tuple[int, int]:
    """Completions of a step, and of a prompt."""
    group = config.rl_config.num_generations
    return config.rl_config.chunk_size * config.rl_config.num_rollouts * group, group


def peer_rows(bench: Bench, seed: int, folder: Path) -> Path:
    """The prompts of the whole run in the order that ours takes them."""
    data, (per_step, group) = start_folder(bench, seed) / "data", completions_per_step(grpo_config(bench.steps))
    with READING:
        rows, tokenizer = read_mindrecord(data / "train.mindrecord"), load_tokenizer(data / "tokenizer")
    order, lines = RowOrder(len(rows.solutions), per_step // group, seed), []
    for row in (int(row) for step in range(bench.steps) for row in order.indices(step)):
        ids = rows.prompt_ids[row, : rows.prompt_lengths[row]].tolist()
        lines.append({"prompt": tokenizer.decode(ids), "prompt_ids": ids, "solution": rows.solutions[row]})
    write(folder / "rows.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return folder / "rows.jsonl"


def evaluate(bench: Bench, seed: int, folder: Path, checkpoints: dict[int, Path]) -> dict[str, float]:
    """Step → held-out accuracy."""
    data = start_folder(bench, seed) / "data"
    job = {
        "model_config": CONFIGS / "model.yaml",
        "tokenizer_dir": data / "tokenizer",
        "test": data / "test.jsonl",
        "max_tokens": grpo_config(bench.steps).generate_config.sampling_config.max_tokens,
        "checkpoints": checkpoints,
        "output": folder / "accuracies.json",
    }
    write(folder / "evaluation.json", json.dumps(job, default=str))
    words = ("-m", "benchmarks.learning.evaluate", folder / "evaluation.json")
    bench.commands.run(folder / "log.txt", sys.executable, *words, cwd=folder)
    return json.loads((folder / "accuracies.json").read_text(encoding="utf-8"))


class Stages:
    """What the quickstart's functions run their commands with."""

    def __init__(self, commands: Commands, log: Path) -> None:
        self._commands, self._log = commands, log

    def run(self, stage: str, script: str, *flags: object) -> None:
        self._commands.run(self._log, sys.executable, ROOT / script, *flags, cwd=self._log.parent)


def start_folder(bench: Bench, seed: int) -> Path:
    return bench.out / f"seed_{seed}" / "start"


def data_flags(begin: Path, seed: int) -> list[object]:
    data = begin / "data"
    return ["--dataset_file", data / "train.mindrecord", "--tokenizer_dir", data / "tokenizer", "--seed", seed]
