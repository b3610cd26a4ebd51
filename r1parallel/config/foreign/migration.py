"""Print docs/migration.md: `python -m r1parallel.config.foreign.migration > docs/migration.md`."""

from collections.abc import Mapping

from r1parallel.config.foreign import mindformers as foreign_mindformers
from r1parallel.config.foreign import mindrlhf as foreign_mindrlhf
from r1parallel.config.foreign import mindspeed as foreign_mindspeed
from r1parallel.config.foreign.key_translation import Fate, shown
from r1parallel.config.foreign.mindrlhf import Flag
from r1parallel.config.model import MINDFORMERS_SIZES

_INTRODUCTION = """\
# Coming from mindrlhf, mindformers or MindSpeed-RL

This page is made from the tables in `r1parallel/config/foreign/` by `python -m r1parallel.config.foreign.migration`.

Files and flags of these tools are read as they are. Before anything is loaded, rank 0 prints one line for each key or
flag that has another name or no meaning here:

    note: rl_config.deterministic OFF: no key here; CPU runs are deterministic
    note: --mind_dataset_dir train.mindrecord: rl_config.dataset_file train.mindrecord

A key that has the same name and meaning gets no line. A value that would change what is computed, and that cannot be
had here, is refused in one line. So is a key that none of these tools knows.

## Launch commands

`main.py` becomes `run_grpo.py`; everything else stays:

    msrun --worker_num=8 --local_worker_num=8 --master_addr=127.0.0.1 --master_port=9887 --join=True \\
      --log_dir=./log run_grpo.py --config grpo_config.yaml --dataset_file train.mindrecord \\
      --tokenizer_dir Qwen2.5-7B --actor_checkpoint_path Qwen2.5-7B --ref_checkpoint_path Qwen2.5-7B \\
      --generate_checkpoint_path Qwen2.5-7B --verifier_function "qwen_accuracy_reward,format_reward" \\
      --verifier_weight "1.0,1.0" --save_checkpoint_dir ckpt

The words `section.key=value` of later versions are understood too. `run_mindformer.py --config finetune.yaml
--run_mode finetune` becomes `run_sft.py` with the same flags.

## What differs without a key that says so

- Sampling: mindrlhf ships temperature 0.8, top_p 0.8, top_k 20, repetition_penalty 1.05 and min_tokens 2, and trains as
  if completions had been drawn from the policy. Here all but the temperature are refused, unless
  `rl_config.rollout_correction` corrects for them; the temperature is applied in the loss too.
- `accuracy_reward` is the last number. mindrlhf takes `qwen_accuracy_reward` in its place where `model_name` has qwen
  in it; here the name decides, and a line says so.
- `micro_batch_num` counts without a pipeline too: an update has batch_size × data_parallel × micro_batch_num rows.
- The generator starts from the actor's weights; a checkpoint of its own is not read.
- A relative `model_config` starts at the folder of the file that names it. Where there is no such file, the working
  directory is tried, as mindrlhf does, and a line says so.
- The files of actor, reference and generator must have the same sizes.
"""
_MINDFORMERS = """\
A mindformers YAML is understood as `--config` of `run_sft.py`, and as `model_config` of the actor, the reference and
the generator in `run_grpo.py`. In GRPO its parallel_config and recompute_config count only where the run's own file has
none, as in mindrlhf; the optimizer, the schedule and the weights are always the run's.

The sizes are read from `model.model_config`, of a `LlamaConfig` or a `Qwen2Config`; `qkv_has_bias` must be on, and
there is no dropout and no scaled rotary embedding.

`total_steps: -1` and `warmup_ratio` ask for the length of the run, which is not known before the data are read: give
`--actor_config.lr_schedule.decay_steps` and `--actor_config.lr_schedule.warmup_step`.

`actor_config` stands for the section of the model that the file describes.
"""
_MINDSPEED = """\
The keys of MindSpeed-RL's `rl_config` are understood in a file with our sections; its other sections hold Megatron's
options and are refused. A file that has one of the keys {marks} is taken for MindSpeed-RL's, so that keys which we
have too mean what they mean there.
"""
_PLACES = {"model": "actor_config", "train": "actor_config", "run": "sft_config", "host": "context"}


def migration_page() -> str:
    """The markdown page: commands, differences, and a table for each tool."""
    sizes = {
        f"model.model_config.{name}": Fate((f"{ours} of model.yaml",) if ours else (), "" if ours else "checked")
        for name, ours in MINDFORMERS_SIZES.items()
    }
    marks = ", ".join(f"`{name}`" for name in foreign_mindspeed.MARKS)
    parts = [
        _INTRODUCTION,
        "## mindrlhf: keys of grpo_config.yaml\n\n" + _table({**foreign_mindrlhf.KEYS, **foreign_mindrlhf.GRPO_KEYS}),
        "## mindrlhf: values that are written otherwise\n\n" + _values(),
        "## mindrlhf: flags\n\n" + _flags(foreign_mindrlhf.FLAGS),
        "## mindformers: keys\n\n" + _MINDFORMERS + "\n" + _table({**foreign_mindformers.KEYS, **sizes}),
        "## mindformers: flags of run_mindformer.py\n\n" + _flags(foreign_mindformers.FLAGS),
        "## MindSpeed-RL: keys of rl_config\n\n"
        + _MINDSPEED.format(marks=marks)
        + "\n"
        + _table(foreign_mindspeed.KEYS),
    ]
    return "\n".join(parts)


def _table(table: Mapping[str, Fate], sign: str = "") -> str:
    rows = ["| there | here | note |", "|---|---|---|"]
    for name, fate in table.items():
        keys = ", ".join(f"`{_placed(key)}`" for key in fate.to) or "–"
        allowed = f"only {' or '.join(shown(value) for value in fate.only)}: " if fate.only else ""
        rows.append(f"| `{sign}{name}` | {keys} | {allowed}{fate.text} |")
    return "\n".join(rows) + "\n"


def _flags(flags: Mapping[str, Flag]) -> str:
    return _table({name: flag.fate for name, flag in flags.items()}, "--")


def _values() -> str:
    rows = ["| key | there | here | note |", "|---|---|---|---|"]
    for name, values in foreign_mindrlhf.VALUES.items():
        rows += [f"| `{name}` | {shown(theirs)} | {shown(ours)} | {why} |" for theirs, (ours, why) in values.items()]
    return "\n".join(rows) + "\n"


def _placed(key: str) -> str:
    place, colon, name = key.partition(":")
    return f"{_PLACES[place]}.{name}" if colon else key


if __name__ == "__main__":
    print(migration_page(), end="")
