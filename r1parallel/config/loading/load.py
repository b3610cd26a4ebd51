"""Read a run's configuration: defaults, a preset, mindformers' files, the YAML file, then the command line."""

import os
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from r1parallel.config.foreign import mindrlhf as foreign_mindrlhf
from r1parallel.config.foreign import mindspeed as foreign_mindspeed
from r1parallel.config.foreign.key_translation import Given, Table, merged
from r1parallel.config.keys import Key, closest, list_keys, nearest
from r1parallel.config.loading.model_files import check_same_sizes, is_mindformers, read_mindformers, read_model_file
from r1parallel.config.loading.yaml_file import Dialect, YamlFile, known_value, value_of_text
from r1parallel.config.presets import PRESETS
from r1parallel.config.schema import RunConfig
from r1parallel.config.values import from_text, kind_name
from r1parallel.errors import UserError

SFT_SECTIONS = ("sft_config", "actor_config", "context", "monitor_config")
GRPO_SECTIONS = (
    "rl_config",
    "actor_config",
    "ref_config",
    "reward_config",
    "generate_config",
    "context",
    "monitor_config",
)
PREDICT_SECTIONS = ("generate_config", "context")
_REFERENCE_FILE = "ref_config.model_config"  # mindrlhf's; the reference has the actor's sizes
_SFT_PLACES = {"model": "actor_config", "train": "actor_config", "run": "sft_config", "host": "context"}
_ALGORITHM = "rl_config.algorithm"


def load_config(
    path: str | Path | None, overrides: Mapping[str, str], sections: Sequence[str], notes: Sequence[str] = ()
) -> RunConfig:
    """The configuration of a command that uses `sections`. Rank 0 prints a note for every key of another tool,
    and for every value that a file keeps from the preset of the command line.

    Args:
        path: YAML file, or None for the defaults. A relative `model_config` in it starts at its folder, or, where
            that has no such file, at the working directory; all other paths start at the working directory.
        overrides: dotted key → text, stronger than the file.
        sections: names of `RunConfig`'s fields; any other section is refused.
        notes: printed before the file's.

    Raises:
        UserError: unreadable file, a key that is unknown, given twice or of the wrong type, an unknown algorithm.

    """
    known = list_keys(sections)
    flags = _read_overrides(overrides, known, sections)
    reference = str(overrides.get(_REFERENCE_FILE, ""))
    file, is_sft_file = Given(), False
    if path is not None:
        source = YamlFile(Path(path))
        is_sft_file = is_mindformers(source) and "sft_config" in sections
        file = _read_file(source, known, sections, is_sft_file)
        reference = reference or _from_folder(source.path, str(source.look(_REFERENCE_FILE, "")), file.notes)
    values = {**file.values, **flags.values}
    models = Given()
    if not is_sft_file:
        models = _read_models(values, reference, known, sections, file)
    preset = _preset(values)
    kept = _kept_from_preset(preset, file.values, flags.values)
    values = {**preset, **models.values, **values}
    for key, message in {**models.needed, **file.needed}.items():
        if key not in values:
            raise UserError(message)
    config = RunConfig()
    for key, value in values.items():
        *parents, last = key.split(".")
        setattr(attrgetter(".".join(parents))(config), last, value)
    foreign = [*notes, *flags.notes, *file.notes, *models.notes]
    _print([*kept, *foreign, *(_differences(config, sections) if foreign else [])])
    return config


def sections_in(path: str | Path) -> set[str]:
    """Names of the sections that a YAML file, which `load_config` has read before, gives values to."""
    file = YamlFile(Path(path))
    return set(_SFT_PLACES.values()) if is_mindformers(file) else set(file.names())


def foreign_keys(sections: Sequence[str], mindspeed: bool = False) -> Table:
    """Other tools' keys that a command with `sections` understands, in a file of ours, mindrlhf's or MindSpeed-RL's."""
    known = list_keys(sections)
    first, second = foreign_mindrlhf.KEYS, foreign_mindspeed.KEYS
    if mindspeed:
        first, second = second, first
    else:
        second = {name: fate for name, fate in second.items() if name not in known}
    grpo = _unused_keys(sections)
    sections_of_ours = set(vars(RunConfig()))
    return {
        name: fate
        for name, fate in merged(grpo, first, second).items()
        if name.split(".")[0] in sections or name.split(".")[0] not in sections_of_ours
    }


def _unused_keys(sections: Sequence[str]) -> Table:
    """Keys of ours that are for another command."""
    return foreign_mindrlhf.GRPO_KEYS if "rl_config" in sections and "sft_config" not in sections else {}


