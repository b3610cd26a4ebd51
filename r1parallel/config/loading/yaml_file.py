"""One YAML file: its keys, ours and other tools', as values of our keys. Every message names the line."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from r1parallel.config.foreign.key_translation import Given, Table, shown
from r1parallel.config.foreign.mindrlhf import VALUES
from r1parallel.config.keys import Key, nearest
from r1parallel.config.schema import RunConfig
from r1parallel.config.values import from_yaml, kind_name
from r1parallel.errors import UserError


@dataclass(frozen=True)
class Dialect:
    """How a file's keys are to be understood.

    Attributes:
        own: dotted keys that mean what they mean here.
        foreign: other tools' keys; of a name in both, this one counts.
        known: our keys that foreign ones may become.
        sections: sections of the command, for messages.
        places: see `Given.take`.
        read: foreign keys that another reader takes care of.

    """

    own: Mapping[str, Key]
    foreign: Table
    known: Mapping[str, Key]
    sections: Sequence[str]
    places: Mapping[str, str] = field(default_factory=dict)
    read: Sequence[str] = ()


class YamlFile:
    """A file, read as nodes.

    Raises:
        UserError: it cannot be read, or gives a key twice.

    """

    def __init__(self, path: Path, option: str = "--config") -> None:
        self.path = path
        try:
            self.loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
            self.root = self.loader.get_single_node()
        except OSError as error:
            raise UserError(f"{option} {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from None
        if self.root is not None:  # a file of comments only
            self._refuse_repeated_keys(self.root, set())

    def names(self, section: str = "") -> list[str]:
        """Keys at the top of the file, or of one of its sections."""
        node = self._node(section) if section else self.root
        return [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []

    def look(self, name: str, default: Any) -> Any:
        """The value of a dotted key, or `default` where the file has none."""
        node = self._node(name)
        return default if node is None else self.loader.construct_object(node, deep=True)

    def read(self, dialect: Dialect, stronger: Collection[str] = ()) -> Given:
        """Every key of the file as values of ours; see `Given` for `stronger`.

        Raises:
            UserError: a key that is unknown or of the wrong type, or a value that has no counterpart.

        """
        given = Given(stronger=stronger)
        if self.root is None:
            return given
        groups = _groups([*dialect.own, *dialect.foreign, *dialect.read])
        for name, key, value in self._leaves(self.root, "", dialect, groups):
            if name in dialect.foreign:
                given.take(
                    name,
                    self._value(value),
                    dialect.foreign[name],
                    dialect.known,
                    self._where(key),
                    self.look,
                    dialect.places,
                )
            elif name in dialect.own:
                self._take_own(given, name, value, dialect.own[name])
        return given

    def _leaves(
        self, node: yaml.Node, prefix: str, dialect: Dialect, groups: set[str]
    ) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            name = prefix.rstrip(".") or "the file"
            raise UserError(f"{self._where(node)}: {name} must hold keys and values, or be left out")
        try:
            self.loader.flatten_mapping(node)  # resolves YAML's merge key <<
        except yaml.YAMLError as error:
            raise self._unreadable(error) from None
        for key, value in {
            str(key.value): (key, value) for key, value in node.value
        }.values():  # a merged key goes first
            name = f"{prefix}{key.value}"
            other = not prefix and name in _SECTIONS and name not in dialect.sections and name not in dialect.foreign
            if name in dialect.foreign or name in dialect.own or name in dialect.read:
                yield name, key, value
            elif name in groups and not other:
                yield from self._leaves(value, f"{name}.", dialect, groups)
            else:
                raise UserError(f"{self._where(key)}: {_unknown(name, dialect)}")

    def _node(self, name: str) -> yaml.Node | None:
        node = self.root
        for part in name.split("."):
            if not isinstance(node, yaml.MappingNode):
                return None
            node = next((value for key, value in node.value if key.value == part), None)
        return node

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

    def _value(self, node: yaml.Node) -> Any:
        try:
            return self.loader.construct_object(node, deep=True)
        except yaml.YAMLError as error:
            raise self._unreadable(error) from None

    def _take_own(self, given: Given, name: str, node: yaml.Node, key: Key) -> None:
        where = f"{self._where(node)}: {name}"
        try:
            value = self._value(node)
        except ValueError as error:  # a date that is none
            raise UserError(f"{where}: {error}; expected {kind_name(key.kind)}") from None
        value, note = known_value(name, value)
        given.notes += note
        if value is None:
            raise UserError(f"{where} is empty; give it a value ({kind_name(key.kind)}) or leave the key out")
        try:
            given.give(name, from_yaml(value, key.kind), self._where(node))
        except ValueError:
            raise UserError(f"{where} is {value!r}; expected {kind_name(key.kind)}") from None


def known_value(name: str, value: Any) -> tuple[Any, list[str]]:
    """A value of our key `name`, translated where another tool writes it otherwise, and the note that says so."""
    for theirs, (ours, why) in VALUES.get(name, {}).items():
        if value == theirs and type(value) is type(theirs):
            return ours, [f"{name} {shown(value)}: {shown(ours)}" + (f"; {why}" if why else "")]
    return value, []


def value_of_text(text: str) -> Any:
    """The text behind a flag as a YAML file would have it; text that YAML cannot read stands for itself."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


_SECTIONS = {section.name for section in fields(RunConfig)}


def _groups(names: Sequence[str]) -> set[str]:
    """Every dotted name that is the beginning of another."""
    return {name[:at] for name in names for at, sign in enumerate(name) if sign == "."}


def _unknown(name: str, dialect: Dialect) -> str:
    if name in _SECTIONS and dialect.own:
        return f"this command has no use for section {name}; remove it (used: {', '.join(dialect.sections)})"
    own = list(dialect.own)
    known: Sequence[str] = own if "." in name else dialect.sections
    near = nearest(name, [*known, *own]) or nearest(name, [*dialect.foreign, *dialect.read])
    known = known if dialect.own else sorted({key.split(".")[0] for key in dialect.foreign})
    return f"unknown key {name}; " + (f"did you mean {near}?" if near else f"known: {', '.join(known)}")
