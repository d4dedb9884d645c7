"""The hand-over between chapters: weights (safetensors), metrics (JSON), checkpoints, and the check before a run.

    folder = artifacts.folder("sample")                       # build/sample/artifacts
    artifacts.update_metrics("sample", "classifier", {...})   # replaces only these keys, atomically, under a lock
    artifacts.require("sample", "classifier.safetensors")     # or one line that says which chapter makes it

    python -m fashionlib.artifacts check --profile small --source catalogue.zip

`check` looks at profile, parameter names and source before the first chapter runs, so that a mistake costs a second,
and writes the parameters that papermill gets to `build/<profile>/parameters/` (a file changes only with its content).
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fashionlib import runtime
from fashionlib.runtime import InputError

if TYPE_CHECKING:
    import torch

CHAPTERS = {  # artifact: the chapter that makes it
    "prepared": "01_data_preparation",
    "classifier.safetensors": "02_resnet152",
    "classifier.json": "02_resnet152",
    "dcgan_1.safetensors": "05_dcgan",
    "dcgan_2.safetensors": "05_dcgan",
}
METRICS_OF = {  # chapter's name in metrics.json: the notebook that writes it
    "data": "01_data_preparation",
    "classifier": "02_resnet152",
    "guided_backprop": "03_guided_backprop",
    "average_saliency": "04_average_saliency",
    "dcgan": "05_dcgan",
}

ADDED_METRICS = {  # what a later chapter adds to an entry; when the first one runs again, it has to be added again
    "guided_backprop.verdict_known": "03b_methods",
    "guided_backprop.face_reason": "04_average_saliency",
}


def folder(run: str) -> Path:
    """Folder of one run's artifacts, created if need be: `build/<run>/artifacts`. Taught in: chapter 1."""
    path = runtime.build_root() / run / "artifacts"
    path.mkdir(parents=True, exist_ok=True)
    return path


def require(run: str, name: str) -> Path:
    """Path of an artifact that an earlier chapter has made.

    Raises InputError with the chapter that makes it and the command that runs it. Taught in: chapter 2.
    """
    path = folder(run) / name
    finished = path / "manifest.json" if name == "prepared" else path
    if not finished.exists():
        raise InputError(_missing(name, run, CHAPTERS[name]))
    return path


def _missing(what: str, run: str, chapter: str) -> str:
    has_profile = (runtime.project_root() / "profiles" / run).is_dir()
    profile = (
        f" -f profiles/{run}/{chapter}.yml"
        if has_profile
        else ""
        if run == "sample"
        else f" -p run {run}"
    )
    command = f"papermill notebooks/{chapter}.ipynb out.ipynb{profile}"
    return f"{what} of run {run!r} is missing: chapter {chapter} makes it. Run that notebook first, or: {command}"


# --- metrics ------------------------------------------------------------------------------------------------------


def update_metrics(
    run: str, chapter: str, values: dict, *, extend: bool = False
) -> None:
    """Replace the entry `chapter` in the run's metrics.json by `values`; other chapters' entries stay as they are.

    extend: keep the keys of the entry that are not in `values` (chapter 4 adds to what chapter 3 has written).

    Plain numbers, strings, lists and dictionaries; arrays and tensors become lists. Raises ValueError for NaN.
    Taught in: chapter 1.
    """
    from filelock import FileLock

    path = folder(run) / "metrics.json"
    with FileLock(f"{path}.lock"):
        metrics = json.loads(path.read_text()) if path.exists() else {}
        metrics[chapter] = (metrics.get(chapter, {}) if extend else {}) | values
        write_json(path, metrics)


def read_metrics(run: str, *chapters: str) -> dict:
    """The run's metrics.json, by chapter. Raises InputError where one of the named `chapters` has not run.

    chapters: names of `METRICS_OF` and `ADDED_METRICS`. Taught in: chapter 2.
    """
    path = folder(run) / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    for name in chapters:
        chapter, _, added = name.partition(".")
        if chapter not in metrics or (added and added not in metrics[chapter]):
            makes = METRICS_OF | ADDED_METRICS
            raise InputError(
                _missing(f"the entry {name!r} in metrics.json", run, makes[name])
            )
    return metrics


