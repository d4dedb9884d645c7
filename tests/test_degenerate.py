"""Catalogues that lack something: chapters 2 to 8 end, with null where it says why.

    pytest tests/test_degenerate.py -m slow

The chapters run in this process, cell by cell, with budgets that teach nothing.
"""

import json

import numpy as np
import pytest
from conftest import csv_line, solid, write_catalogue
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from networks import small

from fashionlib import artifacts, images, runtime, training
from fashionlib.data import prepare, synthetic
from fashionlib.runtime import InputError

TINY = {
    "02_resnet152": {"architecture": "resnet10", "epochs": 1, "batch_size": 16},
    "02b_comparisons": {"extractors": ["resnet18"], "extractor_images": 24},
    "03_guided_backprop": {"image_count": 12, "deletion_images": 4},
    "03b_methods": {"image_count": 6, "slow_images": 2, "drawing_count": 12},
    "04_average_saliency": {"face_images": 20},
    "05_dcgan": {"steps": 2, "batch_size": 4, "base_channels": 4, "latent_dim": 8},
    "06_summary": {},
    "07_resolution": {"sides": [32, 64], "size": 64, "gan_side": 32, "epochs": 1},
    "08_transfer": {"label_fractions": [0.5, 1.0], "epochs": [1, 1]},
}
TINY["03_guided_backprop"]["deletion_steps"] = 2
TINY["03b_methods"] |= {"drawing_size": 32, "drawing_epochs": 1}
TINY["07_resolution"] |= {"image_count": 60, "batch_size": 16}
TINY["08_transfer"] |= {"pretraining_epochs": 1, "batch_size": 16}


def run_chapter(chapter: str, run: str, **changed) -> str:
    """Execute a notebook's cells here, solutions included; what it printed."""
    path = runtime.project_root() / "notebooks" / f"{chapter}.ipynb"
    shell, printed = InteractiveShell(), []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            with capture_output() as captured:
                result = shell.run_cell("".join(cell["source"]))
            printed.append(captured.stdout + captured.stderr)
            result.raise_error()
            if "parameters" in cell["metadata"].get("tags", []):
                shell.user_ns.update({"run": run, **TINY[chapter], **changed})
    return "".join(printed)


@pytest.fixture
def prepared(tmp_path, monkeypatch, request):
    """Prepare a part of the synthetic catalogue as chapter 1 does; the run's name."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    keep, products = request.param
    folder = synthetic.draw(tmp_path / "catalogue", products=products)
    lines = (folder / "styles.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if keep(*line.split(",")[1:3])]
    (folder / "styles.csv").write_text("\n".join([lines[0], *kept]) + "\n")
    made = prepare.prepare(folder, artifacts.folder("tiny") / "prepared", sizes=[64])
    index = images.load(made).index
    counts = {"products": len(index), "synthetic": True, "source": "drawn"}
    counts |= {"rows": len(index), "images": len(index), "error_floor_percent": 0.0}
    counts |= {"split_counts": dict(index["split"].value_counts())}
    counts["split_counts"] = {k: int(v) for k, v in counts["split_counts"].items()}
    for name in ("rows_without_image", "malformed_rows"):
        counts[name] = 0
    for name in ("duplicate_groups", "duplicate_label_conflicts"):
        counts[name] = 0
    artifacts.publish("tiny", "data", counts)
    return "tiny"


CATALOGUES = {
    "apparel only": (lambda gender, category: category == "Apparel", 200),
    "men only": (lambda gender, category: gender == "Men", 160),
    "one class": (
        lambda gender, category: (gender, category) == ("Women", "Accessories"),
        400,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "prepared", CATALOGUES.values(), ids=list(CATALOGUES), indirect=True
)
def test_chapters_2_to_8_without_some_classes(prepared):
    for chapter in TINY:
        run_chapter(chapter, prepared)
    text = (artifacts.folder(prepared) / "metrics.json").read_text()
    metrics = json.loads(text)  # neither NaN nor Infinity, see artifacts.write_json
    print(json.dumps(metrics, indent=1)[:0])


# --- what is refused before anything is computed --------------------------------------


def test_a_validation_set_without_images_stops_before_the_training(tmp_path):
    data = images.from_array(np.zeros((4, 16, 16, 3), np.uint8))
    nothing = data._replace(rows=data.rows[:0], labels=data.labels[:0])
    recipe = training.Recipe(epochs=1, batch_size=4, learning_rate=0.1)
    for train, validation in ((data, nothing), (nothing, data)):
        with pytest.raises(InputError, match="no image"):
            training.fit(
                small(), train, validation, recipe=recipe, checkpoint=tmp_path / "model"
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", range(1, 8))
def test_a_set_without_images_is_named(count, tmp_path):
    """Every chapter asks for its sets in its first cells."""
    lines = [csv_line(i, name=f"Shirt {i}") for i in range(1, count + 1)]
    files = {i: solid((i, 9, 9), file_format="JPEG") for i in range(1, count + 1)}
    source = write_catalogue(tmp_path / "catalogue", lines, files)
    prepared = images.load(prepare.prepare(source, tmp_path / "made", sizes=[8]))
    counts = prepared.index["split"].value_counts()
    for split in ("train", "validation", "test"):
        if counts.get(split, 0):
            assert len(prepared.subset(split, 8).rows) == counts[split]
        else:
            with pytest.raises(InputError, match=f"{split} set has no image: the"):
                prepared.subset(split, 8)
        assert len(prepared.subset(split, 8, [5]).rows) == 0
    assert count > 3 or counts.get("test", 0) * counts.get("validation", 0) == 0
