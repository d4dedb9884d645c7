"""A folder that is made whole or not at all: made beside its place, by one process at a time, and then put there.

    with staging.alone(folder):
        staging.recover(folder)
        partial = staging.begin(folder, settings)     # what an earlier, killed call left with the same settings
        ...                                           # work in `partial`; manifest.json comes last
        staging.replace(folder, partial)

Whatever happens in between, `folder` stays what it was.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from fashionlib import artifacts
from fashionlib.runtime import InputError


def settings_of(path: Path) -> dict | None:
    """The settings that a manifest (or the note of unfinished work) was made with; None where there is none.

    Taught in: chapter 1.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads(path.read_text())["settings"]


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one process at a time make `folder`; the system frees the lock of a process that was killed.

    Raises InputError for a full disk and for a folder that cannot be written. Taught in: chapter 1.
    """
    from filelock import FileLock, Timeout

    with _plain_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{folder.name}: another process is preparing it; waiting for that")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@contextlib.contextmanager
def _plain_errors(folder: Path) -> Iterator[None]:
    """Turn what the system refuses into one line. What was finished stays as it is."""
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_existing(folder)).free / 2**20
            reason = f"the disk is full ({free:,.0f} MiB free): make room"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = f"{where} cannot be written ({error.strerror}): change its mode or FASHION_BUILD"
        else:
            reason = f"{where}: {error.strerror or error}; mend that"
        raise InputError(
            f"{folder} was not prepared: {reason} and run again. Earlier results are as they were."
        ) from error


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def recover(folder: Path) -> None:
    """Bring back the earlier folder where a call was killed between the two renames of `replace`.

    Taught in: chapter 1.
    """
    old = folder.with_name(f"{folder.name}.old")
    if not folder.exists() and settings_of(old / "manifest.json"):
        old.rename(folder)


def begin(folder: Path, settings: dict) -> Path:
    """The folder to work in: an unfinished one with the same settings is taken up, another one is thrown away.

    Taught in: chapter 1.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    if settings in (
        settings_of(partial / "manifest.json"),
        settings_of(partial / "settings.json"),
    ):
        return partial
    for path in (folder / "manifest.json", partial / "settings.json"):
        if found := settings_of(path):
            changed = (
                ", ".join(key for key in settings if found.get(key) != settings[key])
                or "its content"
            )
            print(f"{path.parent.name}: {changed} changed since; preparing again")
    discard(partial)
    partial.mkdir(parents=True)
    artifacts.write_json(partial / "settings.json", {"settings": settings})
    return partial


def replace(folder: Path, partial: Path) -> None:
    """Put the finished folder in the place of an earlier one, which stays until then.

    Taught in: chapter 1.
    """
    old = folder.with_name(f"{folder.name}.old")
    discard(old)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    discard(old)


def discard(folder: Path) -> None:
    """Delete a folder; first what says that it can be trusted, so that a killed deletion leaves nothing to go on from.

    Taught in: chapter 1.
    """
    for name in ("manifest.json", "settings.json"):
        (folder / name).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
