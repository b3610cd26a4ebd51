"""A recipe of a few steps, and what stands in for its commands."""

import json
from pathlib import Path
from typing import Any, ClassVar

import yaml
from helpers.tiny_runs import SIZES

ROWS = {"problems": "train", "prompt_type": "raw", "max_prompt_length": 6, "seq_length": 30}


def toy_recipe(folder: Path) -> dict[str, Any]:
    """The values of a recipe whose results go to folder/run; each call gives new ones."""
    return {
        "output_dir": str(folder / "run"),
        "stage_limit": 300,
        "problems": {
            "test": {"kind": "arithmetic", "num": 10, "digits": [1, 2], "seed": 1},
            "train": {"kind": "arithmetic", "num": 32, "digits": [1, 2], "exclude": ["test"]},
        },
        "data": {"sft": dict(ROWS), "grpo": dict(ROWS)},
        "sft": {
            "sft_config": {"max_steps": 2, "batch_size": 4},
            "actor_config": {"model_config": "model.yaml", "lr_schedule": {"lr": "1e-2"}},
            "monitor_config": {"progress_bar": False, "report": False},
        },
        "grpo": {
            "config": "grpo.yaml",
            "rl_config": {"max_steps": 2, "algorithm": "dr_grpo"},
            "generate_config": {"sampling_config": {"max_tokens": 6}},
        },
        "export": {"names": "hf"},
        "evaluate": {
            "problems": "test",
            "prompt_type": "raw",
            "max_new_tokens": 6,
            "verifier_function": "answer_reward",
        },
    }


GRPO = {
    "rl_config": {"max_steps": 9, "batch_size": 4, "num_generations": 4, "num_rollouts": 1, "chunk_size": 2},
    "actor_config": {"model_config": "model.yaml", "parallel_config": {"micro_batch_num": 2}},
    "reward_config": {"verifier_function": ["format_reward", "answer_reward"], "verifier_weight": [0.5, 1.0]},
    "generate_config": {"infer_model_batch_size": 8, "max_prompt_length": 6},
    "monitor_config": {"progress_bar": False, "report": False},
}


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """Write r1.yaml, and the model.yaml and grpo.yaml that it names."""
    for name, content in (("model", SIZES), ("grpo", GRPO), ("r1", values)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "r1.yaml"


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """`values` with a dotted key set, or removed where the value is None."""
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return values


class StandIn:
    """In the place of `Stages`: notes the commands and makes what they would make."""

    calls: ClassVar[list[tuple[str, str, list[str]]]] = []
    fails_at = ""

    def __init__(self, root: Path, log: Path, limit_s: float) -> None:
        self.seconds: dict[str, float] = {}

    def run(self, stage: str, script: str, *flags: str) -> str:
        type(self).calls.append((stage, script, list(flags)))
        if stage == type(self).fails_at:
            raise RuntimeError(stage)
        self.seconds[stage] = 1.5
        made = {"make_problems": "output_path", "preprocess_data": "output_path", "evaluate": "output"}
        flag = made.get(Path(script).stem, "output_path")
        names = [f"--{flag}", "--sft_config.output_dir", "--rl_config.output_dir"]
        output = Path(next(flags[flags.index(name) + 1] for name in names if name in flags))
        if stage in ("sft", "grpo"):
            output.mkdir(exist_ok=True)
            (output / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
        else:
            output.touch()
        return json.dumps({"accuracy": 0.25 * len(type(self).calls) % 1, "num_problems": 10})
