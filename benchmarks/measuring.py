"""What the benchmarks share: rounds side by side, one JSON file each, a table; and the pictures that they work on.

Every ratio compares things that ran in turn in one call on one machine; a rate is the median over the rounds, with
the slowest and the fastest as its spread.
"""

from __future__ import annotations

import contextlib
import io
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from datetime import date
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from fashionlib import artifacts, images, runtime

ROOT = runtime.project_root()
sys.path.insert(0, str(ROOT / "tests"))
README = {  # the ratios that the README shows: what is compared
    "prepare_vs_notebook_loop": "preparing large JPEGs: the usual notebook loop",
    "prepare_vs_best_peer": "preparing large JPEGs: the best of multiprocessing, pyvips and OpenCV",
    "batches_vs_dataloader_64": "batches of 64x64: ImageFolder and DataLoader",
    "batches_vs_dataloader_224": "batches of 224x224: ImageFolder and DataLoader",
    "train_vs_reference_resnet18": "training ResNet18: torchvision's reference loop",
    "train_vs_reference_resnet152": "training ResNet152: torchvision's reference loop",
    "guided_vs_captum_resnet18": "guided backpropagation, ResNet18: Captum, batched",
    "guided_vs_captum_resnet152": "guided backpropagation, ResNet152: Captum, batched",
    "guided_bf16_vs_captum_resnet18": "the same in bfloat16, ResNet18: Captum, batched",
    "gan_vs_example": "DCGAN: PyTorch's example loop",
    "gan_vs_example_in_memory": "DCGAN: the same loop with its pictures in memory",
}


def in_turn(
    candidates: dict[str, Callable[[], int]], rounds: int
) -> dict[str, list[float]]:
    """Run the candidates one after the other, `rounds` times; each returns a number of images. Rates in images/s."""
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            count = run()
            rates[name].append(count / (time.perf_counter() - started))
    return rates


def serve(epoch: Callable[[], object]) -> None:
    """Run `epoch` for each line on stdin; answer with its seconds and page faults. The other end of `in_processes`."""
    for _ in sys.stdin:
        faults, started = (
            resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
            time.perf_counter(),
        )
        epoch()
        seconds = time.perf_counter() - started
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps({"seconds": seconds, "faults": faults}), flush=True)


def in_processes(commands: dict[str, list[str]], rounds: int) -> dict[str, list[dict]]:
    """As `in_turn`, each candidate in a process of its own that `serve`s: its answers, without that of the first round.

    Memory that one candidate keeps would serve the others, too.
    """
    found: dict[str, list[dict]] = {name: [] for name in commands}
    with contextlib.ExitStack() as stack:
        said = {
            name: stack.enter_context(tempfile.TemporaryFile("w+")) for name in commands
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        children = {
            name: subprocess.Popen(line, stderr=said[name], **pipes)
            for name, line in commands.items()
        }
        for turn in range(rounds + 1):
            for name, child in children.items():
                child.stdin.write("go\n")
                child.stdin.flush()
                if not (line := child.stdout.readline()):
                    said[name].seek(0)
                    sys.exit(
                        f"{name} stopped ({shlex.join(commands[name])}):\n{said[name].read()[-3000:]}"
                    )
                if turn:
                    found[name].append(json.loads(line))
        for child in children.values():
            child.stdin.close()
            child.wait()
    return found


def row(
    what: str, values: list[float], unit: str = "images/s", digits: int = 1
) -> dict:
    """One line of a result: median, and the range over the rounds (or over the pictures)."""
    value, low, high = (
        round(each, digits)
        for each in (statistics.median(values), min(values), max(values))
    )
    return {"what": what, "value": value, "unit": unit, "spread": [low, high]}


def ratio(rates: dict[str, list[float]], ours: str, *peers: str) -> float:
    """Ours over the best of the peers, by their medians: larger is better."""
    return round(
        statistics.median(rates[ours])
        / max(statistics.median(rates[name]) for name in peers),
        2,
    )


def save(
    name: str,
    rows: list[dict],
    ratios: dict[str, float],
    packages: tuple[str, ...] = (),
    **more,
) -> None:
    """Write benchmarks/results/<name>.json, print its table and put it into benchmarks/README.md."""
    describe = [
        "git",
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
    ]  # "-dirty": not the code of a commit
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True).stdout
    machine = runtime.describe_machine()
    machine["versions"] |= {package: metadata.version(package) for package in packages}
    content = {
        "date": date.today().isoformat(),
        "commit": commit.strip(),
        **machine,
        "rows": rows,
        "ratios": ratios,
    }
    artifacts.write_json(
        ROOT / "benchmarks" / "results" / f"{name}.json", content | more
    )
    print(table(content))
    put(ROOT / "benchmarks" / "README.md", name, table(content))
    put(ROOT / "README.md", "ratios", overview())


