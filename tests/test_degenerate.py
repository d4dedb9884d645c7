"""Catalogues that lack something: chapters 2 to 8 end, with null where it says why.

    pytest tests/test_degenerate.py -m slow

The chapters run in this process, cell by cell, with budgets that teach nothing.
"""

import json
import re

import degenerate
import numpy as np
import pytest
from conftest import csv_line, solid, write_catalogue
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from networks import small
from traitlets.config import Config

from fashionlib import artifacts, claims, dcgan, images, models, runtime, training
from fashionlib.data import prepare
from fashionlib.runtime import InputError

SPLITS = ("train", "validation", "test")
TINY = {
    "02_resnet152": {"architecture": "resnet10", "epochs": 1, "batch_size": 16},
    "02b_comparisons": {"extractors": ["resnet18"], "extractor_weights": "none"},
    "03_guided_backprop": {"image_count": 12, "deletion_images": 4},
    "03b_methods": {"image_count": 3, "slow_images": 2, "drawing_count": 12},
    "04_average_saliency": {"face_images": 20},
    "05_dcgan": {"steps": 2, "batch_size": 4, "base_channels": 4, "latent_dim": 8},
    "06_summary": {},
    "07_resolution": {"sides": [32, 64], "size": 64, "gan_side": 32, "epochs": 1},
    "08_transfer": {"label_fractions": [0.5, 1.0], "epochs": [1, 1]},
}
TINY["02_resnet152"] |= {"weights": "none", "size": [64, 64], "frozen_until": "none"}
TINY["02_resnet152"] |= {"frozen_batch_norm": False, "probe_first": False}
TINY["02_resnet152"] |= {"lesson_images": 30, "lesson_epochs": 1}
TINY["02b_comparisons"] |= {"study_extractors": ["resnet34"], "extractor_images": 24}
TINY["03_guided_backprop"]["deletion_steps"] = 2
TINY["03b_methods"] |= {"drawing_size": 32, "drawing_epochs": 1}
TINY["07_resolution"] |= {"image_count": 60, "batch_size": 16}
TINY["08_transfer"] |= {"pretraining_epochs": 1, "batch_size": 16}
TINY["08_transfer"] |= {"architecture": "resnet10", "imagenet": False}


def run_chapter(chapter: str, run: str, **changed) -> str:
    """Execute a notebook's cells here, solutions included; what it printed."""
    path = runtime.project_root() / "notebooks" / f"{chapter}.ipynb"
    quiet = Config({"HistoryManager": {"enabled": False}})  # nothing goes to HOME
    shell, printed = InteractiveShell(config=quiet), []
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            with capture_output() as captured:
                result = shell.run_cell("".join(cell["source"]))
            printed.append(captured.stdout + captured.stderr)
            result.raise_error()
            if "parameters" in cell["metadata"].get("tags", []):
                shell.user_ns.update({"run": run, **TINY[chapter], **changed})
    return "".join(printed)


def trained_again(*_):
    """In place of a step that must not be taken (a page shows its source)."""
    raise AssertionError("a finished training begins again")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Prepare one of the degenerate catalogues as chapter 1 does; the run's name."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    counts = dict.fromkeys(("rows_without_image", "malformed_rows"), 0)
    counts |= dict.fromkeys(("duplicate_groups", "duplicate_label_conflicts"), 0)
    counts |= {"synthetic": False, "source": "drawn", "error_floor_percent": 0.0}

    def prepared(name: str) -> str:
        run = name.replace(" ", "-")
        source = degenerate.write(name, tmp_path)
        folder = artifacts.folder(run) / "prepared"
        index = images.load(prepare.prepare(source, folder, sizes=[64])).index
        split = {part: int((index["split"] == part).sum()) for part in SPLITS}
        rows = dict.fromkeys(("rows", "images", "products"), len(index))
        artifacts.publish(run, "data", counts | rows | {"split_counts": split})
        return run

    return prepared


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("apparel only", marks=pytest.mark.slow),
        pytest.param("men only", marks=pytest.mark.nightly),
        pytest.param("one class", marks=pytest.mark.nightly),
    ],
)
def test_chapters_2_to_8_without_some_classes(name, run, monkeypatch):
    """They end; and when they run again, nothing is trained."""
    run = run(name)
    if name == "one class":  # 5; without it chapter 5 says that no class is left
        monkeypatch.setitem(TINY, "05_dcgan", TINY["05_dcgan"] | {"classes": [5]})
    for chapter in TINY:
        run_chapter(chapter, run)
    text = (artifacts.folder(run) / "metrics.json").read_text()
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", text))
    monkeypatch.setattr(training.Trainer, "train_step", trained_again)
    monkeypatch.setattr(dcgan.DCGANTrainer, "train_epoch", trained_again)
    for chapter in ("02_resnet152", "03b_methods", "05_dcgan", "07_resolution"):
        run_chapter(chapter, run)
    run_chapter("08_transfer", run)


