"""The hand-over between chapters: weights, metrics and checkpoints of a run.

    folder = artifacts.folder("sample")                    # build/sample/artifacts
    artifacts.publish("sample", "classifier", results)     # into metrics.json
    artifacts.require("sample", "classifier.safetensors")  # or: which chapter makes it

Every file is written to a temporary name and renamed: a reader sees the old file or the
new one. What the system refuses (a full disk) is one line, and the old file stays.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import io
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from fashionlib import runtime
from fashionlib.runtime import InputError

if TYPE_CHECKING:
    import torch

MADE_BY = {  # entry of metrics.json, or file: the notebook that writes it
    "data": "01_data_preparation",
    "prepared": "01_data_preparation",
    "classifier": "02_resnet152",
    "classifier.safetensors": "02_resnet152",
    "guided_backprop": "03_guided_backprop",
    "average_saliency": "04_average_saliency",
    "dcgan": "05_dcgan",
    **{f"dcgan_{label}.safetensors": "05_dcgan" for label in range(6)},
    "resolution": "07_resolution",
    "transfer": "08_transfer",
}


def path(run: str) -> Path:
    """Where one run's artifacts lie, `build/<run>/artifacts`; nothing is created.

    Raises InputError for a run that has no plain name.
    Taught in: chapter 2
    """
    return runtime.build_root() / runtime.check_run(run) / "artifacts"


def folder(run: str) -> Path:
    """The same folder to write to, created if need be.

    Raises InputError where it cannot be.
    Taught in: chapter 1
    """
    with writing(path(run)):
        path(run).mkdir(parents=True, exist_ok=True)
    return path(run)


def require(run: str, name: str) -> Path:
    """Path of an artifact that an earlier chapter has made.

    Raises InputError with the chapter that makes it and the command that runs it.
    Taught in: chapter 2
    """
    wanted = path(run) / name
    if not wanted.exists():
        raise _missing(run, name)
    return wanted


def _missing(run: str, name: str) -> InputError:
    if name not in MADE_BY:
        return InputError(f"no chapter makes {name!r}; they make {', '.join(MADE_BY)}.")
    chapter = MADE_BY[name]
    profile = f"profiles/{run}/{chapter}.yml"
    has_profile = (runtime.project_root() / profile).exists()
    options = f"-f {profile}" if has_profile else f"-p run {run}"
    return InputError(
        f"{name} of run {run!r} is missing: chapter {chapter} makes it. Run that "
        f"notebook first, or: papermill notebooks/{chapter}.ipynb out.ipynb {options}"
    )


# --- metrics --------------------------------------------------------------------------


def publish(run: str, chapter: str, results: dict, *, extend: bool = False) -> None:
    """Write what a chapter has measured into its entry of the run's metrics.json.

    results: plain values, dictionaries and lists of them, arrays, tensors. An
    `evaluation.Estimate` under `name` becomes `name` and `name_ci95`; where it is no
    number both are null, and `name_reason` says why. The entries of other chapters stay
    as they are; extend: so do the entry's other keys (chapter 4 adds to what chapter 3
    has written).
    Raises InputError for a number that is not finite: null with a reason says more.
    Taught in: chapter 1
    """
    file = folder(run) / "metrics.json"
    with locked(file):
        metrics = read_json(file)
        found = metrics.get(chapter) if extend else {}
        kept = found if isinstance(found, dict) else {}
        for key in results:
            kept.pop(f"{key}_reason", None)  # an older run's
        write_json(file, metrics | {chapter: kept | _plain(results)})


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time writes `path`; another waits, and says so after a second.

    Its folder is created if need be. The system frees a killed process's lock.
    Taught in: chapter 1
    """
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = lock.acquire(timeout=1)
        except Timeout:
            print(f"{path.name}: another process is writing it; waiting for that")
            held = lock.acquire()
        with held:
            yield


def _plain(value: Any) -> Any:
    """Estimates as two keys, or three; tuples, arrays and tensors as lists."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value.tolist() if hasattr(value, "tolist") else value
    plain = {}
    for key, item in value.items():
        if not hasattr(item, "ci95"):
            plain[str(key)] = _plain(item)
        elif item.reason:
            plain |= {key: None, f"{key}_ci95": None, f"{key}_reason": item.reason}
        else:
            plain |= {key: item.value, f"{key}_ci95": item.ci95}
    return plain


def read_metrics(run: str, *names: str) -> dict:
    """The run's metrics.json, by chapter.

    Raises InputError where one of `names` is not there yet.
    Taught in: chapter 2
    """
    metrics = read_json(path(run) / "metrics.json")
    for name in names:
        if not isinstance(metrics.get(name), dict):
            raise _missing(run, name)
    return metrics


def measured(name: str) -> dict:
    """What a benchmark or an experiment measured: benchmarks/results/<name>.json.

    Raises InputError with the command that makes it.
    Taught in: chapter 2
    """
    path = runtime.project_root() / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        raise InputError(f"{path} is missing: run make bench or make experiments.")
    return read_json(path)


def read_json(path: Path) -> dict:
    """What `write_json` wrote; empty where nothing was written yet.

    Raises InputError for a damaged or foreign file.
    Taught in: chapter 2
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, allow_nan=False)  # NaN and infinity are no JSON
        return {**content}  # a TypeError for what is no object
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, atomically. Raises InputError for a number that is not finite.

    Taught in: chapter 1
    """
    write_text(path, _to_json(path, content) + "\n")


def _to_json(path: Path, content: Any) -> str:
    try:
        return json.dumps(_plain(content), indent=2, allow_nan=False)
    except ValueError as error:
        raise InputError(f"{path.name}: a result is not finite ({error}).") from error


# --- writing --------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically. Raises InputError where the system refuses it.

    Taught in: chapter 1
    """
    _write(path, text.encode())


