"""The published book: what of it is known only after the chapters have run.

    python -m tools.book --profile small           # make calls it before Jupyter Book
    python -m tools.book --profile small --keep    # benchmarks/results/small-cpu.json

Stages in `build/<profile>/book` what `_toc.yml` lists: the pages, the executed
notebooks (with alt texts, without progress bars), the landing page's picture, and a
page about this very build. `--keep` keeps the figures of a finished report. What comes
from a catalogue, a file's name or a profile is text on every page, and no folder of
this machine is published.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import nbformat
import yaml

from fashionlib import artifacts, parameters, runtime
from fashionlib.runtime import InputError

PAGES = ("index.md", "introduction.md", "glossary.md", "this_build.md")
WIDGET = "application/vnd.jupyter.widget-view+json"  # needs a running notebook
TEXTS = {"text", "text/plain", "text/html", "text/markdown", "text/latex"}
LARGE = 150_000  # bytes of an image; above, it gets a palette: pages stay light
KEPT_RUNS = ("small-cpu", "small-224-cpu")  # of benchmarks/results
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "captum", "papermill")


def slug(heading: str) -> str:
    """The anchor of a heading: JupyterLab's rule, for `myst_heading_slug_func`."""
    return heading.replace(" ", "-")


def stage(profile: str) -> Path:
    """Make `build/<profile>/book` from the pages and the executed notebooks.

    Returns the folder. Raises InputError for a profile whose chapters have not all run,
    for a damaged file, and where the folder cannot be written.
    """
    book = runtime.build_root() / profile / "book"
    with artifacts.writing(book):
        _stage(profile, executed(profile), book)
    return book


def _stage(profile: str, chapters: dict[str, dict], book: Path) -> None:
    root = runtime.project_root()
    shutil.rmtree(book, ignore_errors=True)
    (book / "notebooks").mkdir(parents=True)
    for folder in ("_static", "vendor", "notebooks/pictures"):
        if (root / folder).exists():
            shutil.copytree(root / folder, book / folder)
    parts = this_build(profile, chapters)
    parts["overview"] = overview(profile, book / "overview.png")
    for page in ("_config.yml", "_toc.yml", *PAGES):
        text = (root / page).read_text(encoding="utf-8")
        for name, part in parts.items():
            text = text.replace(f"<!-- {name} -->", part)
        (book / page).write_text(text, encoding="utf-8")
    read_yaml(book / "_toc.yml")
    add_buttons(book / "_config.yml")
    for chapter, notebook in chapters.items():
        text = json.dumps(for_page(notebook), indent=1, ensure_ascii=False)
        (book / "notebooks" / f"{chapter}.ipynb").write_text(text, encoding="utf-8")


