"""The classifier: networks, where their weights come from, features and probe, a picture of one's own."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import csv_line, encode, solid, write_catalogue
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from fashionlib import artifacts, images, models, runtime
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.data import prepare
from fashionlib.runtime import InputError

# --- build ---


def test_resnet10_is_one_basic_block_a_stage():
    model = models.build("resnet10", stem="small")
    assert [
        len(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)
    ] == [1, 1, 1, 1]
    assert model.conv1(torch.zeros(2, 3, 80, 60)).shape == (2, 64, 40, 30)
    assert model(torch.zeros(2, 3, 80, 60)).shape == (2, 6)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet1", {}, "not one of torchvision's"),
        ("resnet18", {"stem": "large"}, "stem must be one of imagenet, small"),
        ("vgg11", {"stem": "small"}, "made for ResNets"),
        (
            "resnet18",
            {"weights": "nowhere.pth"},
            "weights must be none, imagenet or the path of a file",
        ),
        ("resnet10", {"weights": "imagenet"}, "no ImageNet weights"),
    ],
)
def test_build_refuses(name, options, expected):
    with pytest.raises(InputError, match=expected):
        models.build(name, **options)


def test_weights_of_a_file_replace_the_body_and_leave_a_head_of_another_size(tmp_path):
    torch.manual_seed(1)
    trained = models.build("resnet10", classes=1000)
    torch.save(trained.state_dict(), tmp_path / "trained.pth")
    model = models.build("resnet10", weights=str(tmp_path / "trained.pth"))
    assert torch.equal(model.layer3[0].conv1.weight, trained.layer3[0].conv1.weight)
    assert torch.equal(model.bn1.running_var, trained.bn1.running_var)
    assert model.fc.weight.shape == (6, 512)


def test_our_own_weights_and_checkpoints_are_weights_to_start_from(tmp_path):
    trained = models.build("resnet10")
    artifacts.save_weights(tmp_path / "weights.safetensors", trained, {})
    state = {"model": trained.state_dict(), "optimizer": {"state": {}}, "history": []}
    artifacts.save_checkpoint(tmp_path / "checkpoint.safetensors", state, settings={})
    for name in ("weights.safetensors", "checkpoint.safetensors"):
        model = models.build("resnet10", weights=str(tmp_path / name))
        assert torch.equal(model.layer4[0].conv2.weight, trained.layer4[0].conv2.weight)
        assert torch.equal(model.fc.weight, trained.fc.weight)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_damaged_file_of_weights_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"neither one nor the other")
    with pytest.raises(InputError, match="is not a file of weights"):
        models.build("resnet10", weights=str(tmp_path / name))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_return_plain_logits(name):
    model = models.build(name).train()
    assert model(torch.zeros(2, 3, 96, 96)).shape == (2, 6)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(models.build("resnet10").state_dict(), tmp_path / "resnet10.pth")
    with pytest.raises(InputError, match="are not of this network"):
        models.build("resnet18", weights=str(tmp_path / "resnet10.pth"))


def test_imagenet_weights_come_from_torchs_cache(tmp_path, monkeypatch):
    """A local stand-in at the boundary: the file that the download would leave in torch's cache."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    original = torchvision.models.get_model("squeezenet1_1", weights=None)
    torch.save(
        original.state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    )
    model = models.build("squeezenet1_1", weights="imagenet")
    assert torch.equal(model.features[0].weight, original.features[0].weight)


def test_imagenet_weights_with_the_names_of_older_files(tmp_path, monkeypatch):
    """DenseNet's file says norm.1 where the network says norm1."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("densenet121").IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    original = torchvision.models.get_model("densenet121", weights=None)
    older = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): value
        for name, value in original.state_dict().items()
        if not name.endswith("num_batches_tracked")  # as old as that
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1])
    model = models.build("densenet121", weights="imagenet")
    ours, theirs = (
        net.features.denseblock4.denselayer16.conv2.weight for net in (model, original)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("name", "converts"), [("googlenet", True), ("resnet18", False)]
)
def test_networks_whose_weights_want_other_pixels_convert_them(
    tmp_path, monkeypatch, name, converts
):
    """torchvision sets the flag where it loads ImageNet's weights itself."""
    monkeypatch.setattr(
        classifier, "_weights", lambda *_: models.build(name).state_dict()
    )
    model = models.build(name, weights="imagenet")
    assert getattr(model, "transform_input", False) == converts
    settings = {"architecture": name, "stem": "imagenet", "weights": "imagenet"}
    artifacts.save_weights(tmp_path / "classifier.safetensors", model, settings)
    assert (
        getattr(models.load(tmp_path, "cpu")[0], "transform_input", False) == converts
    )


