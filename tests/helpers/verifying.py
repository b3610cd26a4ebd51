"""Running tools/verify_ckpt.py in this process, and damaging checkpoints for it."""

import runpy
from pathlib import Path
from types import SimpleNamespace

from r1parallel.checkpoint.reading.source import open_source
from r1parallel.errors import UserError

_TOOL = Path(__file__).parents[2] / "tools" / "verify_ckpt.py"


def run_verify(capsys, *arguments):
    """The exit code, the lines that were printed (or the error's), and the last of them."""
    capsys.readouterr()
    code = 0
    try:
        runpy.run_path(str(_TOOL))["main"]([str(argument) for argument in arguments])
    except SystemExit as leaving:
        code = leaving.code
    except UserError as error:
        assert "\n" not in str(error)
        return SimpleNamespace(code=2, lines=[str(error)], last=str(error))
    lines = capsys.readouterr().out.splitlines()
    return SimpleNamespace(code=code, lines=lines, last=lines[-1])


def flip(file, name):
    """Turn one bit of a tensor's last element; the manifest stays."""
    entry = next(iter(open_source(file).tensors[name].pieces.values()))[0]
    content = bytearray(file.read_bytes())
    content[sum(entry.extents[-1]) - 1] ^= 1
    file.write_bytes(content)


def drop_manifests(folder):
    for file in folder.rglob("*.manifest.json"):
        file.unlink()
