"""A section of a recipe as the flags of a tool, checked by the parser that the tool itself has."""

import argparse
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from r1parallel.errors import UserError
from r1parallel.recipe.section import Section


class _Parser(argparse.ArgumentParser):
    """Raises in the place of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class ToolFlags:
    """The flags of one call of a tool.

    Attributes:
        values: flag → value, what the recipe says and what it implies.
        words: the same as a command line.
        args: the same as the tool's parser reads it.

    Args:
        section: its keys are flags of the tool.
        add_flags: adds the tool's flags to a parser.
        implied: flags that the recipe gives, with their values; None: left out.
        own: keys of the section that are no flags, or stand for one of `implied`.

    Raises:
        UserError: a key is no flag of the tool, or its value is none that the tool takes.
    """

    def __init__(
        self,
        section: Section,
        add_flags: Callable[[argparse.ArgumentParser], None],
        implied: dict[str, Any],
        own: Collection[str] = (),
    ) -> None:
        parser = _Parser(add_help=False, allow_abbrev=False)
        add_flags(parser)
        flags = {word[2:]: action for action in parser._actions for word in action.option_strings}
        section.refuse_unknown([*own, *flags])
        given = {key: value for key, value in section.values.items() if key not in own}
        for key in given:
            if key in implied:
                raise section.error(key, "the recipe gives this flag itself; leave it out")
        self.values = given | {key: value for key, value in implied.items() if value is not None}
        self.words: list[str] = []
        for key, value in self.values.items():
            self.words += _words(section, key, value, is_switch=flags[key].nargs == 0)
        try:
            self.args = parser.parse_args(self.words)
        except UserError as error:
            message = str(error)
            about = next((key for key in given if f"argument --{key}:" in message), "")
            raise section.error(about, message.removeprefix(f"argument --{about}: ")) from None


def _words(section: Section, key: str, value: Any, is_switch: bool) -> list[str]:
    if is_switch:
        if not isinstance(value, bool):
            raise section.error(key, f"is {value!r}; expected true or false")
        return [f"--{key}"] if value else []
    if isinstance(value, bool | Section):
        raise section.error(key, "expected a number, text or a list")
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", str(value)]
