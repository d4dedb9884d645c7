"""What the benchmarks share: rounds in turn, results as JSON, tables, and images.

Every ratio compares things that ran in turn in one call on one machine; a rate is the
median over the rounds, with the slowest and the fastest as its spread. Importing this
module puts the project and its tests on the path: it need not be installed.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fashionlib import artifacts, images, runtime

ROOT = runtime.project_root()
RESULTS = ROOT / "benchmarks" / "results"
README = {  # the ratios that the README shows: what is compared
    "prepare_vs_notebook_loop": "preparing large JPEGs: the usual notebook loop",
    "prepare_vs_best_peer": "preparing large JPEGs: the best of multiprocessing, "
    "pyvips and OpenCV",
    "batches_vs_dataloader_64": "batches of 64x64: ImageFolder and DataLoader",
    "batches_vs_dataloader_224": "batches of 224x224: ImageFolder and DataLoader",
    "train_vs_reference_resnet18": "training ResNet18: torchvision's reference loop",
    "train_vs_reference_resnet152": "training ResNet152: torchvision's reference loop",
    "guided_vs_captum_resnet18": "guided backpropagation, ResNet18: Captum, batched",
    "guided_vs_captum_resnet152": "guided backpropagation, ResNet152: Captum, batched",
    "guided_bf16_vs_captum_resnet18": "the same in bfloat16, ResNet18: Captum, batched",
    "gan_vs_example": "DCGAN: PyTorch's example loop",
    "gan_vs_example_in_memory": "DCGAN: the same loop with its images in memory",
}


# --- rounds ---------------------------------------------------------------------------


def in_turn(
    candidates: dict[str, Callable[[], int]], rounds: int
) -> dict[str, list[float]]:
    """Run the candidates one after the other, `rounds` times: rates in images/s.

    Each candidate returns a number of images.
    """
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - started))
    return rates


def serve(epoch: Callable[[], object]) -> None:
    """Run `epoch` for each line on stdin; answer with its seconds and page faults.

    The other end of `in_processes`. On stdout are the answers alone: progress bars go
    to stderr.
    """
    for _ in sys.stdin:
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        started = time.perf_counter()
        with contextlib.redirect_stdout(sys.stderr):
            epoch()
        seconds = time.perf_counter() - started
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps({"seconds": seconds, "faults": faults}), flush=True)


def in_processes(commands: dict[str, list[str]], rounds: int) -> dict[str, list[dict]]:
    """As `in_turn`, each candidate in a process of its own that `serve`s: its answers.

    Memory that one candidate keeps would serve the others, too. The first round warms
    up and does not count.
    """
    found: dict[str, list[dict]] = {name: [] for name in commands}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with contextlib.ExitStack() as stack:
        errors, children = {}, {}
        for name, command in commands.items():
            errors[name] = stack.enter_context(tempfile.TemporaryFile("w+"))
            children[name] = subprocess.Popen(command, stderr=errors[name], **pipes)
        for turn in range(rounds + 1):
            for name, child in children.items():
                child.stdin.write("go\n")
                child.stdin.flush()
                answer = child.stdout.readline()
                if not answer:
                    errors[name].seek(0)
                    said, line = errors[name].read()[-3000:], shlex.join(commands[name])
                    status = child.wait()  # -9: killed, as a rule for want of memory
                    sys.exit(f"{name} stopped with status {status} ({line}):\n{said}")
                if turn:
                    found[name].append(json.loads(answer))
        for child in children.values():
            child.stdin.close()
            child.wait()
    return found


# --- results --------------------------------------------------------------------------


def row(
    what: str, values: list[float], unit: str = "images/s", digits: int = 1
) -> dict:
    """One line of a result: median, and the range over the rounds (or the images)."""
    numbers = statistics.median(values), min(values), max(values)
    value, low, high = (round(number, digits) for number in numbers)
    return {"what": what, "value": value, "unit": unit, "spread": [low, high]}


def ratio(rates: dict[str, list[float]], ours: str, *peers: str) -> float:
    """Ours over the best of the peers, by their medians: larger is better."""
    best = max(statistics.median(rates[name]) for name in peers)
    return round(statistics.median(rates[ours]) / best, 2)


def save(name: str, rows: list[dict], ratios: dict[str, float], **more) -> None:
    """As `write`, and print the table."""
    print(table(write(name, rows, ratios, **more)))


def write(
    name: str,
    rows: list[dict],
    ratios: dict[str, float],
    *,
    packages: tuple[str, ...] = (),
    folder: Path = RESULTS,
    **more,
) -> dict:
    """Write <folder>/<name>.json; returns its content.

    packages: whose versions it names beside torch's. more: further entries. Results in
    the project's own folder also go into the tables of benchmarks/README.md and README.
    """
    machine = runtime.describe_machine()
    machine["versions"] |= {package: metadata.version(package) for package in packages}
    content = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), **machine}
    content |= {"rows": rows, "ratios": ratios, **more}
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(folder / f"{name}.json", content)
    if folder == RESULTS:
        put(ROOT / "benchmarks" / "README.md", name, table(content))
        put(ROOT / "README.md", "ratios", overview())
    return content


def commit() -> str:
    """The commit that is measured; "-dirty" where the code is no commit's.

    Results and tables of this very run do not count as code. A bare machine's copy may
    have no git: "unknown".
    """
    if not shutil.which("git"):
        return "unknown"
    described = _git("describe", "--always", "--exclude=*")
    changed = _git("status", "--porcelain", "--", "*.py", "fashionlib", "profiles")
    return f"{described}-dirty" if changed else described or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between two lines `<!-- name -->`."""
    before, after = page.read_text("utf-8").split(f"<!-- {name} -->\n")[::2]
    artifacts.write_text(
        page, f"{before}<!-- {name} -->\n{text}<!-- {name} -->\n{after}"
    )


