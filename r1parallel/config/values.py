"""One value of the configuration: from YAML or from the command line to the type of its key."""

import math
from typing import Any, get_args, get_origin


def kind_name(kind: Any) -> str:
    """The type as users read it: int, float, str, `true or false`, `list of str`."""
    if get_origin(kind) is list:
        return f"list of {kind_name(get_args(kind)[0])}"
    return "true or false" if kind is bool else kind.__name__


def value_text(value: object) -> str:
    """A default as users would write it on the command line."""
    if isinstance(value, list):
        return ",".join(value_text(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def from_yaml(value: Any, kind: Any) -> Any:
    """`value` as `kind`. An int is a float too, and so is text like 5e-7, which YAML 1.1 takes for a string.

    One int stands for a list of one: `offset: 0`, as mindformers' files have it.

    Raises:
        ValueError: the value has another type, or is no finite number.

    """
    if get_origin(kind) is list:
        items = [value] if type(value) is int else value
        if not isinstance(items, list):
            raise ValueError("no list")
        return [from_yaml(item, get_args(kind)[0]) for item in items]
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError("wrong type")
    return value


def from_text(text: str, kind: Any) -> Any:
    """The text behind a flag as `kind`; lists are separated by commas, an empty text is an empty list.

    Brackets around a list and quotation marks around its items, as Hydra has them, are left out.

    Raises:
        ValueError: the text is no such value.

    """
    if get_origin(kind) is list:
        text = text[1:-1] if text.startswith("[") and text.endswith("]") else text
        return [from_text(item.strip(" \"'"), get_args(kind)[0]) for item in text.split(",")] if text else []
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("neither true nor false")
        return text.lower() == "true"
    return from_yaml(kind(text), kind)
