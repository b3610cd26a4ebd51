"""What becomes of a key of another tool: the mechanism. The tables are `foreign_mindrlhf` and its neighbours."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from r1parallel.config.keys import Key
from r1parallel.config.values import from_yaml, kind_name
from r1parallel.errors import UserError

# Reads another dotted key of the same file; the second argument is returned where the file has none.
Look = Callable[[str, Any], Any]
_LONGEST = 60  # characters of one value in a note


@dataclass(frozen=True)
class Fate:
    """What becomes of one foreign key.

    Attributes:
        to: our keys; empty: the key means nothing here. A part before a colon stands for a section, see `Given.take`.
        text: why it means nothing here, or what the new name alone does not say.
        convert: their value → ours: one value for all of `to`, or a dict with some of them or none. None means that
            something else must give them a value, and `needed` is what a refusal says. ValueError refuses the value.
        only: the values that change nothing; every other one is refused.
        needed: see `convert`.

    """

    to: tuple[str, ...] = ()
    text: str = ""
    convert: Callable[[Any, Look], Any] | None = None
    only: tuple[object, ...] = ()
    needed: str = ""


Table = Mapping[str, Fate]


def renamed(*to: str, text: str = "", convert: Callable[[Any, Look], Any] | None = None, needed: str = "") -> Fate:
    """A key that has another name here."""
    return Fate(to, text, convert, (), needed)


def without_meaning(text: str, *names: str) -> dict[str, Fate]:
    """Keys that mean nothing here, whatever their value."""
    return {name: Fate((), text) for name in names}


def only(values: tuple[object, ...], text: str) -> Fate:
    """A key that means nothing here as long as it has one of `values`."""
    return Fate((), text, None, values)


def merged(*tables: Table) -> dict[str, Fate]:
    """One table of several; of two entries for a key the first counts."""
    return {name: fate for table in reversed(tables) for name, fate in table.items()}


@dataclass
class Given:
    """What one source gives.

    Attributes:
        values: by dotted key.
        notes: to print, one for each foreign key.
        needed: dotted keys that something else must give → what a refusal says.
        stronger: keys, and sections inside sections, that a stronger source gives.

    """

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    needed: dict[str, str] = field(default_factory=dict)
    stronger: Collection[str] = ()

    def take(
        self,
        name: str,
        value: Any,
        fate: Fate,
        known: Mapping[str, Key],
        where: str,
        look: Look,
        places: Mapping[str, str] | None = None,
    ) -> None:
        """Translate one foreign key and note what it became.

        Args:
            name: the foreign key.
            value: as YAML has it.
            fate: its entry in a table.
            known: our keys that the command uses.
            where: begins the message of a refusal.
            look: other keys of the same file.
            places: section that stands for the part before a colon in `fate.to`; a part that is missing is of no use.

        Raises:
            UserError: the value cannot be translated, or gives a key another value than the same file did before.

        """
        if fate.only and value not in fate.only:
            allowed = " or ".join(shown(item) for item in fate.only)
            raise UserError(f"{where}: {name} is {shown(value)}, which has no counterpart: {fate.text}; set {allowed}")
        targets = {target: _placed(target, places or {}) for target in fate.to}
        usable = {target: key for target, key in targets.items() if key in known}
        free = {target: key for target, key in usable.items() if not self._is_stronger(key)}
        outcome = "no key here"
        if free:
            results = _converted(name, value, fate, where, look)
            if results is None:
                self.needed.update(dict.fromkeys(free.values(), f"{where}: {name} is {shown(value)}; {fate.needed}"))
            parts = []
            for key, result in ((free[target], item) for target, item in (results or {}).items() if target in free):
                self.give(key, _typed(result, known[key], where, name), where)
                parts.append(f"{key} {shown(self.values[key])}")
            outcome = ", ".join(parts) or f"not taken for {', '.join(free.values())}"
        elif usable:
            outcome = f"not taken, for the run itself gives {', '.join(usable.values())}"
        elif fate.to:
            outcome = "of no use to this command"
        self.notes.append(f"{name} {shown(value)}: {outcome}" + (f"; {fate.text}" if fate.text else ""))

    def _is_stronger(self, key: str) -> bool:
        return key in self.stronger or key.rpartition(".")[0] in self.stronger

    def give(self, key: str, value: Any, where: str) -> None:
        """Set one of our keys.

        Raises:
            UserError: the same source gave it another value before.

        """
        if self.values.get(key, value) != value:
            raise UserError(
                f"{where}: {key} would be {shown(value)}, but another key of this file makes it "
                f"{shown(self.values[key])}; remove one of them"
            )
        self.values[key] = value


def shown(value: Any) -> str:
    """A value in one line, with every key that it holds."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    text = " ".join(str(value).split()) or "''"
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def _placed(target: str, places: Mapping[str, str]) -> str:
    place, colon, key = target.partition(":")
    if not colon:
        return target
    return f"{places[place]}.{key}" if place in places else ""


def _converted(name: str, value: Any, fate: Fate, where: str, look: Look) -> dict[str, Any] | None:
    if fate.convert is None:
        return dict.fromkeys(fate.to, value)
    try:
        result = fate.convert(value, look)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {name} is {shown(value)}: {error}") from None
    return result if result is None or isinstance(result, dict) else dict.fromkeys(fate.to, result)


def _typed(value: Any, key: Key, where: str, name: str) -> Any:
    try:
        return from_yaml(value, key.kind)
    except ValueError:
        raise UserError(
            f"{where}: {name}, which is {key.name} here, is {shown(value)}; expected {kind_name(key.kind)}"
        ) from None
