"""The SFT and the GRPO run of a recipe: their flags, checked as the commands themselves check them."""

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from r1parallel.config.checks import check_config, check_paths
from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.loading.load import GRPO_SECTIONS, SFT_SECTIONS
from r1parallel.config.model import ModelConfig, load_model_config
from r1parallel.config.schema import RunConfig
from r1parallel.config.values import value_text
from r1parallel.errors import UserError
from r1parallel.recipe.section import Section
from r1parallel.rewards import check_reward_names


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        flags: of run_sft.py or run_grpo.py.
        config: what they mean.
        sizes: of the model.
    """

    flags: list[str]
    config: RunConfig
    sizes: ModelConfig

    def settings(self, sections: Collection[str]) -> dict[str, Any]:
        """Every key that the command reads, by dotted name, but `_NOT_COMPARED`."""
        settings = dict(_flat({key: value for key, value in asdict(self.config).items() if key in sections}))
        settings.pop(_NOT_COMPARED, None)
        return settings


@dataclass(frozen=True)
class Kind:
    """What a run's command is called and which of its keys the recipe gives.

    Attributes:
        script: for one process; `launcher` for several.
        launcher: see there.
        sections: of its configuration.
        keys: what the recipe knows → dotted key.
    """

    script: str
    launcher: str
    sections: Sequence[str]
    keys: dict[str, str]


KINDS = {
    "sft": Kind(
        "run_sft.py",
        "scripts/run_sft.py",
        SFT_SECTIONS,
        {
            "data": "sft_config.dataset_file",
            "held_out": "sft_config.eval_dataset_file",
            "tokenizer": "sft_config.tokenizer_dir",
            "start": "actor_config.load",
            "output": "sft_config.output_dir",
            "strategy": "sft_config.save_strategy_dir",
        },
    ),
    "grpo": Kind(
        "run_grpo.py",
        "scripts/run_grpo.py",
        GRPO_SECTIONS,
        {
            "data": "rl_config.dataset_file",
            "tokenizer": "rl_config.tokenizer_dir",
            "start": "actor_config.load",
            "output": "rl_config.output_dir",
            "strategy": "rl_config.save_strategy_dir",
        },
    ),
}
# Changes no result, and markers of older versions do not have it.
_NOT_COMPARED = "sft_config.save_strategy_dir"
_ITSELF = ("sft_config.resume_training", "rl_config.resume_training")  # run_r1.py --resume says it


def plan_training(section: Section, kind: Kind, workers: int, known: dict[str, Path]) -> Training:
    """Flags of a run with the section's keys and what the recipe knows: key of `kind.keys` → path.

    Raises:
        UserError: whatever the command would refuse before it reads its data and its model.
    """
    given = {kind.keys[key]: str(path) for key, path in known.items()}
    section.refuse_unknown(["config", *kind.sections])
    words = []
    if "config" in section.values:
        words += ["--config", str(section.folder / section.need("config"))]
    for name, value, place in section.leaves():
        if name == "config":
            continue
        if name in given or name in _ITSELF:
            raise place.error(name.split(".")[-1], "the recipe gives this key itself; leave it out")
        words += [f"--{name}", _text(place, name, value)]
    words += [word for key, path in given.items() for word in (f"--{key}", path)]
    try:
        config = parse_command_line(words, kind.sections, kind.script, "")
        check_config(config, kind.sections, workers)
        check_paths(_without(config, given), kind.sections)
        if "reward_config" in kind.sections:
            check_reward_names(config.reward_config.verifier_function)
        sizes = load_model_config(config.actor_config.model_config)
    except UserError as error:
        raise _at_its_line(section, error) from None
    for key, path in given.items():
        _set(config, key, path)
    return Training(words, config, sizes)


def _text(place: Section, name: str, value: Any) -> str:
    """A value as the flag's text; a relative model_config starts at the recipe's folder, as in every YAML of a run."""
    if isinstance(value, list) and any("," in str(item) for item in value):
        raise place.error(name.split(".")[-1], f"is {value!r}; flags cannot hold a comma, so put it in the config file")
    if name.endswith(".model_config") and isinstance(value, str) and value:
        return str(place.folder / value)
    return value_text(value)


def _without(config: RunConfig, keys: Collection[str]) -> RunConfig:
    """The recipe checks the paths that it gives: some are yet to be made."""
    for key in keys:
        _set(config, key, "")
    return config


def _set(config: RunConfig, key: str, value: str) -> None:
    section, _, name = key.rpartition(".")
    setattr(attrgetter(section)(config), name, value)


def _at_its_line(section: Section, error: UserError) -> UserError:
    """The message of a command, with the line of the key that it is about where that is in the recipe."""
    message, found = str(error), []
    for name, _, place in section.leaves():
        if "." in name and (match := re.search(rf"\b{re.escape(name)}\b", message)):
            found.append((match.start(), name.split(".")[-1], place))
    _, key, place = min(found, key=lambda item: item[0], default=(0, "", section))
    return place.error(key, message)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs
