"""What a command wrote, and how it refused."""

import pytest
from helpers.stored import read_all

from r1parallel.errors import UserError


def values(path, layout=None):
    """Name → type and bytes."""
    return {name: (array.dtype.name, array.tobytes()) for name, array in read_all(path, layout).items()}


def refused(capsys, convert, *flags):
    """What argparse says to flags that it does not take."""
    with pytest.raises(SystemExit) as ended:
        convert(*flags)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def one_line(convert, *flags):
    """The line of a UserError."""
    with pytest.raises(UserError) as error:
        convert(*flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
