"""The command line, called in this process."""

import os
import re
from dataclasses import asdict

import numpy as np
import pytest
from conftest import csv_line, encode, write_catalogue
from PIL import Image

from fashionlib import artifacts, images, models, parameters, training
from fashionlib.__main__ import main
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.data import prepare


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """A build folder of its own, with what shells, globs and formats give a meaning."""
    folder = tmp_path / "b $u'i[l]d é%s {0}"
    monkeypatch.setenv("FASHION_BUILD", str(folder))
    return folder


def refused(*arguments: str) -> str:
    """The one line that a mistake ends with."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    message = caught.value.code  # sys.exit prints it on stderr; the status is 1
    assert len(message.splitlines()) == 1
    return message


def save_network(run: str) -> None:
    settings = {"architecture": "resnet10", "stem": "small", "enlarge": 1.0}
    settings |= {"size": [16, 12]}
    settings |= {"classes": 6, "weights": "none", "resize_mode": "pad"}
    model = models.build("resnet10", stem="small")
    model.fc.weight.data.zero_()
    model.fc.bias.data.zero_()
    model.fc.bias.data[2] = 5
    path = artifacts.folder(run) / "classifier.safetensors"
    artifacts.save_weights(path, model, settings)


def test_predict_prints_the_probability_of_each_class(tmp_path, capsys):
    save_network("mine")
    Image.new("RGB", (300, 400), (200, 10, 10)).save(tmp_path / "photo.jpg")
    main(["predict", str(tmp_path / "photo.jpg"), "--run", "mine"])
    lines = re.findall(r"(\S+) +([\d.]+) %", capsys.readouterr().out)
    assert [name for name, _ in lines] == list(CLASS_NAMES)
    expected = 100 * np.exp(5) / (np.exp(5) + 5)
    assert float(dict(lines)["Men/Apparel"]) == pytest.approx(expected, abs=0.06)


def test_predict_of_an_unknown_run_names_the_chapter_and_makes_nothing(build):
    assert "02_resnet152" in refused("predict", "photo.jpg", "--run", "smal")
    assert not build.exists()


@pytest.mark.parametrize("run", ["../../x", "/x", "..", "", "a b", "a/b"])
def test_predict_of_a_run_with_no_plain_name_makes_nothing(run, tmp_path):
    assert "run must be" in refused("predict", "photo.jpg", "--run", run)
    assert not list(tmp_path.iterdir())


def test_predict_of_what_is_no_image_is_one_line(tmp_path):
    save_network("sample")
    assert "missing.jpg" in refused("predict", str(tmp_path / "missing.jpg"))
    (tmp_path / "words.jpg").write_bytes(b"not an image")
    assert "words.jpg" in refused("predict", str(tmp_path / "words.jpg"))
    os.mkfifo(tmp_path / "pipe.jpg")
    for endless in (str(tmp_path / "pipe.jpg"), "/dev/zero"):
        assert "no ordinary file" in refused("predict", endless)


def test_fit_needs_a_profile_and_its_first_chapter():
    assert "'nowhere'" in refused("fit", "--profile", "nowhere")
    assert "01_data_preparation" in refused("fit", "--profile", "small")


def test_fit_trains_what_chapter_2_takes_over(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (36, 64, 64, 3), dtype=np.uint8)
    kinds = [("Men", "Apparel"), ("Women", "Apparel"), ("Men", "Footwear")]
    lines = [csv_line(i, *kinds[i % 3], name=f"Product {i}") for i in range(1, 37)]
    files = {i: encode(pixels[i - 1]) for i in range(1, 37)}
    source = write_catalogue(tmp_path / "catalogue", lines, files)
    folder = artifacts.folder("sample")
    prepared = prepare.prepare(source, folder / "prepared", sizes=[64])

    recipe = training.Recipe(epochs=1, batch_size=16, learning_rate=1e-3)
    network = {"architecture": "resnet10", "stem": "small", "weights": "none"}
    network |= {"size": [64, 64], "enlarge": 1.5}
    options = {"probe_first": True, "precision": "float32", "compiled": False}
    chosen = asdict(recipe) | network | options
    monkeypatch.setattr(parameters, "for_profile", lambda chapter, profile: chosen)
    main(["fit"])
    assert "validation accuracy" in capsys.readouterr().out
    (checkpoint,) = folder.glob("classifier-*.pt")
    written = checkpoint.stat().st_mtime_ns
    _, history = training.train_classifier(
        images.load(prepared), folder, recipe, network=network, **options
    )
    assert [record["epoch"] for record in history] == [0, 1]  # 0: the probe
    assert checkpoint.stat().st_mtime_ns == written
    assert models.load(folder)[1]["architecture"] == "resnet10"