def _write(path: Path, content: bytes) -> None:
    """Write to a temporary name and rename; nothing stays of it on an error."""
    import psutil

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with writing(path):
        for left in path.parent.glob("*.*.tmp"):  # by a process that was killed
            pid = left.name.split(".")[-2]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                left.unlink(missing_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`: what the system refuses is one line, an InputError.

    Taught in: chapter 1
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} was not written ({error}): make room, change its mode or set "
            "FASHION_BUILD, and run again. Earlier results are as they were."
        ) from error


# --- checksums ------------------------------------------------------------------------


def checksum(path: Path) -> str:
    """128 bits (XXH3) of a file; read once, and again where it has changed since.

    Raises OSError where it cannot be read.
    Taught in: chapter 1
    """
    status = path.stat()
    return _read_checksum(path, status.st_mtime_ns, status.st_size, status.st_ino)


@functools.lru_cache(maxsize=64)
def _read_checksum(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


# --- weights --------------------------------------------------------------------------


def save_weights(path: Path, model: torch.nn.Module, settings: dict) -> None:
    """Write a model's weights (.safetensors), its settings in the header and as .json.

    The header also holds a checksum: of the file as it is without that.
    Taught in: chapter 2
    """
    from safetensors.torch import save

    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    notes = {"settings": _to_json(path, settings)}
    notes["checksum"] = xxhash.xxh3_128_hexdigest(save(state, notes))
    _write(path, save(state, notes))
    write_json(path.with_suffix(".json"), settings)


def load_weights(path: Path, model: torch.nn.Module) -> dict:
    """Load what `save_weights` wrote into `model`; returns the settings.

    Raises InputError for a damaged file and for weights of another model.
    Taught in: chapter 2
    """
    settings, tensors = _read_weights(path)
    state = OrderedDict(tensors)
    # versions of the layers, without which MNASNet refuses
    state._metadata = model.state_dict()._metadata
    try:
        model.load_state_dict(state)
    except RuntimeError as error:  # it names the network
        raise InputError(f"{path.name} does not fit: {error}") from error
    return settings


def read_settings(path: Path) -> dict:
    """The settings in the header of a file that `save_weights` wrote.

    Raises InputError for a damaged or foreign file.
    Taught in: chapter 3
    """
    return _read_weights(path)[0]


def _read_weights(path: Path) -> tuple[dict, dict]:
    """Settings and tensors of a file that `save_weights` wrote, all of it checked."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    try:
        with safe_open(path, "pt") as file:
            notes = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        checksum = notes.pop("checksum")
        if xxhash.xxh3_128_hexdigest(save(state, notes)) != checksum:
            raise ValueError("its checksum is another one")
        return json.loads(notes["settings"]), state
    except (OSError, SafetensorError, LookupError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} is damaged or not one of this course's files ({error!r:.100}): "
        "move it away and run again."
    )


# --- checkpoints ----------------------------------------------------------------------


def checkpoint_path(path: Path, settings: dict, code: tuple[str, ...]) -> Path:
    """Name of the checkpoint of one computation: `<path>-<digest>.pt`.

    The digest covers the settings and the code of the named modules, so that another
    setting, other data (a checksum among the settings) or a changed training never go
    on from a file that is not theirs; going back to earlier ones finds theirs again.
    Taught in: chapter 2
    """
    text = json.dumps(_plain(settings), sort_keys=True) + code_digest(*code)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return path.with_name(f"{path.name}-{digest}.pt")


def code_digest(*modules: str) -> str:
    """SHA-256 of what modules of this library compute; comments do not count.

    modules: names below `fashionlib`, such as "training" or "data.prepare". Taken of
    their syntax trees without docstrings.
    Taught in: chapter 2
    """
    digest = hashlib.sha256()
    for name in modules:
        file = Path(__file__).parent / f"{name.replace('.', '/')}.py"
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None  # a docstring
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a nested dictionary of tensors and plain values, atomically.

    Raises InputError where the system refuses it.
    Taught in: chapter 2
    """
    import torch

    content = io.BytesIO()
    torch.save(state, content)
    _write(path, content.getbuffer())


def load_checkpoint(path: Path) -> dict | None:
    """What `save_checkpoint` wrote, on the CPU; None where there is no file.

    No pickled code is ever executed. Raises InputError for a damaged file: torch writes
    a checksum of every tensor and compares none.
    Taught in: chapter 2
    """
    import torch

    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if broken := archive.testzip():
                raise ValueError(f"the checksum of {broken} is another one")
        # a TypeError for what is no dictionary
        return {**torch.load(path, map_location="cpu", weights_only=True)}
    except Exception as error:  # whatever unpickling makes of a foreign file
        raise _damaged(path, error) from error
