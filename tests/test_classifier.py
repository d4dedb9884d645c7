"""The classifier: networks, recipe, resume, and metrics worked out by hand or by scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn

from fashionlib import artifacts, classifier, images
from fashionlib.runtime import InputError


@pytest.fixture
def data() -> images.ImageSet:
    """Forty 16x16 pictures whose class is their brightness: six levels, with a little noise."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 6, 40)
    pixels = labels[:, None, None, None] * 45 + generator.integers(0, 10, (40, 16, 16, 3))
    return images.ImageSet(pixels.astype(np.uint8), np.arange(40), labels.astype(np.int64))


def tiny() -> nn.Module:
    """A network with BatchNorm, small enough for a test."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(392, 6))


RECIPE = {"epochs": 3, "batch_size": 16, "learning_rate": 1e-2, "flip": True, "crop": 1, "device": "cpu"}


# --- build ---


def test_resnet10_is_one_basic_block_a_stage():
    model = classifier.build("resnet10", stem="small")
    assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [1, 1, 1, 1]
    assert model.conv1.stride == (1, 1)
    assert model.maxpool.kernel_size == 2
    assert model(torch.zeros(2, 3, 80, 60)).shape == (2, 6)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet1", {}, "not one of torchvision's"),
        ("resnet18", {"stem": "large"}, "stem must be one of imagenet, small"),
        ("vgg11", {"stem": "small"}, "made for ResNets"),
        ("resnet18", {"weights": "nowhere.pth"}, "weights must be none, imagenet or the path of a file"),
        ("resnet10", {"weights": "imagenet"}, "no ImageNet weights"),
    ],
)
def test_build_refuses(name, options, expected):
    with pytest.raises(InputError, match=expected):
        classifier.build(name, **options)


def test_weights_of_a_file_replace_the_body_and_leave_a_head_of_another_size(tmp_path):
    torch.manual_seed(1)
    trained = classifier.build("resnet10", classes=1000)
    torch.save(trained.state_dict(), tmp_path / "trained.pth")
    model = classifier.build("resnet10", weights=str(tmp_path / "trained.pth"))
    assert torch.equal(model.layer3[0].conv1.weight, trained.layer3[0].conv1.weight)
    assert torch.equal(model.bn1.running_var, trained.bn1.running_var)
    assert model.fc.weight.shape == (6, 512)


def test_our_own_weights_and_checkpoints_are_weights_to_start_from(tmp_path):
    trained = classifier.build("resnet10")
    artifacts.save_weights(tmp_path / "weights.safetensors", trained, {})
    state = {"model": trained.state_dict(), "optimizer": {"state": {}}, "history": []}
    artifacts.save_checkpoint(tmp_path / "checkpoint.safetensors", state, settings={})
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        model = classifier.build("resnet10", weights=str(tmp_path / name))
        assert torch.equal(model.layer4[0].conv2.weight, trained.layer4[0].conv2.weight)
        assert torch.equal(model.fc.weight, trained.fc.weight)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_damaged_file_of_weights_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"neither one nor the other")
    with pytest.raises(InputError, match="is not a file of weights"):
        classifier.build("resnet10", weights=str(tmp_path / name))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_return_plain_logits(name):
    model = classifier.build(name).train()
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 6)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(classifier.build("resnet10").state_dict(), tmp_path / "resnet10.pth")
    with pytest.raises(InputError, match="are not of this network"):
        classifier.build("resnet18", weights=str(tmp_path / "resnet10.pth"))


def test_imagenet_weights_come_from_torchs_cache(tmp_path, monkeypatch):
    """A local stand-in at the boundary: the file that the download would leave in torch's cache."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    original = torchvision.models.get_model("squeezenet1_1", weights=None)
    torch.save(original.state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    model = classifier.build("squeezenet1_1", weights="imagenet")
    assert torch.equal(model.features[0].weight, original.features[0].weight)


def test_imagenet_weights_without_network_say_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(InputError, match=r"Put resnet18-\w+\.pth.* into .*checkpoints, or choose weights = 'none'"):
        classifier.build("resnet18", weights="imagenet")


# --- fit ---


def test_fit_learns_an_easy_task_and_records_every_epoch(data):
    model = tiny()
    history = classifier.fit(model, data, data, **(RECIPE | {"epochs": 120, "learning_rate": 3e-2}))
    assert [record["epoch"] for record in history] == list(range(1, 121))
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    logits, labels = classifier.predict(model, data, device="cpu")
    assert classifier.evaluate(logits, labels)["accuracy"] > 0.8
    assert history[-1]["validation_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_the_first_epochs_may_see_half_the_size(data):
    sizes, model = [], nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6))
    model.register_forward_pre_hook(lambda _, arguments: sizes.append(tuple(arguments[0].shape[2:])))
    classifier.fit(model, data, data, half_size_epochs=2, **RECIPE)
    assert sizes == [(8, 8)] * 8 + [(16, 16)] * 4  # three batches an epoch, and one of validation


