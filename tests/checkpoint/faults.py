"""What the tests of faults share: a server that runs tools in children, and what a folder looks like."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1parallel.checkpoint.reading.source import open_source
from r1parallel.checkpoint.reading.windows import read_rows
from r1parallel.checkpoint.slice import reshard_checkpoint
from r1parallel.checkpoint.tables.names import translate
from r1parallel.checkpoint.writing.tensor_writer import write_checkpoint
from r1parallel.config.model import ModelConfig
from r1parallel.errors import UserError
from r1parallel.parallel.layout.mesh import Mesh
from r1parallel.parallel.layout.strategy_files import write_strategy_files
from r1parallel.parallel.layout.table import ModelLayout
from r1parallel.parallel.layout.tensor_layout import StageLayouts

CONFIG = ModelConfig(32, 16, 24, 1, 4, 2)  # 15 tensors, 14 KB
OTHER_BASE = replace(CONFIG, rope_theta=20000.0)  # a model of the same shapes
FOUR = ModelLayout(CONFIG, Mesh(dp=2, tp=2), opt_shard=True)
Values = dict[str, bytes]

# An order to the server: several commands at once, each in a child of its own.
ORDER: dict[str, Any] = {
    "commands": [],  # [tool, flags …] of each
    "window": 2**10,  # bytes that are moved at a time
    "slow": 0.0,  # seconds that every change of a file or a folder takes longer
    "signal": signal.SIGKILL,
    "signal_at": None,  # before which change it comes
    "signal_after": None,  # or after how many seconds
    "cut_short": None,  # a file that becomes shorter while its data is read
    "ignore_space": False,  # take the disk for endless before writing
    "open_files": None,  # how many files may be open
    "user": None,  # run as this user
    "folder": None,  # where to run
    "limit": 20,  # seconds after which a child hangs
}


class Server:
    """Runs tools in children; see fault_server.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("fault_server.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run_all(self, *commands: list[object], **order: Any) -> list[dict]:
        """Several commands at once. Each result has code (of the exit; -9: killed), text, seconds and changes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        assert set(order) <= set(ORDER)
        texts = [[str(item) for item in command] for command in commands]
        self._process.stdin.write(json.dumps({**ORDER, "commands": texts, **order}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the server ended: {commands}"
        return json.loads(answer)

    def run(self, command: list[object], **order: Any) -> dict:
        return self.run_all(command, **order)[0]

    def succeed(self, command: list[object], **order: Any) -> dict:
        result = self.run(command, **order)
        assert result["code"] == 0, result["text"]
        return result

    def refuse(self, command: list[object], **order: Any) -> str:
        """The line of a command that must fail."""
        return refusal(self.run(command, **order))

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


def refusal(result: dict) -> str:
    """The one line of a command that failed: exit code 2, no traceback."""
    assert result["code"] == 2, result
    lines = result["text"].splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result["text"]
    return lines[0]


def make_model(folder: Path, seed: int, names: str = "ours", config: ModelConfig = CONFIG, shard: int = 10**9) -> Path:
    """A full checkpoint of random numbers."""
    rng = np.random.default_rng(seed)
    arrays = {
        translate(name, "ours", names): rng.standard_normal(shape).astype(np.float32)
        for name, shape in config.parameter_shapes().items()
    }
    write_checkpoint(folder, [(name, a.shape, "F32", a) for name, a in arrays.items()], shard, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config.to_hf(), "torch_dtype": "float32"}))
    (folder / "tokenizer.json").write_text(f'{{"made": {seed}}}')
    return folder


def make_all(folder: Path, server: Server) -> Path:
    """Checkpoints to start from: full ones, one in Hugging Face's names, one that is cut, and its strategy."""
    make_model(folder / "full", 1)
    make_model(folder / "hf", 2, "hf")
    make_model(folder / "from_hf", 2)
    make_model(folder / "old", 3, config=OTHER_BASE)
    make_model(folder / "old_shards", 3, config=OTHER_BASE, shard=6_000)
    write_strategy_files(FOUR, folder / "four")
    server.succeed(slice_(folder, "--dst_strategy", folder / "four")(folder / "cut"))
    server.succeed(slice_(folder, "--dst_strategy", folder / "four", "--rank_id", 0)(folder / "rank_0"))
    return folder


def slice_(made: Path, *flags: object, source: str = "full") -> Callable[[Path], list[object]]:
    """Target → command line."""
    return lambda target: ["slice_ckpt", "--src_checkpoint", made / source, "--dst_checkpoint_dir", target, *flags]


def convert(made: Path, *flags: object, source: str = "hf") -> Callable[[Path], list[object]]:
    """Target → command line."""
    return lambda target: ["convert_weight", "--input_path", made / source, "--output_path", target, *flags]


def refused(room: Path, call: Callable[[], object]) -> str:
    """The line that a call is refused with, after which nothing is in the room."""
    with pytest.raises(UserError) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert names(room) == []
    return str(caught.value)


def rewrite(path: Path, room: Path) -> None:
    """Read all of a checkpoint and write it otherwise: what is cut is put together, what is not is cut."""
    reshard_checkpoint(path, room / "new", None, None if (path / "strategy.ckpt").exists() else FOUR)


def values(path: Path, layout: StageLayouts | None = None) -> Values:
    """Every tensor of a checkpoint; manifests and copies are compared."""
    return {name: read_rows(rows).tobytes() for name, rows in open_source(path, layout).tensors.items()}


def state(path: Path, known: Mapping[str, Values], layout: StageLayouts | None = None) -> str:
    """Which of some known checkpoints a path holds; "refused" where it opens as none, in one line."""
    try:
        found = values(path, layout)
    except UserError as error:
        assert len(str(error).splitlines()) == 1
        return "refused"
    names = [name for name, expected in known.items() if found == expected]
    assert names, f"{path} opens and is none of {', '.join(known)}"
    return names[0]


def contents(folder: Path) -> dict[str, object]:
    """What is below a folder: names, bytes, where links lead."""
    return {name: about[-1] for name, about in picture(folder).items()}


def picture(folder: Path) -> dict[str, tuple]:
    """The same with modes, sizes and times, to see whether anything was touched."""
    result: dict[str, tuple] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        about = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        result[str(path.relative_to(folder))] = (about.st_mode, about.st_size, about.st_mtime_ns, content)
    return result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """A small file system in memory; the test is skipped where it cannot be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("mode=755", *options)), "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, timeout=20, start_new_session=True).returncode:
        folder.rmdir()
        pytest.skip("NO SMALL DISK: mounting a tmpfs needs root and a system that allows it")
    try:
        yield folder
    finally:
        unmount = ["umount", str(folder)]
        subprocess.run(unmount, capture_output=True, timeout=20, start_new_session=True, check=True)
        folder.rmdir()
