"""The published book: what of it is known only after the chapters have run.

    python -m tools.book --profile small           # make calls it between the chapters and Jupyter Book
    python -m tools.book --profile small --keep    # benchmarks/results/small-cpu.json, of a finished report

Puts the pages, the executed notebooks and these into `build/<profile>/book`: the landing page's picture, the times of
the chapters, a page about this very build, and the buttons that lead to where the course is kept.
"""

from __future__ import annotations

import argparse
import base64
import io
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path

from fashionlib import artifacts, runtime
from fashionlib.catalogue import CLASS_NAMES

PAGES = (
    "_config.yml",
    "_toc.yml",
    "index.md",
    "introduction.md",
    "glossary.md",
    "bibliography.md",
    "references.bib",
)
FOLDERS = ("_static", "vendor")
PICTURE_BYTES = 1_600_000  # of a page, so that all of it stays below 2 MB
KEPT_RUNS = (
    "small-cpu",
    "small-224-cpu",
)  # of benchmarks/results: other profiles' times
PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "captum",
    "torchmetrics",
    "papermill",
    "jupyter-book",
)

BUILD_PAGE = """# This build

With what, when and on which data the pages of this book were made.

## The machine and the data

| what | value |
|---|---|
{facts}

## Versions

| package | version |
|---|---|
{versions}

## Runs

A chapter that did not have to run again keeps the time of its last run.

| chapter | started | took |
|---|---|--:|
{times}

## Settings

What was passed to the notebooks. Everything else has the default that stands in them.

| chapter | parameter | value |
|---|---|---|
{settings}
"""


def stage(profile: str) -> Path:
    """Make `build/<profile>/book` from the pages, the executed notebooks and what they have left; returns the folder.

    Raises InputError for a profile whose chapters have not all run.
    """
    root, build = runtime.project_root(), runtime.build_root() / profile
    sources = sorted((root / "notebooks").glob("*.ipynb"))
    notebooks = {
        path.stem: _executed(build / "notebooks" / path.name, profile)
        for path in sources
    }
    runs = {
        chapter: notebook["metadata"]["papermill"]
        for chapter, notebook in notebooks.items()
    }
    book = build / "book"
    shutil.rmtree(book, ignore_errors=True)
    (book / "notebooks").mkdir(parents=True)
    for page in PAGES:
        shutil.copy(root / page, book)
    for folder in FOLDERS:
        shutil.copytree(root / folder, book / folder)
    for chapter, notebook in notebooks.items():
        _make_lighter(notebook)
        _describe_figures(notebook)
        (book / "notebooks" / f"{chapter}.ipynb").write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False)
        )
    (book / "overview.md").write_text(_overview(profile, book / "overview.png"))
    (book / "times.md").write_text(_times(profile, runs))
    (book / "this_build.md").write_text(_this_build(profile, runs))
    _add_buttons(book / "_config.yml", _repository(root))
    return book


def _executed(path: Path, profile: str) -> dict:
    """A chapter as papermill has left it; its metadata hold start_time and duration in seconds."""
    if not path.exists():
        raise runtime.InputError(
            f"the book needs every chapter, {path} is missing: make report PROFILE={profile}"
        )
    return json.loads(path.read_text())


def _make_lighter(notebook: dict) -> None:
    """Keep a page below 2 MB: no state of widgets, and the largest pictures in 256 colours, until the rest fits."""
    notebook["metadata"].pop(
        "widgets", None
    )  # controls need a kernel, which no page has
    outputs = [
        output["data"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "data" in output
    ]
    pictures = sorted(
        (data for data in outputs if "image/png" in data),
        key=lambda data: -len(data["image/png"]),
    )
    for data in pictures:
        if (
            sum(len(each["image/png"]) for each in pictures) * 3 / 4 < PICTURE_BYTES
        ):  # base64
            break
        data["image/png"] = base64.b64encode(
            _in_256_colours(base64.b64decode(data["image/png"]))
        ).decode()


def _in_256_colours(encoded: bytes) -> bytes:
    """A PNG of a third of the size; a film, which has fewer colours already, stays as it is."""
    from PIL import Image

    picture, stream = Image.open(io.BytesIO(encoded)), io.BytesIO()
    if getattr(picture, "n_frames", 1) > 1:
        return encoded
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        stream, "PNG", optimize=True
    )
    return stream.getvalue()