def put(page: Path, name: str, text: str) -> None:
    """Replace what stands in a page between two lines `<!-- name -->`."""
    before, after = page.read_text().split(f"<!-- {name} -->\n")[::2]
    page.write_text(f"{before}<!-- {name} -->\n{text}<!-- {name} -->\n{after}")


def overview() -> str:
    """The README's table: one line a ratio, from all results."""
    lines = ["| ours against | times as fast | measured |", "|---|--:|---|"]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        content = json.loads(path.read_text())
        for name, value in content.get("ratios", {}).items():
            if name in README:
                lines.append(
                    f"| {README[name]} | {value} | {content['date']}, {path.stem}.py |"
                )
    return "\n".join(lines) + "\n"


def table(content: dict) -> str:
    """A result as Markdown: where and when it was measured, the ratios, every row with its spread."""
    machine = content["machine"]
    where = f"{content['date']}, commit {content['commit']}, {machine['cores']} cores ({machine['cpu']})"
    lines = [f"{where}, {machine['gpu'] or 'no GPU'}.", ""]
    if content["ratios"]:
        lines += ["| ratio (larger is better) | |", "|---|--:|"]
        lines += [
            f"| `{name}` | {value} |" for name, value in content["ratios"].items()
        ] + [""]
    lines += ["| what | median | | least to most |", "|---|--:|---|---|"]
    for line in content["rows"]:
        low, high = line["spread"]
        lines.append(
            f"| {line['what']} | {line['value']:,} | {line['unit']} | {low:,} to {high:,} |"
        )
    return "\n".join(lines) + "\n"


def photographs(count: int) -> tuple[str, list[Image.Image]]:
    """Pictures of about 224 x 224: real ones where the catalogue lies beside the project, else drawn; and which."""
    from conftest import real_data_folder

    folder = real_data_folder()
    if folder and (large := folder / "fashion-product-images-224.zip").is_file():
        archive = zipfile.ZipFile(large)
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = [names[i] for i in np.linspace(0, len(names) - 1, count).astype(int)]
        return "real pictures", [
            Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in chosen
        ]
    from fashionlib.data import synthetic

    print("the real catalogue is not here: drawn pictures are measured instead")
    folder = synthetic.draw(
        runtime.build_root() / "benchmarks" / "synthetic", products=120
    )
    pictures = []
    for path in sorted((folder / "images").glob("*.jpg")):
        with contextlib.suppress(
            OSError
        ):  # one of the drawn files is cut short on purpose
            pictures.append(Image.open(path).convert("RGB"))
    return "drawn pictures", pictures[:count]


def write_pictures(
    folder: Path, pictures: list[Image.Image], side: int, count: int
) -> None:
    """`count` squares of `side` twice: JPEGs of their final size in a folder per class, and one prepared array."""
    array = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (count, side, side, 3)
    )
    for i in range(count):
        picture = pictures[i % len(pictures)].resize((side, side))
        path = folder / "jpeg" / str(i % 6) / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
        array[i] = np.asarray(picture)


def read_pictures(folder: Path, count: int) -> images.ImageSet:
    """The first `count` of the array that `write_pictures` wrote."""
    rows = np.arange(count)
    return images.ImageSet(
        np.load(folder / "images.npy", mmap_mode="r"), rows, rows % 6
    )


def enlarged(
    picture: Image.Image, size: tuple[int, int], path: Path, seed: int
) -> None:
    """Write `picture` as a JPEG of `size` (width, height), quality 90, with the noise of a sensor (4 grey levels)."""
    noise = (
        np.random.default_rng(seed)
        .normal(0, 4, (size[1], size[0], 3))
        .astype(np.float32)
    )
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
