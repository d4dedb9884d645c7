"""The machine under the course: folders, device, precision, seeding, progress, and the error a reader sees.

The only module that knows about CUDA, threads, environment variables or paths. Nothing runs at import.

    device = runtime.device()                    # cuda, mps or cpu
    with runtime.autocast(device, "auto"): ...   # bfloat16 where the hardware has it, float32 elsewhere
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if (
    TYPE_CHECKING
):  # torch takes seconds to import: only the functions that need it do so
    import torch

PRECISIONS = ("auto", "bfloat16", "float32")


class InputError(Exception):
    """Something the user can put right: one line that says what was expected, what was found, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the message instead of a traceback through the library."""
        return [f"{type(self).__name__}: {self}"]


def expect_positive(**values: float) -> None:
    """Raise InputError for the first of the named values that is not above 0. Taught in: chapter 2."""
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} must be above 0; found {value}.")


def project_root() -> Path:
    """Folder of the project, wherever the caller's working directory is.

    JupyterLab, nbval and papermill start notebooks in three different folders. Taught in: chapter 1.
    """
    return Path(__file__).resolve().parents[1]


def build_root() -> Path:
    """Folder of everything that is made: the environment variable FASHION_BUILD, else `build/` in the project.

    A relative FASHION_BUILD starts at the project, wherever the caller works. Taught in: chapter 1.
    """
    return (project_root() / os.environ.get("FASHION_BUILD", "build")).resolve()


def device(name: str = "auto") -> torch.device:
    """The device to compute on: `auto` takes CUDA, then Apple's MPS, then the CPU; or one of them by name.

    Of several processes each gets a GPU of its own. On a CPU it also calls `keep_memory`.
    Raises InputError where the named device is missing. Taught in: chapter 2.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name.split(":")[0], False):
        there = ", ".join(kind for kind, there in available.items() if there)
        raise InputError(
            f"device {name!r} is not available here; this machine has: {there}. Use device = 'auto'."
        )
    if name == "cpu":
        keep_memory()
    if name == "cuda" and processes()[1] > 1:
        from accelerate import PartialState

        return PartialState().device
    return torch.device(name)


def processes() -> tuple[int, int]:
    """Number of this process and how many were launched together: (0, 1) unless `accelerate launch` or torchrun did.

    Taught in: chapter 2.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1
    import torch
    from accelerate import PartialState

    state = PartialState(
        cpu=not torch.cuda.is_available()
    )  # joins the group at its first call
    return state.process_index, state.num_processes


def first_process_first() -> contextlib.AbstractContextManager:
    """What stands under it the first process does before the others: a download, a file that is moved away.

    Taught in: chapter 2.
    """
    if processes()[1] == 1:
        return contextlib.nullcontext()
    from accelerate import PartialState

    return PartialState().main_process_first()


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes, in each of them; of one process, the tensor itself.

    Taught in: chapter 2.
    """
    if processes()[1] == 1:
        return tensor
    from accelerate.utils import reduce

    return reduce(tensor, reduction="sum")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU; 0 elsewhere, where there is no memory of a device's own. Taught in: chapter 2."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def release_memory(device: torch.device) -> None:
    """Give memory that a failed step left behind back to the GPU's other users. Taught in: chapter 2."""
    import gc

    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@functools.cache
def keep_memory() -> None:
    """Let the C library keep memory that tensors give back, instead of returning it to the system every time.

    A step of a training frees and asks for hundreds of MiB. The system hands out each page anew, zeroed, at its first
    touch: 300,000 page faults a step for ResNet10 on 128 pictures of 80x60, and 67 images/s. Kept, they are 6,000, and
    112 images/s (2 cores of an Intel Xeon, float32; one with AMX gains 4 %, benchmarks/results/train.json). Linux with
    glibc; elsewhere nothing is done. Taught in: chapter 2.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        return
    m_mmap_max, m_trim_threshold, m_top_pad = -4, -1, -2  # mallopt(3)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 256 * 2**20)


def use_threads(count: int) -> int:
    """Let torch use `count` threads for what this thread asks of it; returns how many it used before.

    A thread of a pool that shares the work out by itself wants 1: with two threads in each of two, resizing to 40x30
    takes 0.34 ms, of which 0.26 ms are spent on waking the second. Taught in: chapter 1.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    return before


def resolve_precision(device: torch.device, precision: str = "auto") -> str:
    """`bfloat16` or `float32`: `auto` takes bfloat16 where the hardware multiplies it natively, and faster.

    On AMD's processors with AVX512-BF16 it trains ResNets 1.8 to 1.9 times as fast as float32. An Intel processor
    with AVX512-BF16 and without AMX was seen to multiply it at half of float32's rate, so a CPU is asked: both are
    measured once, in a tenth of a second. Raises InputError for another name. Taught in: chapter 2.
    """
    import torch

    if precision not in PRECISIONS:
        raise InputError(
            f"precision must be one of {', '.join(PRECISIONS)}, found {precision!r}."
        )
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = any(
            capabilities.get(name, False)
            for name in ("avx512_bf16", "amx_bf16", "bf16")
        )
        native = native and _bfloat16_is_faster()
    return "bfloat16" if native else "float32"


@functools.cache
def _bfloat16_is_faster() -> bool:
    """Whether a product of two matrices takes less time in bfloat16 than in float32 on this CPU; the best of three."""
    import torch

    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix, times = torch.ones(1024, 1024, dtype=dtype), []
        for _ in range(4):  # the first one warms up
            started = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] < seconds[torch.float32]


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """A context in which matrix products run in the precision that `resolve_precision` names.

    Taught in: chapter 2.
    """
    import torch

    enabled = resolve_precision(device, precision) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices). Taught in: chapter 2."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)


def progress(
    iterable: Iterable | None = None,
    description: str = "",
    *,
    unit: str = "it",
    **options,
):
    """A tqdm bar of plain text on stderr: it survives papermill, nbval and the published page; widgets do not.

    options: tqdm's own, such as `total` and `initial`.
    """
    from tqdm import tqdm

    plain = {"leave": False, "file": sys.stderr, "mininterval": 0.5, "ascii": " ="}
    return tqdm(iterable, desc=description, unit=unit, **plain, **options)


def describe_machine() -> dict:
    """Processor, cores, memory (GiB), GPU, versions: what a measured figure has to be read with.

    Taught in: chapter 2.
    """
    import joblib
    import numpy
    import torch
    import torchvision

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": {
            "cpu": _processor_name(),
            "cores": joblib.cpu_count(),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "gpu": gpu,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": numpy.__version__,
        },
    }


def _processor_name() -> str:
    """Linux keeps the marketing name in /proc/cpuinfo; elsewhere platform knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
