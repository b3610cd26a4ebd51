"""What the tests of other tools' files share."""

from pathlib import Path

import pytest
import yaml

from r1parallel.config.loading.command_line import parse_command_line
from r1parallel.config.loading.load import GRPO_SECTIONS
from r1parallel.errors import UserError

FILES = Path(__file__).parent / "files"


def parse(capsys, *argv, sections=GRPO_SECTIONS):
    """The configuration and the lines that were printed for it."""
    config = parse_command_line([str(word) for word in argv], sections, "run_grpo.py", "")
    return config, capsys.readouterr().out.splitlines()


def refusal(*argv, sections=GRPO_SECTIONS):
    with pytest.raises(UserError) as error:
        parse_command_line([str(word) for word in argv], sections, "run_grpo.py", "")
    assert "\n" not in str(error.value)
    return str(error.value)


def leaves(value, prefix=""):
    for key, item in value.items():
        if isinstance(item, dict):
            yield from leaves(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def with_section(folder, source, name, **values):
    """A copy of one of the files, with some dotted keys changed (or, given ..., left out)."""
    content = yaml.safe_load((FILES / source).read_text(encoding="utf-8"))
    for dotted, value in values.items():
        *parents, last = dotted.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is ...:
            del place[last]
        else:
            place[last] = value
    (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / name