def overview() -> str:
    """The README's table: one line a ratio, from all results."""
    lines = ["| ours against | times as fast | measured |", "|---|--:|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text("utf-8"))
        for name, value in content.get("ratios", {}).items():
            if name in README:
                measured = f"{content['date']}, {path.stem}.py"
                lines.append(f"| {README[name]} | {value} | {measured} |")
    return "\n".join(lines) + "\n"


def table(content: dict) -> str:
    """A result as Markdown: where it was measured, the ratios, every row's spread."""
    machine = content["machine"]
    when = f"{content['date']}, commit {content['commit']}"
    where = f"{machine['cores']} cores ({machine['cpu']}), {machine['gpu'] or 'no GPU'}"
    lines = [f"{when}, {where}.", ""]
    if content["ratios"]:
        lines += ["| ratio (larger is better) | |", "|---|--:|"]
        for name, value in content["ratios"].items():
            lines.append(f"| `{name}` | {value} |")
        lines.append("")
    lines += ["| what | median | | least to most |", "|---|--:|---|---|"]
    for line in content["rows"]:
        low, high = line["spread"]
        value = f"{line['value']:,} | {line['unit']} | {low:,} to {high:,}"
        lines.append(f"| {line['what']} | {value} |")
    return "\n".join(lines) + "\n"


# --- images to work on ----------------------------------------------------------------


def real_catalogue(name: str) -> Path:
    """Path of one of the real zips; ends with one line where it is missing."""
    from conftest import real_data_folder

    folder = real_data_folder()
    if folder and (folder / name).is_file():
        return folder / name
    sys.exit(
        f"{Path(sys.argv[0]).stem}: {name} is needed; FASHION_REAL_DATA must name the "
        "folder with the real catalogue's zips."
    )


def photographs(count: int) -> tuple[str, list[Image.Image]]:
    """What they are, and images of about 224 x 224: real ones, else synthetic ones.

    Real ones where the tests find the catalogue (`conftest.real_data_folder`).
    """
    from conftest import real_data_folder

    folder = real_data_folder()
    if folder and (folder / "fashion-product-images-224.zip").is_file():
        archive = zipfile.ZipFile(folder / "fashion-product-images-224.zip")
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = np.linspace(0, len(names) - 1, count).astype(int)
        files = [io.BytesIO(archive.read(names[i])) for i in chosen]
        return "real images", [Image.open(file).convert("RGB") for file in files]
    from fashionlib.data import synthetic

    print("the real catalogue is not here: synthetic images are measured instead")
    folder = runtime.build_root() / "benchmarks" / "synthetic"
    catalogue, readable = synthetic.draw(folder, products=120), []
    for path in sorted((catalogue / "images").glob("*.jpg")):
        with contextlib.suppress(OSError):  # one file is cut short on purpose
            readable.append(Image.open(path).convert("RGB"))
    return "synthetic images", readable[:count]


def write_pictures(
    folder: Path, pictures: list[Image.Image], side: int, count: int
) -> None:
    """`count` squares of `side`: JPEGs in a folder per class, and one prepared array.

    Both have their final size; images repeat as often as it takes.
    """
    shape = (count, side, side, 3)
    array = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, shape)
    for i in range(count):
        image = pictures[i % len(pictures)].resize((side, side))
        path = folder / "jpeg" / str(i % 6) / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=90)
        array[i] = np.asarray(image)


def read_pictures(folder: Path, count: int) -> images.ImageSet:
    """The first `count` of the array that `write_pictures` wrote."""
    array, rows = np.load(folder / "images.npy", mmap_mode="r"), np.arange(count)
    return images.ImageSet(array, rows, rows % 6)


def enlarged(image: Image.Image, size: tuple[int, int], path: Path, seed: int) -> None:
    """Write a JPEG of `size` (width, height), quality 90, with the noise of a sensor.

    That is, 4 gray levels.
    """
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 4, (size[1], size[0], 3)).astype(np.float32)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