@pytest.mark.slow
def test_chapters_3_and_4_where_all_maps_are_zero(run):
    """The last layer has no weights: no pixel changes any logit."""
    run, model = run("clustered"), models.build("resnet10")
    model.fc.weight.data.zero_()
    settings = {"architecture": "resnet10", "stem": "imagenet", "enlarge": 1.0}
    settings |= {"size": [64, 64]}
    settings |= {"classes": 6, "weights": "none", "resize_mode": "squash"}
    path = artifacts.folder(run) / "classifier.safetensors"
    artifacts.save_weights(path, model, settings)
    printed = run_chapter("03_guided_backprop", run)
    assert "Grad-CAM is zero on" in printed
    run_chapter("04_average_saliency", run)
    metrics = artifacts.read_metrics(run, "guided_backprop", "average_saliency")
    guided, averages = metrics["guided_backprop"], metrics["average_saliency"]
    for key in ("edge_similarity", "outline_density_ratio", "deletion_auc"):
        assert guided[key] is guided["methods"]["grad_cam"][key] is None
        assert guided[f"{key}_reason"].startswith("too few values")
    assert guided["random_deletion_auc"] is not None
    assert averages["edge_similarity"] is None
    assert averages["similarity_reason"]


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


# --- what the claims say of it --------------------------------------------------------


def test_a_class_without_a_generator_is_told_and_not_judged():
    metrics = artifacts.measured("small-cpu")
    alone = {"2": metrics["dcgan"]["2"]}
    _, expected = claims.gan({"dcgan": alone})
    left_out = {"1": {"images": 3, "reason": "3 training images; 8 are needed"}}
    measured, verdict = claims.gan({"dcgan": left_out | alone})
    assert verdict == expected
    assert "Women/Accessories: 3 training images; 8 are needed" in measured


def test_a_class_without_images_is_neither_best_nor_worst():
    metrics = artifacts.measured("small-cpu")
    confusion = metrics["classifier"]["confusion"]
    confusion[0] = confusion[5] = [0] * 6
    confusion[2] = [30, 0, 10, 0, 0, 0]
    measured, _ = claims.bias(metrics)
    assert "recall between 25.0% (14.2% to 40.2%) for Men/Apparel" in measured
    recall = measured.partition("recall")[2]
    assert "Men/Accessories" not in recall
    assert "Women/Other" not in recall


def test_what_is_null_is_undecided():
    """Maps of zeros, one image: every number of chapters 3 and 4 may be missing."""
    metrics = artifacts.measured("small-224-cpu")
    guided = metrics["guided_backprop"]
    for values in (guided, guided["face_density"]):
        for key in [key for key in values if key.endswith("_ci95")]:
            values[key] = values[key.removesuffix("_ci95")] = None
    told = {found.claim: found for found in claims.verdicts(metrics)}
    for claim in ("C5", "C7"):
        assert "Undecided: there is no interval." in told[claim].measured
        assert "None" not in told[claim].measured
        assert told[claim].verdict.startswith("undecided")
