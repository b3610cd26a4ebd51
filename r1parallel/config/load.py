"""Read a run's configuration: defaults, then a YAML file, then the command line's overrides."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from r1parallel.config.keys import list_keys, nearest
from r1parallel.config.schema import RunConfig
from r1parallel.config.values import from_text, from_yaml, kind_name
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


def load_config(path: str | Path | None, overrides: Mapping[str, str], sections: Sequence[str]) -> RunConfig:
    """The configuration of a command that uses `sections`.

    Args:
        path: YAML file, or None for the defaults. A relative `model_config` in it starts at its folder;
            all other paths start at the working directory.
        overrides: dotted key → text, stronger than the file.
        sections: names of `RunConfig`'s fields; any other section is refused.

    Raises:
        UserError: unreadable file, a key that is unknown, given twice or of the wrong type.

    """
    config = RunConfig()
    if path is not None:
        _YamlFile(Path(path), sections).merge_into(config)
    for name, text in overrides.items():
        _override(config, name, text, sections)
    return config


def sections_in(path: str | Path) -> set[str]:
    """Names of the sections that a YAML file, which `load_config` has read before, gives values to."""
    return set(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})


class _YamlFile:
    """One YAML file, kept as nodes so that every message can name the line."""

    def __init__(self, path: Path, sections: Sequence[str]) -> None:
        self.path = path
        self.sections = sections
        self.keys = list(list_keys(sections))

    def merge_into(self, config: RunConfig) -> None:
        try:
            self.loader = yaml.SafeLoader(self.path.read_text(encoding="utf-8"))
            root = self.loader.get_single_node()
        except OSError as error:
            raise UserError(f"--config {self.path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from None
        if root is None:  # a file of comments only
            return
        self._refuse_repeated_keys(root, set())
        self._merge(config, root, "")
        for model in (config.actor_config, config.generate_config):
            if model.model_config:
                model.model_config = str(self.path.parent / model.model_config)

    def _where(self, node: yaml.Node) -> str:
        return f"{self.path}:{node.start_mark.line + 1}"

    def _unreadable(self, error: Exception) -> UserError:
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            line = error.problem_mark.line + 1
            return UserError(f"{self.path}:{line}: not readable as YAML: {error.problem}")
        return UserError(f"{self.path}: not readable as YAML: {' '.join(str(error).split())}")

    def _refuse_repeated_keys(self, node: yaml.Node, seen: set[int]) -> None:
        """YAML itself silently keeps the last of two equal keys. `seen` ends the walk over aliases."""
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            return
        seen.add(id(node))
        first: dict[str, int] = {}
        for item in node.value:
            key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
            if isinstance(key, yaml.ScalarNode):
                if key.value in first:
                    raise UserError(
                        f"{self._where(key)}: {key.value} is given twice, first in line {first[key.value]}; "
                        "remove one of them"
                    )
                first[key.value] = key.start_mark.line + 1
            self._refuse_repeated_keys(value, seen)

    def _merge(self, section: Any, node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            name = prefix.rstrip(".") or "the file"
            raise UserError(f"{self._where(node)}: {name} must hold keys and values, or be left out")
        try:
            self.loader.flatten_mapping(node)  # resolves YAML's merge key <<
        except yaml.YAMLError as error:
            raise self._unreadable(error) from None
        kinds = get_type_hints(type(section))
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if key.value not in kinds or (not prefix and key.value not in self.sections):
                raise UserError(f"{self._where(key)}: {self._unknown(name)}")
            if is_dataclass(kinds[key.value]):
                self._merge(attrgetter(key.value)(section), value, f"{name}.")
            else:
                setattr(section, key.value, self._read(value, kinds[key.value], name))

    def _unknown(self, name: str) -> str:
        if name in {field.name for field in fields(RunConfig)}:
            return f"this command has no use for section {name}; remove it (used: {', '.join(self.sections)})"
        known = self.keys if "." in name else self.sections
        near = nearest(name, [*known, *self.keys])
        return f"unknown key {name}; " + (f"did you mean {near}?" if near else f"known: {', '.join(known)}")

    def _read(self, node: yaml.Node, kind: Any, name: str) -> Any:
        where = f"{self._where(node)}: {name}"
        try:
            value = self.loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self._unreadable(error) from None
        except ValueError as error:  # a date that is none
            raise UserError(f"{where}: {error}; expected {kind_name(kind)}") from None
        if value is None:
            raise UserError(f"{where} is empty; give it a value ({kind_name(kind)}) or leave the key out")
        try:
            return from_yaml(value, kind)
        except ValueError:
            raise UserError(f"{where} is {value!r}; expected {kind_name(kind)}") from None


def _override(config: RunConfig, name: str, text: str, sections: Sequence[str]) -> None:
    keys = list_keys(sections)
    if name not in keys:
        raise UserError(_unknown_override(name, list(keys)))
    *parents, last = name.split(".")
    try:
        value = from_text(text, keys[name].kind)
    except ValueError:
        raise UserError(f"--{name} is {text!r}; expected {kind_name(keys[name].kind)}") from None
    setattr(attrgetter(".".join(parents))(config), last, value)


def _unknown_override(name: str, known: list[str]) -> str:
    inside = [key for key in known if key.startswith(f"{name}.")]
    if inside:
        return f"--{name} is a section; name one of its keys, such as --{inside[0]}"
    near = nearest(name, known)
    return f"unknown flag --{name}; " + (f"did you mean --{near}?" if near else "--help lists all flags")