def _describe_figures(notebook: dict) -> None:
    """To each figure's alt text, which says what kind of thing is shown, add what was drawn in this build."""
    for cell in notebook["cells"]:
        if image := cell["metadata"].get("mystnb", {}).get("image"):
            shown = [
                output["data"]
                for output in cell["outputs"]
                if "image/png" in output.get("data", {})
            ]
            words = [" ".join("".join(data["text/plain"]).split()) for data in shown]
            image["alt"] = " ".join([image["alt"], *words])


# --- the landing page -------------------------------------------------------------------------------------------------


def _overview(profile: str, path: Path) -> str:
    """Draw the landing page's picture into `path`, and return the lines that show it, with what is on it in words."""
    import torch

    from fashionlib import dcgan, images, models, plots, saliency

    prepared = images.load(artifacts.require(profile, "prepared"))
    model, settings = models.load(
        artifacts.require(profile, "classifier.safetensors").parent, "cpu"
    )
    test = prepared.subset("test", settings["size"])
    few = images.ImageSet(test.images, test.rows[:120], test.labels[:120])
    pixels = torch.cat([batch for batch, _ in images.batches(few, batch_size=30)])
    with torch.no_grad():
        chances = torch.cat([model(part) for part in pixels.split(30)]).softmax(1)
    classes, labels = chances.argmax(1), torch.from_numpy(few.labels)
    chosen = int(
        (
            chances.amax(1) * (classes == labels) * ((classes == 2) | (classes == 3))
        ).argmax()
    )  # clothes, right
    maps = saliency.magnitude(
        saliency.in_batches(saliency.guided_backprop, model, pixels, classes, 30)
    )
    maps /= maps.mean((1, 2), keepdim=True).clamp_min(1e-12)
    label = min(
        key
        for key in artifacts.read_metrics(profile, "dcgan")["dcgan"]
        if key.isdigit()
    )
    generator, drawn = dcgan.load(
        artifacts.folder(profile) / f"dcgan_{label}.safetensors", "cpu"
    )
    answer = f"{CLASS_NAMES[classes[chosen]]}, {100 * chances[chosen].max():.0f} %"
    accuracies = _accuracies(profile)
    generated = dcgan.sample(generator, dcgan.noise(9, drawn["latent"], seed=1))
    plots.story(
        catalogue=few.images[few.rows[:9]], chosen=few.images[few.rows[chosen]], answer=answer, guided=maps[chosen],
        average=maps[classes == classes[chosen]].mean(0), generated=generated,
        accuracies=accuracies,
    ).savefig(path, dpi=130)  # fmt: skip
    alt = (
        f"Six panels, one a chapter: nine products of the catalogue; one of them, taken by the network for {answer}; "
        f"its guided backpropagation map; the average map of its class; nine generated pictures of the class "
        f"{CLASS_NAMES[int(label)]}; and accuracies on the test part: "
        + ", ".join(
            f"{name} {100 * value:.2f} percent"
            for name, (value, *_) in accuracies.items()
        )
    )
    options = f":name: fig-overview\n:alt: {alt}"
    return f"```{{figure}} overview.png\n{options}\n\nThe course in one picture, made by this build.\n```\n"