def test_a_damaged_file_in_torchs_cache_is_one_line(tmp_path, monkeypatch):
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]).write_bytes(
        b"half a download"
    )
    with pytest.raises(InputError, match="could not be had"):
        models.build("squeezenet1_1", weights="imagenet")


def test_imagenet_weights_without_network_say_where_to_put_the_file(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(
        InputError,
        match=r"Put resnet18-\w+\.pth.* into .*checkpoints, or choose weights = 'none'",
    ):
        models.build("resnet18", weights="imagenet")


# --- features and probe ---


@pytest.fixture
def data() -> images.ImageSet:
    """Twelve random pictures of 96x96, two of each class."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
    return images.ImageSet(pixels, np.arange(12), np.arange(12) % 6)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (
            "resnet10",
            lambda model: nn.Sequential(*list(model.children())[:-1], nn.Flatten()),
        ),
        (
            "mobilenet_v3_small",
            lambda model: nn.Sequential(
                model.features, model.avgpool, nn.Flatten(), model.classifier[:-1]
            ),
        ),
    ],
)
def test_features_are_what_the_head_receives(data, name, body):
    torch.manual_seed(0)
    model = models.build(name).eval()
    found = models.features(
        model, data, batch_size=5, device="cpu", precision="float32"
    )
    with torch.no_grad():
        expected = body(model)(next(images.batches(data, batch_size=12))[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_need_a_linear_layer(data):
    with pytest.raises(InputError, match="has no linear layer"):
        models.features(nn.Sequential(nn.Flatten()), data, device="cpu")


def test_the_probe_makes_the_head_scikit_learns_regression(data):
    torch.manual_seed(0)
    model = models.build("resnet10")
    body = model.layer4[0].conv2.weight.clone()
    models.probe(model, data, device="cpu", precision="float32")
    inputs = models.features(model, data, device="cpu", precision="float32").numpy()
    scaler = StandardScaler().fit(inputs)
    regression = LogisticRegression(C=0.01, max_iter=300).fit(
        scaler.transform(inputs), data.labels
    )
    logits, _ = models.predict(model, data, device="cpu", precision="float32")
    expected = regression.predict_proba(scaler.transform(inputs))
    torch.testing.assert_close(
        logits.softmax(1), torch.from_numpy(expected).float(), atol=1e-3, rtol=1e-3
    )
    assert torch.equal(model.layer4[0].conv2.weight, body)


@pytest.mark.parametrize("classes", [[0, 4], [1, 2, 5]])
def test_a_class_without_pictures_is_never_the_probes_answer(classes):
    inputs = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor(classes)[
        (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long() * (len(classes) > 2)
    ]
    weight, bias = models.linear_probe(inputs, labels)
    scaler = StandardScaler().fit(inputs)
    regression = LogisticRegression(C=0.01, max_iter=300).fit(
        scaler.transform(inputs), labels
    )
    found = (inputs @ weight.T + bias).argmax(1)
    assert found.tolist() == regression.predict(scaler.transform(inputs)).tolist()
    assert len(set(found.tolist())) > 1


# --- train ---


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A prepared run `sample` of thirty-six small pictures, in a build folder of its own."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    random = np.random.default_rng(0)
    pictures = {
        i: encode(random.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        for i in range(1, 37)
    }
    kinds = [
        (gender, category)
        for gender in ("Men", "Women")
        for category in ("Accessories", "Apparel", "Footwear")
    ]
    lines = [csv_line(i, *kinds[i % 6], name=f"Product {i}") for i in pictures]
    source = write_catalogue(tmp_path / "catalogue", lines, pictures)
    return images.load(
        prepare.prepare(source, artifacts.folder("sample") / "prepared", sizes=[64])
    )


NETWORK = {
    "architecture": "resnet10",
    "size": [64, 64],
    "device": "cpu",
    "precision": "float32",
}
SHORT = models.Recipe(epochs=1, batch_size=16, learning_rate=1e-3)


def test_train_leaves_weights_that_load(prepared):
    model, history = models.train(
        prepared, artifacts.folder("sample"), SHORT, **NETWORK
    )
    loaded, settings = models.load(artifacts.folder("sample"), "cpu")
    assert all(
        torch.equal(value, loaded.state_dict()[name])
        for name, value in model.state_dict().items()
    )
    assert (settings["size"], settings["fit"], len(history)) == ([64, 64], "squash", 1)


def test_train_may_begin_with_a_probe(prepared):
    """With a rate of 0 the head stays the probe's."""
    still = replace(SHORT, learning_rate=0.0, schedule="constant")
    model, _ = models.train(
        prepared, artifacts.folder("sample"), still, probe_first=True, **NETWORK
    )
    runtime.seed_everything(still.seed)
    expected = models.build("resnet10")
    models.probe(
        expected, prepared.subset("train", 64), device="cpu", precision="float32"
    )
    torch.testing.assert_close(model.fc.weight, expected.fc.weight)


def test_the_command_line_trains_what_chapter_2_takes_over(prepared):
    command = [sys.executable, "-m", "fashionlib.models", "fit", "--profile", "sample"]
    result = subprocess.run(
        command, cwd=runtime.project_root(), capture_output=True, text=True, check=True
    )
    assert "chapter 2 now takes it over" in result.stdout
    checkpoint = artifacts.folder("sample") / "classifier.checkpoint.safetensors"
    written = checkpoint.stat().st_mtime_ns
    parameters = artifacts.parameters_of("02_resnet152", "sample")
    recipe = models.Recipe.of(parameters)
    names = (
        "architecture",
        "size",
        "weights",
        "stem",
        "probe_first",
        "precision",
        "compiled",
    )
    options = {name: parameters[name] for name in names}
    _, history = models.train(prepared, artifacts.folder("sample"), recipe, **options)
    assert len(history) == recipe.epochs
    assert checkpoint.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        ("nowhere", "profile must be sample or a folder of profiles/"),
        ("small", "prepared of run 'small' is missing"),
    ],
)
def test_the_command_line_refuses_in_one_line(tmp_path, monkeypatch, profile, expected):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    command = [sys.executable, "-m", "fashionlib.models", "fit", "--profile", profile]
    result = subprocess.run(
        command, cwd=runtime.project_root(), capture_output=True, text=True
    )
    assert result.returncode == 1
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1


