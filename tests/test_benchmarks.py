"""The benchmarks' own code: what can be tried without measuring anything."""

import importlib
import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fashionlib import models, runtime
from fashionlib.catalogue import COLUMNS
from fashionlib.data import synthetic

FOLDER = runtime.project_root() / "benchmarks"
FILES = [*FOLDER.glob("*.py"), *FOLDER.glob("experiments/*.py")]
ROW = {"what": "a figure", "value": 1.5, "unit": "images/s", "spread": [1.0, 2.0]}


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark or an experiment by its name."""
    loaded = []
    for folder in (FOLDER, FOLDER / "experiments"):
        monkeypatch.syspath_prepend(str(folder))

    def load(name):
        loaded.append(name)
        return importlib.import_module(name)

    yield load
    for name in loaded:
        sys.modules.pop(name, None)


@pytest.fixture
def measuring(load):
    return load("measuring")


# --- results --------------------------------------------------------------------------


def test_rows_and_ratios_are_medians_with_their_range(measuring):
    row = measuring.row("ours", [3.0, 1.0, 2.04])
    assert row == {"what": "ours", "value": 2.0, "unit": "images/s", "spread": [1, 3]}
    rates = {"ours": [3, 1, 2], "slow": [1, 1, 1], "fast": [4, 4, 9]}
    assert measuring.ratio(rates, "ours", "slow", "fast") == 0.5


def test_results_go_to_their_folder_and_onto_the_projects_pages(
    measuring, monkeypatch, tmp_path
):
    pages = [tmp_path / "README.md", tmp_path / "benchmarks" / "README.md"]
    pages[1].parent.mkdir()
    pages[0].write_text("a\n<!-- ratios -->\nold\n<!-- ratios -->\nb\n")
    pages[1].write_text("a\n<!-- gan -->\n<!-- gan -->\nb\n")
    before = [page.read_text() for page in pages]
    results = tmp_path / "benchmarks" / "results"
    monkeypatch.setattr(measuring, "ROOT", tmp_path)
    monkeypatch.setattr(measuring, "RESULTS", results)
    ratios = {"gan_vs_example": 2.78}
    measuring.write("gan", [ROW], ratios, folder=tmp_path / "elsewhere", budget=[1])
    assert [page.read_text() for page in pages] == before
    written = json.loads((tmp_path / "elsewhere" / "gan.json").read_text())
    assert (written["rows"], written["ratios"]) == ([ROW], ratios)
    assert written["budget"] == [1]
    measuring.write("gan", [ROW], ratios, folder=results)
    assert "| a figure | 1.5 | images/s | 1.0 to 2.0 |" in pages[1].read_text()
    assert "2.78" in pages[0].read_text()
    assert "old" not in pages[0].read_text()
    for page in pages:
        assert page.read_text().startswith("a\n")
        assert page.read_text().endswith("b\n")


def test_a_machine_without_git_knows_no_commit(measuring, monkeypatch):
    monkeypatch.setattr(measuring.shutil, "which", lambda name: None)
    assert measuring.commit() == "unknown"


def test_every_result_has_its_place_on_the_page():
    page = (FOLDER / "README.md").read_text()
    for path in FILES:
        for name in re.findall(r'measuring\.\w+\(\s*"(\w+)", rows', path.read_text()):
            assert page.count(f"<!-- {name} -->\n") == 2, f"{path.name} writes {name}"


# --- images and rounds ----------------------------------------------------------------


@pytest.mark.slow
def test_a_clone_without_the_real_catalogue_measures_synthetic_images(
    monkeypatch, tmp_path, capsys, measuring
):
    import conftest

    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    monkeypatch.setattr(conftest, "real_data_folder", lambda: None)
    for count in (40, 16):
        _, images = measuring.photographs(count)
        assert len(images) == count
        assert {image.mode for image in images} == {"RGB"}
    assert "not here" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="FASHION_REAL_DATA"):
        measuring.real_catalogue("fashion-product-images-small.zip")


def test_the_files_and_the_array_hold_the_same_images(measuring, tmp_path):
    image = Image.new("RGB", (40, 30), (250, 20, 90))
    measuring.write_pictures(tmp_path, [image], side=16, count=8)
    data = measuring.read_pictures(tmp_path, 7)
    assert data.images.shape == (8, 16, 16, 3)
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert (data.images[data.rows] == (250, 20, 90)).all()
    files = sorted((tmp_path / "jpeg").rglob("*.jpg"))
    assert len(files) == 8
    with Image.open(tmp_path / "jpeg" / "1" / "00007.jpg") as file:
        assert np.abs(np.asarray(file, int) - (250, 20, 90)).max() <= 4


@pytest.mark.slow
def test_candidates_in_processes_answer_and_may_print(measuring):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import measuring; "
    code += "measuring.serve(lambda: print('a bar'))"
    command = [sys.executable, "-c", code, str(FOLDER)]
    found = measuring.in_processes({"ours": command, "peer": command}, rounds=2)
    for name in ("ours", "peer"):
        assert [set(answer) for answer in found[name]] == [{"seconds", "faults"}] * 2


@pytest.mark.slow
def test_a_candidate_that_stops_says_why(measuring):
    code = "import sys; sys.stdin.readline(); 1 / 0"
    with pytest.raises(SystemExit, match=r"(?s)ours.*ZeroDivisionError"):
        measuring.in_processes({"ours": [sys.executable, "-c", code]}, 1)


# --- gpu.py ---------------------------------------------------------------------------


@pytest.fixture
def gpu(load):
    return load("gpu")


@pytest.mark.slow
def test_the_gpu_benchmark_makes_a_dry_run(gpu, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu.measuring, "write", None)
    gpu.main([])
    assert re.search(r"dry run, [5-9] figures", capsys.readouterr().out)


def a_catalogue(folder):
    (folder / "images").mkdir()
    Image.new("RGB", (6, 8)).save(folder / "images" / "1.jpg")
    product = "1,Men,Apparel,Topwear,Shirts,Blue,Fall,2011,Casual,Shirt"
    (folder / "styles.csv").write_text(f"{','.join(COLUMNS)}\n{product}\n")
    return str(folder)


@pytest.mark.parametrize("option", ["source", "weights", "out", "minutes", "epochs"])
def test_the_gpu_benchmark_looks_at_its_options_first(gpu, option, tmp_path, capsys):
    source = a_catalogue(tmp_path)
    arguments = {
        "source": ["--source", "typo.zip"],
        "weights": ["--source", source, "--weights", "typo.pth"],
        "out": ["--out", f"{source}/styles.csv"],
        "minutes": ["--minutes", "0"],
        "epochs": ["--epochs", "0"],
    }[option]
    with pytest.raises(SystemExit, match=rf"^error: .*{option}"):
        gpu.main(arguments)
    assert capsys.readouterr().out == ""


def test_each_figure_is_kept_at_once_and_what_does_not_fit_is_named(gpu, capsys):
    kept, rows = [], [ROW | {"what": name} for name in "abcd"]

    def keep(rows, left_out):
        kept.append((len(rows), len(left_out)))

    def too_large():
        yield rows[2]
        raise runtime.InputError("lower micro_batch")

    def fails():
        raise AssertionError("not in the time that is left")

    parts = [
        gpu.Part("first", 1, lambda: iter(rows[:2])),
        gpu.Part("long", 3600, fails),
        gpu.Part("large", 1, too_large),
        gpu.Part("last", 1, lambda: iter(rows[3:])),
    ]
    found, left_out = gpu.measure(parts, 10, keep)
    assert found == rows
    assert [reason.split(":")[0] for reason in left_out] == ["long", "large"]
    assert "micro_batch" in left_out[1]
    assert kept == [(1, 0), (2, 0), (3, 1), (4, 2), (4, 2)]
    assert "left out: long" in capsys.readouterr().out


def test_a_slower_gpu_leaves_out_what_would_take_it_too_long(gpu, monkeypatch):
    """A part of 1 s took 100: one of 2 s takes 200, and only 160 s are left."""
    clock = iter([0, 0, 100, 140, math.nan])
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    parts = [gpu.Part("a", 1, lambda: iter([ROW])), gpu.Part("b", 2, lambda: None)]
    rows, (reason,) = gpu.measure(parts, 5, lambda *what: None)
    assert len(rows) == 1
    assert reason.startswith("b: takes about 200 s")


# --- experiments ----------------------------------------------------------------------


def no_download(url, what):
    raise runtime.InputError(f"{what} could not be had. Download {url}.")


def toy_ablation(experiment):
    experiment.SIZE, experiment.IMAGES = (32, 24), 24
    chosen = (experiment.WHOLE, "BatchNorm's statistics kept")
    experiment.VARIANTS = {name: experiment.VARIANTS[name] for name in chosen}


def toy_splits(experiment):
    experiment.SIZE = (32, 24)


def toy_resolution(experiment):
    experiment.SIDES, experiment.STEMS = (32, 64), [(32, "small"), (64, "imagenet")]
    experiment.FULL, experiment.SHAPE_IMAGES = "64x64, imagenet stem", 16


def toy_transfer(experiment):
    experiment.SIZE, experiment.SEEDS = (32, 24), (0, 1)
    experiment.EPOCHS = {0.1: 1, 1.0: 1}


def keys(value, depth):
    """Keys of nested dictionaries, as far down as `depth`."""
    if not depth or not isinstance(value, dict):
        return set()
    found = set(value)
    for each in value.values():
        found |= keys(each, depth - 1)
    return found


def test_a_gain_has_an_interval_over_seeds_and_one_over_images(load):
    """Two seeds, four images: gains of 1/4 and 3/4, of 0, 1/2, 1/2 and 1."""
    transfer = load("transfer")
    ours = np.array([[0, 1, 0, 1], [0, 1, 1, 1]], bool)
    others = np.array([[0, 1, 0, 0], [0, 0, 0, 0]], bool)
    found = transfer.minus("gain", list(ours), list(others))
    # Student's factor for 1 degree of freedom, 12.706, times the standard error 1/4
    assert found["gain"].value == 0.5
    assert np.allclose(found["gain"].ci95, [0.5 - 3.1766, 0.5 + 3.1766], atol=1e-4)
    # for 3 degrees, 3.1824; the deviation is sqrt(1/6), its error half of that
    reach = 3.1824 * math.sqrt(1 / 6) / 2
    expected = [0.5 - reach, 0.5 + reach]
    assert np.allclose(found["gain_products_ci95"], expected, atol=1e-4)


READ = {  # by the chapters, of every experiment
    "ablation": ({"budget", "variants", "pictures", "epochs", "seeds", "each"}, 3),
    "splits": ({"rules", "naive", "all", "images", "accuracy", "ci95"}, 4),
    "resolution": (
        {"class_accuracy", "tested_at", "against_224", "against_squash", "pictures"}
        | {"images_per_second", "seconds_an_epoch", "floor", "there and back", "64"},
        4,
    ),
    "transfer": (
        {"pretraining", "rates", "seeds_ci95", "gain_ci95", "gain_products_ci95"}
        | {"minus_imagenet", "minus_imagenet_ci95", "minus_imagenet_products_ci95"}
        | {"test_pictures", "labels", "pretraining_epochs", "not_measured"},
        5,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
def test_an_experiment_runs_at_toy_size_and_keeps_what_chapters_read(
    name, load, measuring, monkeypatch, tmp_path
):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(models, "download", no_download)
    experiment = load(name)
    globals()[f"toy_{name}"](experiment)
    for recipe in ("RECIPE", "SHAPE_RECIPE"):
        if hasattr(experiment, recipe):
            small = replace(getattr(experiment, recipe), epochs=1, batch_size=16)
            setattr(experiment, recipe, small)
    source = synthetic.draw(tmp_path / "catalogue", products=150)
    monkeypatch.setattr(measuring, "real_catalogue", lambda name: source)
    write = measuring.write
    monkeypatch.setattr(
        measuring,
        "write",
        lambda *result, **more: write(*result, folder=tmp_path, **more),
    )
    experiment.main()
    kept = json.loads((tmp_path / f"{name}.json").read_text())
    expected, depth = READ[name]
    assert not expected - keys(kept, depth)
    assert kept["rows"]