def executed(profile: str) -> dict[str, dict]:
    """The chapters as papermill left them.

    Raises InputError where one is missing or damaged.
    """
    notebooks = {}
    for chapter in parameters.chapters():
        path = runtime.build_root() / profile / "notebooks" / f"{chapter}.ipynb"
        if not path.exists():
            raise InputError(f"{path} is missing: make report PROFILE={profile}")
        notebooks[chapter] = artifacts.read_json(path)
        try:
            nbformat.validate(notebooks[chapter])
            notes = notebooks[chapter]["metadata"]
            float(notes["papermill"]["duration"])
            dict(notes["papermill"]["parameters"], **notes["kernelspec"])
        except (nbformat.ValidationError, LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(
                f"{path} is no chapter that papermill has finished ({reason:.100}): "
                f"delete it, then make report PROFILE={profile}"
            ) from error
    return notebooks


def read_yaml(path: Path) -> dict:
    """Settings of the book. Raises InputError for a file that holds none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path.name} is not valid YAML: {reason}") from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise InputError(f"{path.name} must hold lines `name: value`, found {found}.")
    return content


# --- a notebook as its page shows it --------------------------------------------------


def for_page(notebook: dict) -> dict:
    """Without papermill's cell and notes, widgets, progress bars, warnings and folders
    of this machine. Every figure gets its words as alternative text, a large one a
    palette.
    """
    cells, folders = [], private_folders(notebook)
    for cell in notebook["cells"]:
        if "injected-parameters" in cell["metadata"].get("tags", []):
            continue
        cell["metadata"].pop("papermill", None)
        words, outputs = [], cell.get("outputs", [])
        for output in outputs:
            data = output.get("data", {})
            if output.get("name") == "stdout":
                output["text"] = without_progress("".join(output["text"]))
            for texts in (output, data):
                for kind in texts.keys() & TEXTS:
                    texts[kind] = public("".join(texts[kind]), folders)
            if "image/png" in data:
                words += data["text/plain"].split()
                data["image/png"] = lighter(data["image/png"])
            if "text/html" in data:  # no dollar of a table's cell begins a formula
                classes = 'class="dataframe mathjax_ignore'
                shown = data["text/html"].replace('class="dataframe', classes)
                data["text/html"] = shown
        if outputs:
            kept = [each for each in outputs if each.get("text", "shown")]
            kept = [each for each in kept if each.get("name") != "stderr"]
            cell["outputs"] = [each for each in kept if WIDGET not in str(each)]
        if words:
            cell["metadata"]["mystnb"] = {"image": {"alt": " ".join(words)}}
        cells.append(cell)
    kernel = notebook["metadata"]["kernelspec"]
    return notebook | {"cells": cells, "metadata": {"kernelspec": kernel}}


def private_folders(notebook: dict) -> list[str]:
    """Folders that no page may name, also as pages write them; the longest first."""
    from fashionlib.evaluation import escape

    notes = notebook["metadata"].get("papermill", {})
    found = [runtime.build_root(), runtime.project_root(), Path.home(), Path.cwd()]
    found += [Path(tempfile.gettempdir()), Path(sys.prefix)]
    for value in notes.get("parameters", {}).values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and Path(item).is_absolute():
                found.append(Path(item).parent)
    names = {str(path) for path in found if path != Path("/")}
    names |= {write(name) for write in (html.escape, escape) for name in names}
    return sorted(names, key=len, reverse=True)


def public(text: str, folders: list[str]) -> str:
    """The text without these folders: of a path in them, what follows."""
    for folder in folders:
        text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(/|(?![\w-]|\.\w))", "", text)
    return text


def without_progress(text: str) -> str:
    """What a terminal shows at the end: bars go back to their line's start."""
    text = re.sub(r"[^\n]*\r[^\n]*\Z", "", text)
    return re.sub(r"[^\n]*\r", "", text)


def lighter(encoded: str) -> str:
    """A large PNG (base64) in 256 colours, a very large one with a pixel for each of
    the page's, too; a film stays."""
    from PIL import Image

    data = base64.b64decode(encoded)
    image, stream = Image.open(io.BytesIO(data)), io.BytesIO()
    if len(data) < LARGE or getattr(image, "n_frames", 1) > 1:
        return encoded
    scale = 2 if len(data) > 4 * LARGE else 1  # figures have two pixels for each shown
    reduced = image.convert("RGB").reduce(scale)
    colours = reduced.quantize(256, dither=Image.Dither.NONE)
    colours.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


# --- the landing page -----------------------------------------------------------------


def overview(profile: str, path: Path) -> str:
    """Draw the course in one picture into `path`; returns Markdown that shows it."""
    import torch

    from fashionlib import dcgan, images, models, plots, saliency
    from fashionlib.catalogue import CLASS_NAMES

    prepared = images.load(artifacts.require(profile, "prepared"))
    folder = artifacts.require(profile, "classifier.safetensors").parent
    model, settings = models.load(folder, "cpu")
    test = images.random_subset(prepared.subset("test", settings["size"]), 120)
    photos = test.images[test.rows]
    pixels, labels = next(images.batches(test, batch_size=len(photos)))
    with torch.no_grad():
        chances, classes = model(pixels).softmax(1).max(1)
    clothes = (classes == labels) & (classes // 2 == 1)  # that it names correctly
    chosen = int((chances * clothes).argmax())
    maps = saliency.in_batches(saliency.guided_backprop, model, pixels, classes, 30)
    maps = saliency.magnitude(maps)
    maps /= maps.mean((1, 2), keepdim=True).clamp_min(1e-12)  # each counts as much
    same = classes == classes[chosen]
    weights = min(folder.glob("dcgan_?.safetensors"))
    drawn = artifacts.read_settings(weights)
    generator = dcgan.Generator(drawn["latent_dim"], drawn["base_channels"])
    artifacts.load_weights(weights, generator)
    z = dcgan.noise(9, drawn["latent_dim"], seed=1)
    panels = {
        "the catalogue": mosaic(photos[:9]),
        f"{CLASS_NAMES[classes[chosen]]}, {chances[chosen]:.0%}": photos[chosen],
        "where the network looks": maps[chosen].numpy(),
        "its class on average": photos[same.numpy()].mean(0).astype("uint8"),
        "the average look": maps[same].mean(0).numpy(),
        "new products": mosaic(dcgan.sample(generator, z)),
    }
    figure = plots.image_grid([*panels.values()], [*panels], columns=3)
    path.write_bytes(plots.png(figure))
    return f"```{{image}} overview.png\n:alt: {figure!r}\n```"


def mosaic(images):
    """Nine images, uint8 (9, H, W, 3), as one of three rows."""
    _, height, width, _ = images.shape
    rows = images.reshape(3, 3, height, width, 3).swapaxes(1, 2)
    return rows.reshape(3 * height, 3 * width, 3)


# --- this very build ------------------------------------------------------------------


def this_build(profile: str, chapters: dict[str, dict]) -> dict[str, str]:
    """Tables: with what, when and on which data these pages were made."""
    from fashionlib.evaluation import escape

    run, settings = record(profile, chapters), []
    for chapter, notebook in chapters.items():
        folders = private_folders(notebook)
        for name, value in notebook["metadata"]["papermill"]["parameters"].items():
            shown = public(str(value), folders)
            settings.append([chapter, f"<code>{escape(name)}</code>", escape(shown)])
    manifest = artifacts.require(profile, "prepared") / "manifest.json"
    data = artifacts.read_json(manifest)["settings"]
    network = run["classifier"]
    facts = {
        "profile": profile,
        "commit": run["run"]["commit"],
        "data": f"{data['source']}, fingerprint {data['source_fingerprint'][:16]}",
        "prepared as": f"{', '.join(data['sizes'])}, {data['resize_mode']}",
        "first weights": Path(network["weights"]).name,
        "precision of the classifier": network["precision_mode"],
        "chapters at a time": "two, of one thread" if profile == "sample" else "one",
        "operating system": platform.system(),
        "Python": platform.python_version(),
    }
    facts |= {name: metadata.version(name) for name in PACKAGES}
    described = [[name, escape(value)] for name, value in facts.items()]
    columns = [column(each) for each in (run, *map(artifacts.measured, KEPT_RUNS))]
    compared = [[name, *(each[name] for each in columns)] for name in columns[0]]
    return {
        "facts": table(["what", "value"], described),
        "runs": table(["", "here", *KEPT_RUNS], compared),
        "settings": table(["chapter", "parameter", "value"], settings),
    }


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def record(profile: str, chapters: dict[str, dict]) -> dict:
    """The metrics of a run, with date, commit and the seconds of its chapters."""
    notes = {name: each["metadata"]["papermill"] for name, each in chapters.items()}
    seconds = {name: round(note["duration"]) for name, note in notes.items()}
    run = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "profile": profile,
    }
    metrics = artifacts.read_metrics(profile, "data", "classifier")
    return metrics | {"run": run | {"chapter_seconds": seconds}}


def column(run: dict) -> dict[str, str]:
    """What a run took, on which machine, and how good its network is: {row: text}."""
    from fashionlib.evaluation import escape

    network, seconds = run["classifier"], run["run"]["chapter_seconds"]
    machine = network["machine"]
    rows = {
        "date": run["run"]["date"],
        "on": escape(machine["gpu"] or f"{machine['cores']} cores, {machine['cpu']}"),
        "network": escape(network["architecture"]),
        "correct on the test set": f"{network['accuracy']['test']:.2%}",
    }
    for chapter in parameters.chapters():
        link = f"[{chapter}](notebooks/{chapter}.ipynb)"
        rows[link] = duration(seconds.get(chapter, 0))
    return rows | {"all chapters": duration(sum(seconds.values()))}


def duration(seconds: float) -> str:
    if not seconds:
        return "not run"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# --- git ------------------------------------------------------------------------------


def git(*arguments: str) -> str:
    """What git prints about the project; '' where it knows nothing."""
    if not shutil.which("git"):
        return ""
    command = ["git", "-C", runtime.project_root(), *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    name = git("rev-parse", "--short", "HEAD") or "unknown (no git repository)"
    return name + (" with changes" if git("status", "--porcelain") else "")


def add_buttons(config: Path) -> None:
    """Buttons to the repository and to Binder, where the remote `origin` is public."""
    address = r"(?:https://|(?:ssh://)?git@)(github\.com|gitlab\.com)[:/](.+?)"
    remote = git("remote", "get-url", "origin")
    settings = read_yaml(config)
    if not (found := re.fullmatch(rf"{address}(?:\.git)?/?", remote)):
        return
    # as the remote calls it; without any branch, as in CI, the commit
    branch = git("rev-parse", "--abbrev-ref", "@{upstream}").partition("/")[2]
    branch = branch or git("branch", "--show-current") or git("rev-parse", "HEAD")
    url = f"https://{found[1]}/{found[2]}"
    settings["repository"] = {"url": url, "branch": branch}
    settings["launch_buttons"]["binderhub_url"] = "https://mybinder.org"
    settings["html"] |= {"use_repository_button": True, "use_issues_button": True}
    config.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")


# --- a report that is kept ------------------------------------------------------------


def keep(profile: str) -> Path:
    """Write a finished report's metrics, times and commit into benchmarks/results.

    The report's seconds go from the first chapter's start to the rendered page.
    Raises InputError where the report is not finished.
    """
    page = runtime.build_root() / profile / "html" / "index.html"
    if not page.exists():
        raise InputError(f"{page} is missing: make report PROFILE={profile}")
    chapters = executed(profile)
    content = record(profile, chapters)
    notes = [notebook["metadata"]["papermill"] for notebook in chapters.values()]
    first = min(datetime.fromisoformat(note["start_time"]) for note in notes)
    content["run"]["report_seconds"] = round(page.stat().st_mtime - first.timestamp())
    kind = "gpu" if content["classifier"]["machine"]["gpu"] else "cpu"
    path = runtime.project_root() / "benchmarks" / "results" / f"{profile}-{kind}.json"
    artifacts.write_json(path, content)
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Stage the published book.")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--keep", action="store_true", help="keep a report's figures")
    options = parser.parse_args(arguments)
    try:
        runtime.check_run(options.profile)
        print(keep(options.profile) if options.keep else stage(options.profile))
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
