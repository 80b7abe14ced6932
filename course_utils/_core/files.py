"""Atomic writing of files and folders: they are complete or unchanged, whatever happens.

Used wherever the course writes: results, progress, votes, adapters, converted models. Writers of
the same file wait for each other; a kill, a full disk or a second program destroys no data.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from course_utils.errors import CannotWrite, NotEnoughDisk

LOCK_SECONDS = 60.0


def user_path(text: str | Path) -> Path:
    """Resolve a path that a user wrote, with `~` for the home folder.

    Args:
        text: the path.

    Returns:
        An absolute path, which stays valid when the working directory changes.

    Raises:
        CannotWrite: it begins with `~`, and no home folder is known.
    """
    path = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises if there is no home
    if str(text).startswith("~") and (str(path).startswith("~") or not os.environ.get("HOME", "/")):
        raise CannotWrite(
            f"{text} begins with ~, and no home folder is known here (HOME is not set, and the "
            "user is in no list of users). Give the whole path, or set HOME."
        )
    return Path(path).absolute()


def chosen_path(variable: str, usual: Callable[[], str | Path]) -> Path:
    """Return the path that an environment variable names, or else the default.

    Args:
        variable: the environment variable.
        usual: a function that returns the default path.

    Raises:
        CannotWrite: the path is in the home folder, and none is known.
    """
    if named := os.environ.get(variable):
        return user_path(named)
    try:
        return user_path(usual())
    except RuntimeError:  # what platformdirs raises then
        raise CannotWrite(
            f"No home folder is known here (HOME is not set). Set it, or set {variable} to a place "
            "of your own."
        ) from None


def parse_json(text: str | bytes) -> Any:
    """Parse UTF-8 JSON; nesting that is too deep counts as invalid JSON.

    Raises:
        ValueError: not JSON, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("this JSON is nested too deeply") from None


def check_regular(path: Path) -> None:
    """Refuse an existing path that is not a regular file.

    Args:
        path: the path; symbolic links are followed.

    Raises:
        CannotWrite: it is a folder, a device, a socket, a pipe, or a circular link.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise CannotWrite(f"{path} cannot be looked at: {error.strerror}.") from None
    if not stat.S_ISREG(mode):
        kinds = {
            stat.S_ISDIR: "a folder",
            stat.S_ISCHR: "a device",
            stat.S_ISBLK: "a device",
            stat.S_ISSOCK: "a socket",
            stat.S_ISFIFO: "a pipe",
        }
        kind = next((name for is_kind, name in kinds.items() if is_kind(mode)), "no file")
        raise CannotWrite(f"{path} is {kind}. Name a regular file, or one that is not there yet.")


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist.

    Raises:
        CannotWrite: something else is at this path, or permission is denied.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        kind = "a link that leads nowhere" if path.is_symlink() else "no folder"
        raise CannotWrite(f"{path} is {kind}. Remove it, or name another folder.") from None
    except NotADirectoryError:
        above = next(parent for parent in path.parents if parent.exists())
        raise CannotWrite(
            f"{path} cannot be made, as {above} is no folder. Name another folder."
        ) from None
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be made: {error.strerror}. Name another folder."
        ) from None


@contextlib.contextmanager
def saying_why(what: str, path: Path) -> Iterator[None]:
    """Turn the system's error for a failed write into one of the course's errors.

    Args:
        what: what was being written.
        path: where it was being written.

    Raises:
        NotEnoughDisk: the disk, or the user's quota, is full.
        CannotWrite: anything else, such as a read-only disk.
    """
    try:
        yield
    except (CannotWrite, NotEnoughDisk):
        raise
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number is None and (told := re.search(r"os error (\d+)", str(error))):
            number = int(told[1])  # safetensors gives it only as text
        said = os.strerror(number) if number else str(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise NotEnoughDisk(
                f"{what} could not be written to {path}: the disk is full ({said}). What was there "
                "before is unchanged. Free some space, and try again."
            ) from None
        raise CannotWrite(
            f"{what} could not be written to {path}: {said}. What was there before is unchanged."
        ) from None


@contextlib.contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Lock a file or folder for writing; other writers wait.

    The lock is a hidden file next to it, `.NAME.lock`, which the system releases when the program
    ends in any way.

    Args:
        path: the file or folder; it need not exist yet, but its parent must.
        seconds: how long to wait; a negative number waits for as long as it takes.

    Raises:
        CannotWrite: another program holds the lock for longer, or it cannot be created.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise CannotWrite(
            f"Another program has been writing to {path} for {seconds:.0f} s. Stop it, or wait for "
            "its end, and try again."
        ) from None
    except OSError as error:
        raise CannotWrite(
            f"{path} cannot be written: its folder takes no lock file ({error.strerror})."
        ) from None
    try:
        yield
    finally:
        lock.release()


def replace_file(path: Path, text: str) -> None:
    """Write a whole file (UTF-8) atomically.

    A symbolic link is kept: its target is replaced. If several programs may write the same file,
    hold `locked(path)`.

    Raises:
        CannotWrite: the path is not that of a regular file, or not writable.
        NotEnoughDisk: the disk is full; the file is left unchanged.
    """
    path = Path(os.path.realpath(path))
    check_regular(path)
    partial = path.with_name(f"{path.name}.partial")
    with saying_why(path.name, path):
        try:
            partial.unlink(missing_ok=True)  # from a killed run
            with partial.open("x", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, partial)
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _old(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")


def recover_folder(target: Path) -> None:
    """Restore a folder whose replacement was killed between its two renames.

    Call it before looking for a folder that `new_folder` creates.
    """
    if not target.exists() and _old(target).is_dir():
        with locked(target):
            _recover(target)


def _recover(target: Path) -> None:
    if _old(target).is_dir():
        if target.exists():
            _remove(_old(target))
        else:
            _old(target).replace(target)


def _settle(folder: Path) -> None:
    """Flush a folder's files to disk, with the permissions that the user's umask allows.

    safetensors writes files that only their owner can read.
    """
    usual = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(path.stat().st_mode | usual)
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Create or replace a folder atomically.

    Yields a scratch folder on the same disk. Its subfolder `new`, which the block creates, becomes
    `target` when the block ends without an error; without that subfolder, `target` is left
    unchanged. Concurrent programs wait for each other, and leftovers of killed ones are removed
    before the block begins.

    Wrap what the block writes in `saying_why`.

    Args:
        target: the folder; symbolic links are followed.

    Raises:
        CannotWrite: the path is not writable.
        NotEnoughDisk: the disk is full; the folder is left unchanged.
    """
    target = Path(os.path.realpath(target))
    make_folder(target.parent)
    with locked(target, seconds=-1):
        with saying_why(target.name, target):
            _recover(target)
            for left_over in target.parent.glob(f"{glob.escape(target.name)}.partial-*"):
                _remove(left_over)
            scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
        try:
            yield scratch
            made = scratch / "new"
            if made.is_dir():
                with saying_why(target.name, target):
                    _settle(made)
                    if target.exists():
                        target.replace(_old(target))
                    made.replace(target)
                    _remove(_old(target))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