def _accuracies(profile: str) -> dict[str, tuple[float, float, float]]:
    """Test accuracies with their intervals: the study's, those of the kept runs on photographs, and this build's."""
    metrics = artifacts.read_metrics(profile, "data", "classifier")
    kept = [artifacts.measured(name) for name in KEPT_RUNS]
    runs = {run["run"]["profile"]: run["classifier"] for run in kept}
    runs[f"this build{', drawn' if metrics['data']['drawn'] else ''}"] = metrics[
        "classifier"
    ]
    ours = {
        name: (run["accuracy"]["test"], *run["test_accuracy_ci95"])
        for name, run in runs.items()
    }
    return {"the study": (0.9175, 0.9175, 0.9175)} | ours


# --- times ------------------------------------------------------------------------------------------------------------


def _times(profile: str, runs: dict[str, dict]) -> str:
    """A table: seconds or minutes of every chapter in this build and in the runs that the project has kept."""
    columns = {
        f"`{profile}`, this build": {
            chapter: run["duration"] for chapter, run in runs.items()
        }
    }
    where = {f"`{profile}`, this build": runtime.describe_machine()["machine"]}
    for name in KEPT_RUNS:
        kept = artifacts.measured(name)
        title = f"`{kept['run']['profile']}`, {kept['run']['date']}"
        columns[title], where[title] = (
            kept["run"]["chapter_seconds"],
            kept["classifier"]["machine"],
        )
    lines = [f"| chapter | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for chapter in runs:
        cells = [
            _duration(seconds[chapter]) if chapter in seconds else "not run"
            for seconds in columns.values()
        ]
        lines.append(f"| {{doc}}`notebooks/{chapter}` | {' | '.join(cells)} |")
    lines.append(
        f"| all | {' | '.join(_duration(sum(seconds.values())) for seconds in columns.values())} |"
    )
    machines = [_machine(machine) for machine in where.values()]
    machines[0] += ", two chapters at once" if _overlap(runs) else ""
    lines.append(f"| on | {' | '.join(machines)} |")
    return "\n".join(lines) + "\n"


def _overlap(runs: dict[str, dict]) -> bool:
    """Whether a chapter began before another one had ended; runs: papermill's metadata, times in ISO format."""
    spans = sorted((run["start_time"], run["end_time"]) for run in runs.values())
    return any(later[0] < earlier[1] for earlier, later in itertools.pairwise(spans))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _machine(machine: dict) -> str:
    return machine["gpu"] or f"{machine['cores']} cores, {machine['cpu']}"


def keep(profile: str) -> Path:
    """Write the metrics of a finished report, with its times and its commit, to the results that the project keeps.

    The report's seconds go from the first chapter's start to the rendered page. Raises InputError where it is missing.
    """
    build, metrics = (
        runtime.build_root() / profile,
        artifacts.read_metrics(profile, *artifacts.METRICS_OF),
    )
    finished = [
        path
        for path in sorted((build / "notebooks").glob("[0-9]*.ipynb"))
        if "." not in path.stem
    ]
    executed = {
        path.stem: _executed(path, profile) for path in finished
    }  # not what failed or was killed
    runs = {
        chapter: notebook["metadata"]["papermill"]
        for chapter, notebook in executed.items()
    }
    if not runs or not (page := build / "html" / "index.html").exists():
        raise runtime.InputError(
            f"there is no finished report of {profile}: make report PROFILE={profile}"
        )
    started = min(datetime.fromisoformat(run["start_time"]) for run in runs.values())
    run = {
        "date": f"{datetime.now():%Y-%m-%d}",
        "commit": _commit(runtime.project_root()).replace("`", ""),
        "profile": profile,
    }
    run["chapter_seconds"] = {
        chapter: round(run["duration"]) for chapter, run in runs.items()
    }
    run["report_seconds"] = round(page.stat().st_mtime - started.timestamp())
    kind = "gpu" if metrics["classifier"]["machine"]["gpu"] else "cpu"
    path = runtime.project_root() / "benchmarks" / "results" / f"{profile}-{kind}.json"
    artifacts.write_json(path, metrics | {"run": run})
    return path


# --- this very build --------------------------------------------------------------------------------------------------


def _this_build(profile: str, runs: dict[str, dict]) -> str:
    """The page that says with what, when and on which data these pages were made."""
    build = runtime.build_root() / profile
    manifest = json.loads(
        (artifacts.require(profile, "prepared") / "manifest.json").read_text()
    )
    network = artifacts.read_metrics(profile, "classifier")["classifier"]
    machine = runtime.describe_machine()["machine"]
    facts = {
        "profile": f"`{profile}`",
        "rendered": f"{datetime.now():%Y-%m-%d}, commit {_commit(runtime.project_root())}",
        "processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        "GPU": machine["gpu"] or "none",
        "operating system": platform.system(),
        "chapters at a time": "two, and so every speed on these pages"
        if _overlap(runs)
        else "one",
        "precision of the classifier": network["precision_mode"],
        "data": f"{manifest['settings']['source']}, fingerprint `{manifest['settings']['source_fingerprint'][:16]}`",
        "prepared as": ", ".join(manifest["settings"]["sizes"])
        + f", {manifest['settings']['fit']}",
        "weights to start from": Path(network["weights"]).name,
    }
    versions = {"Python": platform.python_version()} | {
        name: metadata.version(name) for name in PACKAGES
    }
    started = {
        chapter: run["start_time"][:16].replace("T", " ")
        for chapter, run in runs.items()
    }
    times = [
        f"| {{doc}}`notebooks/{chapter}` | {started[chapter]} UTC | {_duration(run['duration'])} |"
        for chapter, run in runs.items()
    ]
    return BUILD_PAGE.format(
        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        versions="\n".join(f"| {name} | {value} |" for name, value in versions.items()),
        times="\n".join(times),
        settings="\n".join(_settings(build / "parameters", runs)),
    )


def _settings(folder: Path, runs: dict[str, dict]) -> list[str]:
    """Rows of parameters that were passed to the notebooks. A path is shown by its last part: no machine's folders."""
    rows = []
    for chapter in runs:
        text = re.sub(
            r"^#.*\n", "", (folder / f"{chapter}.yml").read_text(), flags=re.MULTILINE
        )
        for name, value in json.loads(text).items():
            if name == "run":
                continue
            shown = (
                Path(value).name
                if isinstance(value, str) and os.sep in value
                else value
            )
            rows.append(f"| {chapter} | `{name}` | {shown} |")
    return rows


def _git(root: Path, *arguments: str) -> str:
    try:
        result = subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return result.stdout.strip()


def _commit(root: Path) -> str:
    if not (commit := _git(root, "rev-parse", "--short", "HEAD")):
        return "unknown (no git repository)"
    return f"`{commit}`" + (
        " with changes" if _git(root, "status", "--porcelain") else ""
    )


# --- buttons ----------------------------------------------------------------------------------------------------------


def _repository(root: Path) -> str:
    """Address of the git remote `origin` as a web page, where it is one that Binder can build; else ''."""
    remote = _git(root, "remote", "get-url", "origin")
    found = re.fullmatch(
        r"(?:https://|git@)(github\.com|gitlab\.com)[:/](.+?)/(.+?)(?:\.git)?/?", remote
    )
    return "https://{}/{}/{}".format(*found.groups()) if found else ""


def _add_buttons(config: Path, repository: str) -> None:
    """Buttons to the repository and to Binder, only where they lead somewhere."""
    import yaml

    if not repository:
        return
    settings = yaml.safe_load(config.read_text())
    settings["repository"] = {"url": repository, "branch": "main"}
    settings["launch_buttons"]["binderhub_url"] = "https://mybinder.org"
    settings["html"] |= {"use_repository_button": True, "use_issues_button": True}
    config.write_text(yaml.safe_dump(settings, sort_keys=False))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.book", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--profile", required=True)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="put the finished report's figures into benchmarks/results",
    )
    options = parser.parse_args()
    try:
        if options.keep:
            print(keep(options.profile))
        else:
            stage(options.profile)
    except runtime.InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
