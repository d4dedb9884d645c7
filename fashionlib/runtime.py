"""The machine under the course: folders, device, precision, processes, progress.

    device = runtime.device()                    # cuda, mps or cpu
    with runtime.autocast(device, "auto"): ...   # bfloat16 where the hardware has it

The only module that knows about CUDA, environment variables or paths. Nothing runs at
import.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds: the functions that need it import it
    import torch

PRECISIONS = ("auto", "bfloat16", "float16", "float32")


class InputError(Exception):
    """Something the user can put right, in one line.

    It says what was expected, what was found, and what to do. Whatever is quoted in it,
    a row of a table or a file's name, it stays one line of at most 1,000 characters.
    Taught in: chapter 1
    """

    def __str__(self) -> str:
        line = "".join(c if c.isprintable() else " " for c in super().__str__())
        return line if len(line) <= 1000 else f"{line[:700]} ... {line[-290:]}"

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the message instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def project_root() -> Path:
    """Folder of the project, wherever the caller's working directory is.

    JupyterLab, nbval and papermill start notebooks in three different folders.
    Taught in: chapter 1
    """
    return Path(__file__).resolve().parents[1]


def build_root() -> Path:
    """Folder of everything that is made: FASHION_BUILD, else `build/` in the project.

    A relative FASHION_BUILD starts at the project; an empty one counts as not set.
    Taught in: chapter 1
    """
    return (project_root() / (os.environ.get("FASHION_BUILD") or "build")).resolve()


def check_run(run: str) -> str:
    """The name of a run, which is a folder's below `build_root`: plain, not a path.

    Raises InputError for what is not 1 to 60 letters, digits, `_`, `-` and `.`,
    beginning with a letter, a digit or `_`.
    Taught in: chapter 1
    """
    if not isinstance(run, str) or not re.fullmatch(r"\w[\w.-]{0,59}", run):
        allowed = "1 to 60 letters, digits, _, - and ., and begin with no - or ."
        raise InputError(f"run must be a name of {allowed}; found {run!r:.100}.")
    return run


# --- device and precision -------------------------------------------------------------


def device(name: str = "auto") -> torch.device:
    """The device to compute on: `auto` takes CUDA, then Apple's MPS, then the CPU.

    Of several processes on one machine each gets a GPU of its own.
    Raises InputError where the named device is missing.
    Taught in: chapter 2
    """
    import torch

    kinds = ("cuda", "mps", "cpu")
    found = [kind for kind in kinds if getattr(torch, kind).is_available()]
    name = found[0] if name == "auto" else name
    if name.split(":")[0] not in found:
        there = ", ".join(["auto", *found])
        raise InputError(f"device must be one of {there} here; found {name!r}.")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return torch.device(name)


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """`bfloat16`, `float16` or `float32`: what `auto` stands for on this device.

    A GPU computes in bfloat16, or in float16 where it has no bfloat16 (T4, V100). A CPU
    takes bfloat16 where it has AMX, or AVX512-BF16 on AMD, whose processors train
    ResNets 1.8 times as fast with that; one of Intel's without AMX was half as fast.
    Raises InputError for another name.
    Taught in: chapter 2
    """
    import torch

    if precision not in PRECISIONS:
        names = ", ".join(PRECISIONS)
        raise InputError(f"precision must be one of {names}; found {precision!r}.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float16"
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    is_amd = "AMD" in capabilities.get("cpu_name", "")
    fast = capabilities.get("avx512_bf16") if is_amd else capabilities.get("amx_bf16")
    return "bfloat16" if fast else "float32"


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context in which matrix products run in what `resolve_precision` names.

    Taught in: chapter 2
    """
    import torch

    dtype = getattr(torch, resolve_precision(device, precision))
    low = dtype is not torch.float32
    return torch.autocast(device.type, dtype=dtype if low else None, enabled=low)


def seed_everything(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch.

    Taught in: chapter 2
    """
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global one
    torch.manual_seed(seed)


# --- several processes ----------------------------------------------------------------


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process and how many there are; (0, 1) unless launched together.

    `torchrun` and `accelerate launch` say so in the environment (RANK, WORLD_SIZE).
    Taught in: chapter 2
    """
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join_processes(device: torch.device) -> None:
    """Connect the processes that were launched together; at the first call only.

    Workers of a launcher that is killed end, too: they would train beside the next run.
    Taught in: chapter 2
    """
    import torch
    from torch import distributed

    if rank_and_world_size()[1] > 1 and not distributed.is_initialized():
        if "TORCHELASTIC_RUN_ID" in os.environ:  # of torchrun and accelerate
            launcher = os.getppid()
            threading.Thread(target=_end_with, args=[launcher], daemon=True).start()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # else a barrier takes the first GPU
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")


def _end_with(launcher: int) -> None:
    """End this process within a second after its parent."""
    while os.getppid() == launcher:
        time.sleep(1)
    os._exit(1)


@contextlib.contextmanager
def local_main_process_first() -> Iterator[None]:
    """On each machine one process runs the block first: it downloads, the others read.

    Needs `join_processes` before.
    Taught in: chapter 2
    """
    from torch import distributed

    several, first = rank_and_world_size()[1] > 1, os.environ.get("LOCAL_RANK") == "0"
    if several and not first:
        distributed.barrier()
    yield
    if several and first:
        distributed.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Add up the tensors of all processes, in place; of one process, the tensor itself.

    Taught in: chapter 2
    """
    from torch import distributed

    if rank_and_world_size()[1] > 1:
        distributed.all_reduce(tensor)
    return tensor


# --- telling --------------------------------------------------------------------------


def progress(iterable: Iterable | None = None, description: str = "", **options):
    """A tqdm bar of plain text on stdout, gone at the end; the first process shows it.

    Widgets do not survive papermill and the published page, plain text does.
    options: tqdm's own, such as `total`, `initial`, `unit`.
    Taught in: chapter 1
    """
    from tqdm import tqdm

    plain = {"leave": False, "file": sys.stdout, "mininterval": 0.5, "ascii": " ="}
    silent = rank_and_world_size()[0] > 0
    return tqdm(iterable, desc=description, disable=silent, **plain | options)


def describe_machine() -> dict:
    """Processor, cores, memory (GiB), GPU and versions: what a speed is read with.

    Taught in: chapter 2
    """
    import numpy
    import psutil
    import torch
    import torchvision

    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    machine = {"cpu": name, "cores": psutil.cpu_count()}
    machine["memory_gib"] = round(psutil.virtual_memory().total / 2**30, 1)
    machine["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = {each.__name__: each.__version__ for each in (torch, torchvision, numpy)}
    versions["python"] = platform.python_version()
    return {"machine": machine, "versions": versions}
