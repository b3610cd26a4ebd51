"""Output folders that appear whole or not at all, and that only one process writes at a time."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r1parallel.atomic import lock
from r1parallel.checkpoint.formats.tensor_file import rank_folders
from r1parallel.errors import UserError

_LOCK, _TEMPORARY = "r1parallel.lock", "r1parallel.tmp"  # ends of names that nobody else gives to files of his own


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that becomes `final` when the block ends well, and goes when it does not.

    It is called `<final>.r1parallel.tmp`. What a killed process left there is removed first.

    Raises:
        UserError: `final` is there and not empty, is a link, cannot be written, or is being written by another process.
    """
    with locked(final):
        check_new(final)
        with temporary_folder(final) as temporary:
            yield temporary
            check_new(final)
            with explained(final):
                os.replace(temporary, final)


def check_new(final: Path) -> None:
    """Refuse a folder that is there already, unless it is empty.

    Raises:
        UserError: it is there, or is a link.
    """
    refuse_link(final)
    if os.path.ismount(final):  # no folder can take its place
        raise UserError(f"{final}: is where a disk is mounted; give a folder in it")
    with explained(final):
        if final.exists() and final.samefile(Path.cwd()):  # whoever stands in it would stand in a removed one
            raise UserError(f"{final}: is the folder that you are in; give a new one in it")
        if final.exists() and (not final.is_dir() or any(final.iterdir())):
            raise UserError(f"{final}: is there already and not empty; choose another folder or remove it")


def check_apart(source: Path, folder: Path) -> None:
    """Refuse to write where a source is read.

    Args:
        source: the folder of its weights, or of its ranks.
        folder: to be written.

    Raises:
        UserError: they are the same, or the folder would be taken for a part of the source.
    """
    here, there = (Path(os.path.realpath(path)) for path in (folder, source))  # resolve() dies of links in a circle
    with explained(folder):
        if here == there or (here.is_relative_to(there) and rank_folders(there)):
            raise UserError(f"{folder}: is the same folder as what is read ({source}), or in it; choose another")


def refuse_link(path: Path) -> None:
    """Nothing is written through a symbolic link, which may lead anywhere.

    Raises:
        UserError: the path is one.
    """
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link; give the folder that it leads to")


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes from writing a path, by a lock on `<path>.r1parallel.lock` that ends with the process.

    Args:
        path: need not be there.
        wait: for the end of another process that has it, which must be near.

    Raises:
        UserError: another process has it, or the parent folder cannot be written.
    """
    if path.absolute().name in ("", ".."):
        raise UserError(f"{path}: has no name; give the folder by its name")
    lock_file = _beside(path, _LOCK)
    with explained(path):
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(lock_file, wait)
    if descriptor is None:
        raise UserError(f"{path}: another process is writing it; wait for its end, or choose another folder")
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock_file: Path, wait: bool) -> int | None:
    """The descriptor of the locked file; None where another process holds it."""
    while True:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        if os.fstat(descriptor).st_size:
            os.close(descriptor)
            raise UserError(f"{lock_file}: is a file with something in it, and would be the lock here; move it away")
        if not lock(descriptor, wait):
            os.close(descriptor)
            return None
        try:
            if os.stat(lock_file).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except FileNotFoundError:  # its last holder removed it in between
            pass
        os.close(descriptor)


@contextmanager
def temporary_folder(final: Path) -> Iterator[Path]:
    """A new folder `<final>.r1parallel.tmp`, removed at the end if it is still there. Its path must be locked."""
    temporary = _beside(final, _TEMPORARY)
    with explained(temporary):
        if temporary.is_symlink():
            temporary.unlink()
        elif temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir()
    try:
        with explained(temporary):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path, suffix: str) -> Path:
    path = path.absolute()  # "." has no name of its own
    return path.with_name(f"{path.name}.{suffix}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the file system into the line that a user gets."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or path  # of two, the second is where to
        raise UserError(f"{where}: cannot be written: {error.strerror}; choose another folder, or make room") from None


def check_space(folder: Path, nbytes: int) -> None:
    """See that a disk has room before anything is written.

    Raises:
        UserError: it has not.
    """
    existing = folder
    with explained(folder):
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
    if nbytes > free:
        raise UserError(
            f"{folder}: needs {nbytes / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left; make room or choose another"
        )


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, durable: a rename can be lost in a power cut before this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
