"""Baselines: descriptions by hand, and a network that stays as it is."""

import numpy as np
import pytest
import torch

from fashionlib import baselines, evaluation, images, models


@pytest.fixture
def data() -> images.ImageSet:
    """Sixty 16x16 pictures whose class is their brightness: six levels and a little noise; class 0 is the largest."""
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(54) % 6, np.zeros(6, int)])
    pixels = labels[:, None, None, None] * 45 + generator.integers(
        0, 10, (60, 16, 16, 3)
    )
    return images.ImageSet(
        pixels.astype(np.uint8), np.arange(60), labels.astype(np.int64)
    )


def test_colour_histogram_by_hand():
    """Two pixels of a picture of eight are (255, 64, 0): ranges 3, 1, 0, hence colour 3 * 16 + 1 * 4; six are black."""
    picture = np.zeros((1, 2, 4, 3), np.uint8)
    picture[0, 0, :2] = (255, 64, 0)
    (found,) = baselines.colour_histogram(picture)
    assert found[[0, 52]].tolist() == [0.75, 0.25]
    assert found.sum() == 1


def test_silhouette_by_hand():
    """A picture of 32x32 is 16x16 cells of 2x2: one cell is inside, one is half inside, near-white is outside."""
    picture = np.full((1, 32, 32, 3), 245, np.uint8)
    picture[0, :2, :2] = 0
    picture[0, 30, 30:, 2] = 239  # the darkest channel decides
    (found,) = baselines.silhouette(picture).reshape(1, 16, 16)
    assert found[0, 0] == 1
    assert found[15, 15] == 0.5
    assert found.sum() == 1.5


def test_majority_is_the_largest_class_of_the_training_part(data):
    test = data._replace(rows=data.rows[:7], labels=data.labels[:7])
    logits = baselines.majority(data, test)
    assert logits.argmax(1).tolist() == [0] * 7
    assert logits[0].exp()[0].item() == pytest.approx(15 / 60)


def test_regression_on_colours_tells_brightness_apart(data):
    logits, seconds = baselines.regression(baselines.colour_histogram, data, data)
    by_level = {tuple(row) for row in (data.images[:, 0, 0, 0] >> 6)[:, None].tolist()}
    assert (
        len(by_level) == 4
    )  # six levels fall into four ranges: four of six classes can be told apart at best
    assert (
        0.5
        < evaluation.evaluate(logits, torch.from_numpy(data.labels))["accuracy"]
        < 0.9
    )
    assert seconds > 0


def test_regression_does_not_depend_on_how_much_is_read_at_a_time(data, monkeypatch):
    expected, _ = baselines.regression(baselines.silhouette, data, data)
    monkeypatch.setattr(baselines, "BLOCK", 7)
    assert torch.equal(
        baselines.regression(baselines.silhouette, data, data)[0], expected
    )


def test_a_frozen_network_is_a_probe_on_its_features(data):
    torch.manual_seed(0)
    found = baselines.frozen("resnet10", data, data, device="cpu", precision="float32")
    torch.manual_seed(0)
    model = models.build("resnet10")
    models.probe(model, data, device="cpu", precision="float32")
    expected, _ = models.predict(model, data, device="cpu", precision="float32")
    torch.testing.assert_close(found["logits"], expected, atol=1e-3, rtol=1e-3)
    assert found["features"] == 512
    assert found["parameters"] == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_features_are_kept(tmp_path, data):
    options = {
        "device": "cpu",
        "precision": "float32",
        "cache": tmp_path / "features.safetensors",
    }
    torch.manual_seed(0)
    first = baselines.frozen("resnet10", data, data, settings={"seed": 0}, **options)
    kept = options["cache"].read_bytes()
    torch.manual_seed(1)  # other random weights: the kept features must answer
    again = baselines.frozen("resnet10", data, data, settings={"seed": 0}, **options)
    torch.testing.assert_close(
        again["logits"], first["logits"], atol=1e-3, rtol=1e-3
    )  # the same features, fitted anew
    assert options["cache"].read_bytes() == kept
    assert again["images_per_second"] == first["images_per_second"]
    other = baselines.frozen("resnet10", data, data, settings={"seed": 1}, **options)
    assert not torch.allclose(other["logits"], first["logits"], atol=0.1)


def test_pictures_too_small_for_a_network_are_enlarged(data):
    few = data._replace(rows=data.rows[:6], labels=data.labels[:6])
    for name, numbers in (("inception_v3", 2048), ("alexnet", 4096)):
        found = baselines.frozen(name, few, few, device="cpu", precision="float32")
        assert found["logits"].shape == (6, 6)
        assert found["features"] == numbers


def test_a_part_is_drawn_evenly_over_the_classes(data):
    part = baselines.every_class(data, 18)
    assert np.bincount(part.labels).tolist() == [3] * 6
    assert (data.labels[part.rows] == part.labels).all()
    assert sorted(baselines.every_class(data, 1000).rows) == data.rows.tolist()


def test_a_share_of_the_labels_keeps_every_class_and_grows(data):
    """Of 6 classes with 1 to 6 x 10 pictures: a tenth, but at least one; a larger share holds the smaller one."""
    labels = np.repeat(np.arange(6), np.arange(10, 70, 10))
    whole = data._replace(rows=np.arange(len(labels)) * 3, labels=labels)
    tenth, fifth, least = (
        baselines.share_of_labels(whole, share, seed=1) for share in (0.1, 0.2, 0.001)
    )
    assert np.bincount(tenth.labels).tolist() == [1, 2, 3, 4, 5, 6]
    assert np.bincount(least.labels).tolist() == [1] * 6
    assert set(tenth.rows) < set(fifth.rows)
    assert (labels[tenth.rows // 3] == tenth.labels).all()
    assert not np.array_equal(
        tenth.rows, baselines.share_of_labels(whole, 0.1, seed=2).rows
    )
    assert np.array_equal(baselines.share_of_labels(whole, 1.0).rows, whole.rows)
