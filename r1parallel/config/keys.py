"""The dotted keys of the configuration, as the dataclasses of `schema` state them."""

import difflib
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from typing import Any, get_type_hints

from r1parallel.config import schema


@dataclass(frozen=True)
class Key:
    """One key: its dotted name, the dataclass that holds it, its type and its default."""

    name: str
    owner: type
    kind: Any
    default: object


def list_keys(sections: Iterable[str]) -> dict[str, Key]:
    """Dotted name → key, for every key of `sections`, in the order of the schema."""
    defaults = schema.RunConfig()
    return {key.name: key for section in sections for key in _walk(attrgetter(section)(defaults), section)}


def _walk(section: Any, prefix: str) -> Iterator[Key]:
    kinds = get_type_hints(type(section))
    for field in fields(section):
        name, default = f"{prefix}.{field.name}", attrgetter(field.name)(section)
        if is_dataclass(default):
            yield from _walk(default, name)
        else:
            yield Key(name, type(section), kinds[field.name], default)


def help_texts(keys: Iterable[Key]) -> dict[str, str]:
    """Dotted name → help: the comment behind the field in the schema's source; empty where there is none."""
    comments = _trailing_comments(inspect.getsource(schema))
    return {key.name: comments.get((key.owner.__name__, key.name.split(".")[-1]), "") for key in keys}


def _trailing_comments(source: str) -> dict[tuple[str, str], str]:
    comments: dict[tuple[str, str], str] = {}
    owner = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.string == "class":
            owner = token.line.split()[1].rstrip(":")
        elif token.type == tokenize.COMMENT and (field := re.match(r" +(\w+):", token.line)):
            comments[owner, field[1]] = token.string.lstrip("# ")
    return comments


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known dotted name that `name` was probably meant to be, or None.

    The last word decides, so a right word in the wrong section is found: `rl_config.lr` is
    `actor_config.lr_schedule.lr`. Among equal words the nearest section wins.
    """
    by_word: dict[str, list[str]] = {}
    for candidate in known:
        by_word.setdefault(candidate.split(".")[-1], []).append(candidate)
    for word in difflib.get_close_matches(name.split(".")[-1], by_word, n=1, cutoff=0.7):
        return difflib.get_close_matches(name, by_word[word], n=1, cutoff=0.0)[0]
    return None


def closest(name: str, known: Sequence[str]) -> str | None:
    """The known word that `name` was probably meant to be, whatever its capitals and signs, or None."""
    plain = {re.sub("[^a-z0-9]", "", word): word for word in known}
    for word in difflib.get_close_matches(re.sub("[^a-z0-9]", "", name.lower()), plain, n=1, cutoff=0.6):
        return plain[word]
    return None