# --- use ---


def test_load_gives_back_the_network_that_was_saved(tmp_path, data):
    torch.manual_seed(3)
    model = models.build("resnet10", stem="small").eval()
    settings = {"architecture": "resnet10", "stem": "small", "size": [96, 96]}
    artifacts.save_weights(tmp_path / "classifier.safetensors", model, settings)
    loaded, found = models.load(tmp_path, "cpu")
    assert found == settings
    expected, _ = models.predict(model, data, device="cpu", precision="float32")
    assert torch.equal(
        models.predict(loaded, data, device="cpu", precision="float32")[0], expected
    )


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run `sample` whose network always answers class 2, in a build folder of its own."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    model = models.build("resnet10", stem="small")
    nn.init.zeros_(model.fc.weight)
    model.fc.bias.data = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 0.0])
    settings = {
        "architecture": "resnet10",
        "stem": "small",
        "size": [16, 12],
        "fit": "pad",
    }
    artifacts.save_weights(
        artifacts.folder("sample") / "classifier.safetensors", model, settings
    )
    return tmp_path


def classify(*arguments) -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        "-m",
        "fashionlib.models",
        "predict",
        *map(str, arguments),
    ]
    return subprocess.run(
        command, cwd=runtime.project_root(), capture_output=True, text=True
    )


def test_a_picture_of_ones_own_is_classified(trained):
    (trained / "photo.jpg").write_bytes(
        solid((200, 10, 10), (300, 400), file_format="JPEG")
    )
    result = classify(trained / "photo.jpg")
    shares = {
        line[:18].strip(): float(line[18:].split()[0])
        for line in result.stdout.splitlines()
    }
    assert list(shares) == list(CLASS_NAMES)
    assert shares["Men/Apparel"] == pytest.approx(
        100 * np.exp(5) / (np.exp(5) + 5), abs=0.06
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("missing.jpg", None, "is no picture that can be read"),
        ("words.jpg", b"not a picture", "is no picture that can be read"),
    ],
)
def test_what_is_no_picture_is_one_line(trained, name, content, expected):
    if content is not None:
        (trained / name).write_bytes(content)
    result = classify(trained / name)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert expected in result.stderr


def test_classifying_needs_a_trained_network(tmp_path, monkeypatch):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    result = classify("photo.jpg")
    assert result.returncode == 1
    assert "chapter 02_resnet152 makes it" in result.stderr
