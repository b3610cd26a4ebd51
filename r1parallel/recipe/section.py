"""The sections of a recipe's YAML, which know where each of their keys stands."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from r1parallel.config.keys import nearest
from r1parallel.config.loading.yaml_file import YamlFile
from r1parallel.config.values import from_yaml, kind_name
from r1parallel.errors import UserError


class Section:
    """Keys and values of one mapping.

    Attributes:
        name: dotted; empty for the whole file.
        folder: of the file.
        values: key → number, text, list, or another section.

    Args:
        file: that it stands in.
        node: the mapping.
        name: see above.

    Raises:
        UserError: it is no mapping, or one of its keys has no value.
    """

    def __init__(self, file: YamlFile, node: yaml.Node | None, name: str = "") -> None:
        self.name, self.folder, self._path = name, file.path.parent, file.path
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1 if node else 1
            raise UserError(f"{file.path}:{line}: {name or 'a recipe'} must hold keys and values")
        try:
            file.loader.flatten_mapping(node)  # resolves YAML's merge key <<, whose keys go first
        except yaml.YAMLError as error:
            raise UserError(f"{file.path}: not readable as YAML: {error}") from None
        self._lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
        self._line = node.start_mark.line + 1 if name else 0
        self.values: dict[str, Any] = {}
        for key, value in node.value:
            dotted = f"{name}.{key.value}" if name else str(key.value)
            if isinstance(value, yaml.MappingNode):
                self.values[str(key.value)] = Section(file, value, dotted)
            else:
                self.values[str(key.value)] = file.loader.construct_object(value, deep=True)
        for key, value in self.values.items():
            if value is None:
                raise self.error(key, "is empty; give it a value or leave it out")

    def error(self, key: str, message: str) -> UserError:
        """A mistake in the value of `key`, which may be missing; empty: in the section."""
        line = self._lines.get(key, self._line)
        where = f"{self._path}:{line}" if line else str(self._path)
        return UserError(f"{where}: {'.'.join(filter(None, (self.name, key)))}: {message}")

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raise `UserError` for the first key that is none of the known."""
        for key in self.values:
            if key not in known:
                near = nearest(key, list(known))
                hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
                raise self.error(key, f"unknown key; {hint}")

    def take(self, key: str, default: Any) -> Any:
        """The value of `key`, of the default's type; the default where the recipe leaves it out."""
        if key not in self.values:
            return default
        try:
            return from_yaml(self.values[key], type(default))
        except ValueError:
            raise self.error(key, f"expected {kind_name(type(default))}") from None

    def need(self, key: str) -> str:
        """The text of a key that must be there."""
        text: str = self.take(key, "")
        if not text:
            raise self.error(key, "is missing; add it")
        return text

    def section(self, key: str) -> "Section":
        """The section `key`."""
        section = self.values[key]
        if not isinstance(section, Section):
            raise self.error(key, "expected keys and values")
        return section

    def sections(self) -> dict[str, "Section"]:
        """Every key as a section."""
        return {key: self.section(key) for key in self.values}

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Any, "Section"]]:
        """(name, dotted from here; value; section that holds it) of everything that is no section."""
        for key, value in self.values.items():
            if isinstance(value, Section):
                yield from value.leaves(f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value, self


def read_sections(path: Path) -> Section:
    """The whole file.

    Raises:
        UserError: it cannot be read, gives a key twice or leaves one empty.
    """
    file = YamlFile(path)
    return Section(file, file.root)
