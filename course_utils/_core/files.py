"""Files and folders that are there whole or as they were, whatever happens on the way.

Used wherever the course writes: results, progress, votes, adapters, converted models. Writers of
one file wait for each other; a kill, a full disk or a second program costs nothing that was there.
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
    """A path as a person writes it: `~` is their home folder.

    Args:
        text: the path.

    Returns:
        An absolute path, so that it stays the same when the working folder changes.

    Raises:
        CannotWrite: it begins with `~`, and this machine knows no home folder.
    """
    path = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises where there is no home
    if str(text).startswith("~") and (str(path).startswith("~") or not os.environ.get("HOME", "/")):
        raise CannotWrite(
            f"{text} begins with ~, and no home folder is known here (HOME is not set, and the "
            "user is in no list of users). Give the whole path, or set HOME."
        )
    return Path(path).absolute()


def chosen_path(variable: str, usual: Callable[[], str | Path]) -> Path:
    """A place that an environment variable names, else the system's usual one.

    Args:
        variable: the environment variable.
        usual: gives the usual place.

    Raises:
        CannotWrite: the place is below the home folder, and none is known.
    """
    if named := os.environ.get(variable):
        return user_path(named)
    try:
        return user_path(usual())
    except RuntimeError:  # platformdirs' word for it
        raise CannotWrite(
            f"No home folder is known here (HOME is not set). Set it, or set {variable} to a place "
            "of your own."
        ) from None


def parse_json(text: str | bytes) -> Any:
    """`json.loads` of UTF-8, for which nesting that is too deep is bad JSON like any other.

    Raises:
        ValueError: no JSON, no UTF-8, or nested too deeply.
    """
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise ValueError("this JSON is nested too deeply") from None


def check_regular(path: Path) -> None:
    """Refuse what is there and is no regular file.

    Args:
        path: symbolic links are followed.

    Raises:
        CannotWrite: a folder, a device, a socket, a pipe, or a link that leads in a circle.
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
    """Make a folder with those above it, unless it is there.

    Raises:
        CannotWrite: something else is in its place, or it may not be made.
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
    """Turn what the system says of a failed writing into one of the course's errors.

    Args:
        what: what was being written.
        path: where.

    Raises:
        NotEnoughDisk: the disk, or the user's share of it, is full.
        CannotWrite: anything else, such as a disk that is read-only.
    """
    try:
        yield
    except (CannotWrite, NotEnoughDisk):
        raise
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number is None and (told := re.search(r"os error (\d+)", str(error))):
            number = int(told[1])  # safetensors tells it in words only
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
    """Be the only one to write a file or folder; others wait.

    The lock is a hidden file beside it, `.NAME.lock`, which the system frees when a program ends,
    however it ends.

    Args:
        path: the file or folder; it need not be there yet, its parent must.
        seconds: how long to wait; below 0 for as long as it takes.

    Raises:
        CannotWrite: another program keeps it for longer, or the lock cannot be made.
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
    """Write a whole file (UTF-8) so that it is there whole or as it was.

    A symbolic link stays one: the file that it leads to is replaced. Where several programs may
    write the same file, hold `locked(path)`.

    Raises:
        CannotWrite: the place is no regular file's, or cannot be written.
        NotEnoughDisk: the disk is full; the file is as it was.
    """
    path = Path(os.path.realpath(path))
    check_regular(path)
    partial = path.with_name(f"{path.name}.partial")
    with saying_why(path.name, path):
        try:
            partial.unlink(missing_ok=True)  # a killed run's
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
    """Remove a folder with all that is in it, or a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _old(target: Path) -> Path:
    return target.with_name(f"{target.name}.old")


def recover_folder(target: Path) -> None:
    """Bring back a folder whose replacement was killed between its two renames.

    Call it before looking for a folder that `new_folder` makes.
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
    """Put a folder's files on the disk, readable for whom the user's umask lets read.

    safetensors writes files that only their owner may read.
    """
    usual = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(path.stat().st_mode | usual)
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Make or replace a folder at once or not at all.

    Gives a scratch folder on the same disk. What the block puts into its subfolder `new` becomes
    `target` when the block ends well; without that subfolder, `target` stays as it is. Programs
    that do this at the same time wait for each other, and what killed ones have left is removed
    before the block begins.

    Wrap what the block writes in `saying_why`.

    Args:
        target: the folder; symbolic links are followed.

    Raises:
        CannotWrite: the place cannot be written.
        NotEnoughDisk: the disk is full; the folder is as it was.
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