def test_training_accuracy_is_over_samples_not_over_batches(data):
    """With a rate of 0 the weights stay, so that the epoch's accuracy has one right value; 40 is no multiple of 16."""
    model = tiny()
    options = RECIPE | {"epochs": 1, "learning_rate": 0.0, "flip": False, "crop": 0, "schedule": "constant"}
    hits = 0
    for pixels, labels in images.batches(data, batch_size=16, epoch=0):
        hits += (model(pixels).argmax(1) == labels).sum().item()
    history = classifier.fit(model, data, precision="float32", **options)
    assert history[0]["train_accuracy"] == pytest.approx(hits / 40)


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path, data, monkeypatch):
    whole = tiny()
    expected = classifier.fit(whole, data, data, checkpoint=tmp_path / "whole.safetensors", **RECIPE)

    stopped = tiny()
    save = artifacts.save_checkpoint

    def save_once(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt  # the reader presses stop after the first epoch

    monkeypatch.setattr(artifacts, "save_checkpoint", save_once)
    with pytest.raises(KeyboardInterrupt):
        classifier.fit(stopped, data, data, checkpoint=tmp_path / "stopped.safetensors", **RECIPE)
    monkeypatch.undo()
    torch.manual_seed(99)  # another session, another state of the global generator
    resumed = tiny()
    history = classifier.fit(resumed, data, data, checkpoint=tmp_path / "stopped.safetensors", **RECIPE)

    assert [record["train_loss"] for record in history] == [record["train_loss"] for record in expected]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_finished_run_returns_at_once_and_other_settings_start_afresh(tmp_path, data, capsys):
    path = tmp_path / "run.safetensors"
    first = classifier.fit(tiny(), data, checkpoint=path, settings={"data": "a"}, **RECIPE)
    written = path.stat().st_mtime_ns
    assert classifier.fit(tiny(), data, checkpoint=path, settings={"data": "a"}, **RECIPE) == first
    assert path.stat().st_mtime_ns == written
    classifier.fit(tiny(), data, checkpoint=path, settings={"data": "b"}, **RECIPE)
    assert "data changed; starting afresh, the old file is kept as run.previous.safetensors" in capsys.readouterr().out
    assert (tmp_path / "run.previous.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"optimizer": "sgdd"}, "optimizer must be one of adam, adamw"),
        ({"schedule": "cosine"}, "schedule one of constant, one-cycle"),
        ({"learning_rate": 1e20, "schedule": "constant"}, "the loss is (nan|inf)"),
    ],
)
def test_fit_refuses(data, options, expected):
    with pytest.raises(InputError, match=expected):
        classifier.fit(tiny(), data, **(RECIPE | options))


# --- predict and evaluate ---


def test_predict_keeps_order_mode_and_statistics(data):
    model = tiny().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits, labels = classifier.predict(model, data, batch_size=7, device="cpu", precision="float32")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(labels, torch.from_numpy(data.labels))
    alone = images.ImageSet(data.images, data.rows[13:14], data.labels[13:14])
    expected, _ = classifier.predict(model, alone, device="cpu", precision="float32")
    torch.testing.assert_close(logits[13:14], expected)