def measured(name: str) -> dict:
    """What `make bench` or `make experiments` measured and the project keeps: benchmarks/results/<name>.json.

    Raises InputError with the command that makes it. Taught in: chapter 2.
    """
    path = runtime.project_root() / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        raise InputError(
            f"{path.name} is missing in benchmarks/results: make bench or make experiments writes it."
        )
    return json.loads(path.read_text())


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary name beside `path`, then rename: a reader sees the old file or the new one."""
    text = json.dumps(content, indent=2, default=_plain, allow_nan=False) + "\n"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays and torch tensors as plain Python, for json."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        f"metrics take plain numbers, strings, lists and dictionaries, found {type(value).__name__}"
    )


# --- weights and checkpoints ------------------------------------------------------------------------------------------


def save_weights(path: Path, model: torch.nn.Module, settings: dict) -> None:
    """Write a model's weights to `path` (.safetensors) and its settings beside it (.json), each atomically.

    Taught in: chapter 2.
    """
    save_checkpoint(path, dict(model.state_dict()), settings=settings)
    write_json(path.with_suffix(".json"), settings)


def load_weights(path: Path, model: torch.nn.Module) -> dict:
    """Load weights that `save_weights` wrote into `model`; returns the settings. Raises InputError if damaged.

    Taught in: chapter 2.
    """
    state, settings = read_checkpoint(path)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{path.name} does not fit {type(model).__name__}: {str(error).splitlines()[-1]}"
        ) from error
    return settings


def save_checkpoint(path: Path, state: dict, *, settings: dict) -> None:
    """Write a nested dictionary of tensors and plain values as one safetensors file, atomically.

    The plain values and `settings` travel as JSON in the file's header: no pickle is ever written or read.
    Tensors are made contiguous; `load_state_dict` and `restore_optimizer` bring their memory format back.
    Taught in: chapter 2.
    """
    from filelock import FileLock
    from safetensors.torch import save_file

    tensors: dict = {}
    skeleton = _flatten(state, "", tensors)
    header = {
        "state": json.dumps(skeleton, default=_plain),
        "settings": json.dumps(settings, default=_plain),
    }
    temporary = path.with_name(
        f"{path.name}.tmp"
    )  # one name: what a killed run leaves, the next one overwrites
    with FileLock(f"{path}.lock"):  # two runs of one chapter
        save_file(tensors, temporary, metadata=header)
        temporary.replace(path)


def load_checkpoint(path: Path, *, settings: dict) -> dict | None:
    """The state that `save_checkpoint` wrote with the same settings; None where there is none to go on from.

    A file with other settings is kept under another name, in the place of the one that was kept there; if that one has
    these settings, the two change places. Both are said. Raises InputError for a damaged or foreign file.
    Taught in: chapter 2.
    """
    kept, waiting = (
        path.with_name(f"{path.stem}.previous{path.suffix}"),
        path.with_name(f"{path.name}.tmp"),
    )
    wanted = json.loads(json.dumps(settings, default=_plain))
    state, found = read_checkpoint(path) if path.exists() else (None, None)
    if found == wanted:
        return state
    earlier, then = read_checkpoint(kept) if kept.exists() else (None, None)
    if then == wanted:
        kept.replace(waiting)
    if found is not None:
        path.replace(kept)
    if then == wanted:
        waiting.replace(path)
        print(f"{path.name}: going on from {kept.name}, which has these settings")
        return earlier
    if found is not None:
        changed = ", ".join(
            sorted(
                key
                for key in found.keys() | wanted.keys()
                if found.get(key) != wanted.get(key)
            )
        )
        print(
            f"{path.name}: {changed} changed; starting afresh, the old file is kept as {kept.name}"
        )
    return None


def read_checkpoint(path: Path) -> tuple[dict, dict]:
    """State and settings of a file that `save_checkpoint` wrote. Raises InputError if damaged or foreign."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            skeleton, settings = (
                json.loads(header["state"]),
                json.loads(header["settings"]),
            )
            return _unflatten(skeleton, file), settings
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or not one of this course's files ({error}): move it away and run again."
        ) from error