def _read_file(source: YamlFile, known: Mapping[str, Key], sections: Sequence[str], is_sft_file: bool) -> Given:
    if is_sft_file:
        given = read_mindformers(source, known, sections, _SFT_PLACES)
        given.values["actor_config.model_config"] = str(source.path)
        return given
    mindspeed = not set(foreign_mindspeed.MARKS).isdisjoint(source.names("rl_config"))
    given = source.read(Dialect(known, foreign_keys(sections, mindspeed), known, sections))
    for model in ("actor_config", "generate_config"):
        key = f"{model}.model_config"
        if given.values.get(key):
            given.values[key] = _from_folder(source.path, given.values[key], given.notes)
    return given


def _from_folder(file: Path, path: str, notes: list[str]) -> str:
    """Where a relative `model_config` is: beside the file that names it, else in the working directory."""
    beside = file.parent / path
    if not path or beside.exists() or not Path(path).exists():
        return str(beside) if path else ""
    notes.append(f"model_config {path}: not in the folder of {file.name}; taken from the working directory")
    return path


def _read_models(
    values: Mapping[str, Any], reference: str, known: Mapping[str, Key], sections: Sequence[str], file: Given
) -> Given:
    """What mindformers' files that are named as `model_config` give."""
    paths = {
        "actor_config": values.get("actor_config.model_config", ""),
        "ref_config": reference,
        "generate_config": values.get("generate_config.model_config", ""),
    }
    usable = {name: key for name, key in known.items() if name not in _unused_keys(sections)}
    together = Given()
    for section, path in paths.items():
        if path and section in sections:
            given = read_model_file(section, Path(path), usable, sections, file.values)
            together.values.update(given.values)
            together.needed.update(given.needed)
            again = path in list(paths.values())[: list(paths).index(section)]  # its other keys have their notes
            together.notes += [note for note in given.notes if f"{section}." in note or not again]
    if "rl_config" in sections:
        if reference and not Path(reference).is_file():
            raise UserError(f"{_REFERENCE_FILE}: {reference}: no such file; remove the key, the actor's sizes count")
        check_same_sizes(paths.pop("actor_config"), paths)
    return together


def _preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the algorithm that is named, by dotted key."""
    name = values.get(_ALGORITHM, "grpo")
    if name not in PRESETS:
        near = closest(name, list(PRESETS))
        raise UserError(
            f"{_ALGORITHM} is {name!r}; " + (f"did you mean {near}?" if near else f"known: {', '.join(PRESETS)}")
        )
    return {f"rl_config.{key}": value for key, value in PRESETS[name].items()}


def _kept_from_preset(preset: Mapping[str, Any], file: Mapping[str, Any], flags: Mapping[str, Any]) -> list[str]:
    """A line for each value of the file that a preset named on the command line would have set otherwise."""
    if _ALGORITHM not in flags:
        return []
    return [
        f"{key} stays {file[key]!r} as the file has it; {flags[_ALGORITHM]} has {value!r}"
        for key, value in preset.items()
        if key in file and key not in flags and file[key] != value
    ]


def _read_overrides(overrides: Mapping[str, str], known: Mapping[str, Key], sections: Sequence[str]) -> Given:
    given, foreign = Given(), foreign_keys(sections)
    for name, text in overrides.items():
        if name in known and name not in foreign:
            try:
                value = from_text(text, known[name].kind)
            except ValueError:
                raise UserError(f"--{name} is {text!r}; expected {kind_name(known[name].kind)}") from None
            given.values[name], note = known_value(name, value)
            given.notes += note
        elif name in foreign:
            one = Given()
            one.take(name, value_of_text(text), foreign[name], known, f"--{name}", lambda _, default: default)
            given.values.update(one.values)
            given.notes += one.notes
        else:
            raise UserError(_unknown_override(name, list(known), list(foreign)))
    return given


def _unknown_override(name: str, known: list[str], foreign: list[str]) -> str:
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside:
        return f"--{name} is a section; name one of its keys, such as --{inside[0]}"
    near = nearest(name, known) or nearest(name, foreign)
    return f"unknown flag --{name}; " + (f"did you mean --{near}?" if near else "--help lists all flags")


def _print(notes: Sequence[str]) -> None:
    """Print the notes once for a job; a rank that msrun has not told its number prints too."""
    if os.environ.get("RANK_ID", "0") == "0":
        for note in notes:
            print(f"note: {note}", flush=True)


def _differences(config: RunConfig, sections: Sequence[str]) -> list[str]:
    """What a file of mindrlhf means there without saying so."""
    if "rl_config" not in sections:
        return []
    found = []
    if "qwen" in config.rl_config.model_name.lower() and "accuracy_reward" in config.reward_config.verifier_function:
        found.append(
            "reward_config.verifier_function accuracy_reward: the last number, as it says; mindrlhf silently takes "
            "qwen_accuracy_reward (the last \\boxed{}) where model_name has qwen in it"
        )
    layout = config.actor_config.parallel_config
    if layout.pipeline_stage == 1 and layout.micro_batch_num > 1:
        found.append(
            f"actor_config.parallel_config.micro_batch_num {layout.micro_batch_num}: counts without a pipeline too, "
            "each update has so many micro-batches; mindrlhf would take 1"
        )
    return found