def test_test_time_flip_is_the_mean_of_both_sides(data):
    model = tiny().eval()
    pixels, _ = next(images.batches(data, batch_size=40))
    with torch.no_grad():
        expected = (model(pixels) + model(pixels.flip(3))) / 2
    logits, _ = classifier.predict(model, data, device="cpu", precision="float32", flip=True)
    torch.testing.assert_close(logits, expected)


def test_evaluate_by_hand():
    """Five pictures: two right, one wrong in gender only (0 for 1), one in category only (2 for 0), one in both."""
    labels = torch.tensor([0, 5, 1, 0, 3])
    predicted = torch.tensor([0, 5, 0, 2, 4])
    result = classifier.evaluate(10 * torch.nn.functional.one_hot(predicted, 6).float(), labels)
    assert result["accuracy"] == 0.4
    assert (result["gender_errors"], result["category_errors"], result["both_errors"]) == (1, 1, 1)
    assert result["recall"] == [0.5, 0, 0, 0, 0, 1]
    assert result["confusion"][0] == [1, 0, 1, 0, 0, 0]
    assert result["true_distribution"] == [0.4, 0.2, 0, 0.2, 0, 0.2]
    confidence = math.exp(10) / (math.exp(10) + 5)
    assert result["expected_calibration_error"] == pytest.approx(confidence - 0.4, abs=1e-5)


def test_evaluate_agrees_with_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 6, generator=generator), torch.randint(0, 6, (500,), generator=generator)
    result = classifier.evaluate(logits, labels)
    predicted = logits.argmax(1)
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert result["macro_f1"] == pytest.approx(sklearn_metrics.f1_score(labels, predicted, average="macro"))
    wrong = result["gender_errors"] + result["category_errors"] + result["both_errors"]
    assert wrong == int((predicted != labels).sum())


def test_wilson_interval_of_eight_in_ten():
    """Worked by hand from Wilson's formula with z = 1.959964."""
    low, high = classifier.accuracy_interval(8, 10)
    z, p, n = 1.959963985, 0.8, 10
    centre, reach = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert low == pytest.approx((centre - reach) / (1 + z**2 / n))
    assert high == pytest.approx((centre + reach) / (1 + z**2 / n))
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


def test_difference_interval_of_newcombe():
    """Newcombe 1998, table II, method 10, example (a): 56/70 against 48/80 gives 0.0524 to 0.3339."""
    low, high = classifier.difference_interval((56, 70), (48, 80))
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)


def test_recall_equality_is_the_chi_square_test_by_hand():
    """Two classes of 50, 40 and 30 of them right: 35 right and 15 wrong are expected in each."""
    confusion = np.zeros((6, 6), int)
    confusion[0, 0], confusion[0, 1], confusion[1, 1], confusion[1, 0] = 40, 10, 30, 20
    corrected = 2 * (4.5**2 / 35 + 4.5**2 / 15)  # scipy corrects two-by-two tables by Yates' half
    assert classifier.recall_equality(confusion) == pytest.approx(math.erfc(math.sqrt(corrected / 2)))
    assert classifier.recall_equality(np.diag([5] * 6)) == 1.0


def test_load_gives_back_the_network_that_was_saved(tmp_path, data):
    torch.manual_seed(3)
    model = classifier.build("resnet10", stem="small").eval()
    settings = {"architecture": "resnet10", "stem": "small", "size": [16, 16]}
    artifacts.save_weights(tmp_path / "classifier.safetensors", model, settings)
    loaded, found = classifier.load(tmp_path, "cpu")
    assert found == settings
    expected, _ = classifier.predict(model, data, device="cpu", precision="float32")
    assert torch.equal(classifier.predict(loaded, data, device="cpu", precision="float32")[0], expected)
