"""Runs a command of make's, which ends when make ends; alone in its profile if asked.

    python -m tools.guarded --alone sample make rendered

A make that is killed leaves behind what it has started: an inner make, papermill, a
kernel in a session of its own. This process stands between them: it sees that make is
gone, or was told to stop, and ends them all. Where another make works in the same
profile it waits, and says so. Make and shells cannot take every path of a build folder;
the command gets a link to such a one in FASHION_BUILD.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from fashionlib import artifacts, runtime
from fashionlib.runtime import InputError

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
GRACE = 3  # seconds to end before a process is killed


def caller() -> tuple[int, int]:
    """The process that called, and which of SIGNALS it still handles; Linux tells.

    After one of them make handles it no longer, and waits for its children to end.
    """
    process, handled = os.getppid(), 0
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{process}/status").read_text("utf-8")
        mask = int(re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1], 16)
        handled = mask & sum(1 << (number - 1) for number in SIGNALS)
    return process, handled


CALLER = caller()


def check_caller() -> None:
    """Leave where make is gone or was told to stop."""
    if caller() != CALLER:
        sys.exit("make was stopped: ending what it has started")


def stop(number: int, frame: object) -> None:
    """A signal: leave by way of every `finally`."""
    sys.exit(128 + number)


@contextlib.contextmanager
def alone(profile: str) -> Iterator[None]:
    """The only make in a profile's build folder; waits for another one.

    Raises InputError where the build folder cannot be written.
    """
    root = runtime.build_root()
    lock = FileLock(root / f".{profile}.lock")  # the system frees that of a killed one
    with artifacts.writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if not acquired(lock, 0):
            print(f"another make is at work in {root / profile}: waiting", flush=True)
            while not acquired(lock, 0.5):
                check_caller()
    try:
        yield
    finally:
        lock.release()


def acquired(lock: FileLock, seconds: float) -> bool:
    with contextlib.suppress(Timeout):
        lock.acquire(timeout=seconds)
    return lock.is_locked


@contextlib.contextmanager
def plain_build_root() -> Iterator[str]:
    """A name of the build folder for make: its own, or a link where it has spaces."""
    name = os.environ.get("FASHION_BUILD") or "build"
    if re.fullmatch(r"(?!-)[\w./+@,-]+", name):
        yield name
        return
    with tempfile.TemporaryDirectory(prefix="fashion-") as folder:
        link = Path(folder, "build")
        link.symlink_to(runtime.build_root())
        yield str(link)


def run(command: list[str]) -> int:
    """Run a command to its end, or to make's; returns its exit status."""
    with plain_build_root() as build:
        environment = os.environ | {"FASHION_BUILD": build}
        # make hands its inner makes open files
        process = subprocess.Popen(command, env=environment, close_fds=False)
        try:
            while process.poll() is None:
                check_caller()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5)
        finally:
            end_children()
    code = process.returncode
    return 128 - code if code < 0 else code


def end_children() -> None:
    """End all processes below this one: SIGTERM, and SIGKILL after a while."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # one is enough
    found = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        _, found = psutil.wait_procs(found, GRACE)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Run a command that ends with make.")
    parser.add_argument("--alone", metavar="PROFILE")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, stop)
    place = alone(options.alone) if options.alone else contextlib.nullcontext()
    try:
        with place:
            status = run(options.command)
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.exit(status)


if __name__ == "__main__":
    main()