def _flatten(value: Any, name: str, tensors: dict) -> Any:
    """Collect the tensors of a nested structure; return it with {"tensor": name} in their place."""
    import torch

    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {
            "dict": [
                [key, _flatten(item, f"{name}/{key}" if name else str(key), tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        return {
            "list": [
                _flatten(item, f"{name}/{i}", tensors) for i, item in enumerate(value)
            ]
        }
    return {"plain": value}


def _unflatten(node: dict, file) -> Any:
    (kind, content), *_ = node.items()
    if kind == "tensor":
        return file.get_tensor(content)
    if kind == "dict":
        return {
            key: _unflatten(item, file) for key, item in content
        }  # pairs keep integer keys integer
    if kind == "list":
        return [_unflatten(item, file) for item in content]
    return content


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """`load_state_dict`, then give every moment its parameter's memory format again (channels_last stays fast)."""
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if hasattr(value, "shape") and value.shape == parameter.shape:
                moments[key] = (
                    parameter.detach().clone().copy_(value)
                )  # clone preserves strides


# --- the check before a run -------------------------------------------------------------------------------------------


def check(profile: str, source: str = "") -> None:
    """Look at profile, parameter names and source; write the parameters of every chapter for papermill.

    Raises InputError with the first mistake: unknown profile, unknown parameter (with the nearest known one), a value
    of another type than the default, a source that is not a catalogue. Taught in: chapter 1.
    """
    root = runtime.project_root()
    known = sorted(
        {
            "sample",
            *(path.name for path in (root / "profiles").iterdir() if path.is_dir()),
        }
    )
    if profile not in known:
        raise InputError(
            f"PROFILE must be one of {', '.join(known)}; found {profile!r}."
        )
    chapters = {
        path.stem: notebook_parameters(path)
        for path in sorted((root / "notebooks").glob("*.ipynb"))
    }
    files = {
        path.stem: path for path in sorted((root / "profiles" / profile).glob("*.yml"))
    }
    if unknown := sorted(files.keys() - chapters.keys()):
        raise InputError(
            f"profiles/{profile}/{unknown[0]}.yml belongs to no notebook; known: {', '.join(chapters)}."
        )
    target = runtime.build_root() / profile / "parameters"
    target.mkdir(parents=True, exist_ok=True)
    for chapter, defaults in chapters.items():
        chosen = read_profile(files[chapter], defaults) if chapter in files else {}
        chosen["run"] = profile
        note = ""
        if "source" in defaults:
            chosen["source"], note = check_source(
                source or chosen.get("source", defaults["source"])
            )
        _write_if_changed(
            target / f"{chapter}.yml", note + json.dumps(chosen, indent=2) + "\n"
        )  # JSON is YAML


def notebook_parameters(path: Path) -> dict:
    """Names and default values in the notebook's cell tagged `parameters` (literals only)."""
    cells = json.loads(path.read_text())["cells"]
    tagged = (
        cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])
    )
    tree = ast.parse("".join(next(tagged)["source"]))
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }


def parameters_of(chapter: str, profile: str) -> dict:
    """A chapter's parameters under a profile: its notebook's defaults, and what the profile's file changes.

    Raises InputError for an unknown profile. Taught in: chapter 2.
    """
    root = runtime.project_root()
    defaults = notebook_parameters(root / "notebooks" / f"{chapter}.ipynb")
    if profile == "sample":
        return defaults
    path = root / "profiles" / profile / f"{chapter}.yml"
    if not path.exists():
        raise InputError(
            f"profile must be sample or a folder of profiles/ with {path.name}; found {profile!r}."
        )
    return defaults | read_profile(path, defaults)


def read_profile(path: Path, defaults: dict) -> dict:
    """Parameters of one profile file, checked against the notebook's defaults. Raises InputError for a mistake."""
    import yaml

    name = f"profiles/{path.parent.name}/{path.name}"
    try:
        chosen = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(
            f"{name} is not valid YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(chosen, dict):
        raise InputError(
            f"{name} must hold lines `name: value`, found {type(chosen).__name__}."
        )
    for key, value in chosen.items():
        if key not in defaults:
            near = difflib.get_close_matches(str(key), defaults, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"known: {', '.join(defaults)}."
            )
            raise InputError(f"{name}: the notebook has no parameter {key!r}; {hint}")
        kinds = (
            (int, float) if isinstance(defaults[key], float) else type(defaults[key])
        )
        if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(
            defaults[key], bool
        ):
            raise InputError(
                f"{name}: {key} must be of type {type(defaults[key]).__name__} like {defaults[key]!r}, found {value!r}."
            )
    return chosen


def _write_if_changed(path: Path, text: str) -> None:
    """make compares times: an unchanged file must keep its own."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def check_source(source: str) -> tuple[str, str]:
    """The source as an absolute path (a name stays a name), and a comment with its fingerprint for make's stamp.

    Raises InputError as `sources.open_source` and `catalogue.read_styles` do; a Kaggle name is not downloaded yet.
    """
    from fashionlib import catalogue
    from fashionlib.data import sources

    if source == "synthetic" or source in sources.KAGGLE:
        return source, ""
    opened = sources.open_source(source)
    catalogue.read_styles(opened)
    return str(opened.path), f"# source: {opened.fingerprint()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashionlib.artifacts", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser(
        "check", help="look at profile, parameter names and source before a run"
    )
    checking.add_argument("--profile", required=True)
    checking.add_argument(
        "--source",
        default="",
        help="synthetic, kaggle-small, kaggle-full, a folder or a zip",
    )
    options = parser.parse_args()
    try:
        check(options.profile, options.source)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
