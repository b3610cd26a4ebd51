"""Print docs/configuration.md: `python -m r1parallel.config.loading.reference > docs/configuration.md`."""

import inspect
from dataclasses import fields

from r1parallel.config.keys import Key, help_texts, list_keys
from r1parallel.config.loading.command_line import ALIASES
from r1parallel.config.loading.load import GRPO_SECTIONS, PREDICT_SECTIONS, SFT_SECTIONS
from r1parallel.config.schema import RunConfig
from r1parallel.config.values import kind_name, value_text

_INTRODUCTION = """\
# Configuration

This page is made from `r1parallel/config/schema.py` by `python -m r1parallel.config.loading.reference`.

A run starts from the defaults, then takes the preset of `rl_config.algorithm`, wherever that is given, then the YAML
file of `--config`, then the flags of the command line. The presets are in `r1parallel/config/presets.py`.
Every key is also a flag: `--actor_config.lr_schedule.lr 1e-6`, `--actor_config.lr_schedule.lr=1e-6` or
`actor_config.lr_schedule.lr=1e-6`.
A flag is stronger than the file, but only for the key it names; of a flag given twice, the last counts.
Lists are separated by commas. A flag of a true-or-false key may stand alone and then means true.

A key or section that is unknown, or that the command has no use for, is refused with the nearest known name.
So are values of another type, empty values and keys given twice.

Files and flags of mindrlhf, mindformers and MindSpeed-RL are understood, see [migration](migration.md).

A relative `model_config` in a file starts at the file's folder, or, where that has no such file, at the working
directory. All other paths start at the working directory.

The shipped files lie in `model_configs/<model>/`: `model.yaml` (sizes), `sft.yaml`, `grpo.yaml` and
`predict.yaml`.
"""


def reference_page() -> str:
    """The markdown page: which command uses which section, short flags, and all keys."""
    sections = [field.name for field in fields(RunConfig)]
    keys = list_keys(sections)
    texts = help_texts(keys.values())
    parts = [_INTRODUCTION, _commands(), _short_flags()]
    for section in sections:
        own = [key for key in keys.values() if key.name.startswith(f"{section}.")]
        summary = inspect.getdoc(type(vars(RunConfig())[section]))
        parts.append(f"## {section}\n\n{summary}\n\n{_table(own, texts)}")
    return "\n".join(parts)


def _commands() -> str:
    rows = ["| command | sections |", "|---|---|"]
    for command, used in (("SFT", SFT_SECTIONS), ("GRPO", GRPO_SECTIONS), ("generation", PREDICT_SECTIONS)):
        rows.append(f"| {command} | {', '.join(f'`{name}`' for name in used)} |")
    return "## Which command uses which section\n\n" + "\n".join(rows) + "\n"


def _short_flags() -> str:
    rows = ["| flag | key |", "|---|---|", *(f"| `--{flag}` | `{name}` |" for flag, name in ALIASES.items())]
    note = "In SFT, a short flag of `rl_config` means the same key of `sft_config`.\n"
    return "## Short flags\n\n" + "\n".join(rows) + "\n\n" + note


def _table(keys: list[Key], texts: dict[str, str]) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = f"`{value_text(key.default)}`" if value_text(key.default) else "empty"
        rows.append(f"| `{key.name}` | {kind_name(key.kind)} | {default} | {_escape(texts[key.name])} |")
    return "\n".join(rows) + "\n"


def _escape(text: str) -> str:
    """Signs that markdown would take for a column or for HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    print(reference_page(), end="")
