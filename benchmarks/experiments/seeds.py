"""What another seed changes: every chapter of `sample` with seeds 1 to 5.

    make seeds        # 52 minutes on 2 busy cores without bfloat16

The synthetic catalogue, its split, all first weights, samples and controls are drawn
anew with each seed. Kept are the metrics of each run, from which chapter 6 decides the
claims again, and which of the chapters' readings did not hold. Stopped, it goes on
where it was; a chapter that stops with some seed stops it, too.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring

from fashionlib import artifacts, parameters, runtime

SEEDS = range(1, 6)
ROWS = {  # what, and its place in a run's metrics
    "test accuracy": ("classifier", "accuracy", "test"),
    "guided maps and edges: similarity": ("guided_backprop", "edge_similarity"),
    "DCGAN, class 1: distance": ("dcgan", "1", "frechet_distance"),
    "DCGAN, class 2: distance": ("dcgan", "2", "frechet_distance"),
}


def run_chapters(seed: int) -> Path:
    """Run what is not finished yet; returns the run's folder."""
    build = runtime.build_root() / "experiments" / "seeds" / str(seed)
    options = ["PROFILE=sample", "SOURCE=", f"SEED={seed}"]
    subprocess.run(
        ["make", "--no-print-directory", "notebooks", *options],
        cwd=runtime.project_root(),
        env=os.environ | {"FASHION_BUILD": str(build)},
        check=True,
    )
    return build / "sample"


def failed_readings(executed: Path) -> int:
    """How many readings of an executed chapter do not hold."""
    failed = 0
    for cell in artifacts.read_json(executed)["cells"]:
        for output in cell.get("outputs", []):
            failed += not output.get("metadata", {}).get("reading", True)
    return failed


def main() -> None:
    runs, failed = {}, {}
    for seed in SEEDS:
        folder = run_chapters(seed)
        runs[seed] = artifacts.read_json(folder / "artifacts" / "metrics.json")
        failed[seed] = {
            chapter: failed_readings(folder / "notebooks" / f"{chapter}.ipynb")
            for chapter in parameters.chapters()
        }
    rows = []
    for what, place in ROWS.items():
        values = [functools.reduce(dict.get, place, run) for run in runs.values()]
        rows.append(measuring.row(what, values, unit="", digits=3))
    measuring.save("seeds", rows, {}, runs=runs, failed_readings=failed)


if __name__ == "__main__":
    main()
