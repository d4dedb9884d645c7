"""The classifier: any torchvision network on the six classes: build, train, use.

    model = models.build("resnet152", weights="imagenet")
    recipe = models.Recipe(epochs=25, batch_size=256, learning_rate=1e-4)
    history = models.fit(model, prepared.subset("train", 224), prepared.subset("validation", 224), recipe=recipe)
    logits, labels = models.predict(model, prepared.subset("test", 224))

    python -m fashionlib.models predict photo.jpg --run small      # a picture of your own
    accelerate launch -m fashionlib.models fit --profile full      # chapter 2's training on all GPUs

`Recipe`, `fit` and `predict` live in `fashionlib.training`, what a result consists of in `fashionlib.evaluation`.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fashionlib import artifacts, images, runtime
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.data import decoding
from fashionlib.images import ImageSet, Prepared
from fashionlib.runtime import InputError
from fashionlib.training import Recipe, fit, head, predict

__all__ = [
    "Recipe",
    "build",
    "classify",
    "download",
    "features",
    "fit",
    "head",
    "load",
    "predict",
    "probe",
    "train",
]
STEMS = ("imagenet", "small")
# What torch.load and safetensors raise for a file that is not one of weights.
DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    pickle.UnpicklingError,
    SafetensorError,
)


# --- build ------------------------------------------------------------------------------------------------------------


def build(
    architecture: str,
    *,
    weights: str = "none",
    stem: str = "imagenet",
    classes: int = 6,
) -> nn.Module:
    """A torchvision classification network by name, with a head for `classes` classes, in channels_last.

    architecture: a name from `torchvision.models.list_models`, or `resnet10` (one basic block a stage, 4.9 million
    parameters). weights: `none`, `imagenet` (version 1: the better features, pytorch/vision#8382), or the path of a
    .safetensors or .pth file; its head is taken over only where the number of classes is the same.
    stem: `imagenet` (7x7, stride 2, pool), or for pictures below 100 pixels `small` (3x3, stride 1, 2x2 pool; ResNets).
    Raises InputError for an unknown name or weights that cannot be had. He et al. 2016. Taught in: chapter 2.
    """
    if stem not in STEMS:
        raise InputError(f"stem must be one of {', '.join(STEMS)}; found {stem!r}.")
    if architecture == "resnet10":
        model = torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=classes
        )
    elif architecture in torchvision.models.list_models(module=torchvision.models):
        auxiliary = (
            {"aux_logits": False, "init_weights": True}
            if architecture in ("googlenet", "inception_v3")
            else {}
        )
        model = torchvision.models.get_model(
            architecture, weights=None, num_classes=classes, **auxiliary
        )
    else:
        raise InputError(
            f"architecture {architecture!r} is not one of torchvision's: see torchvision.models.list_models()."
        )
    if stem == "small":
        if not isinstance(model, torchvision.models.ResNet):
            raise InputError(
                f"stem 'small' is made for ResNets; {architecture} keeps stem = 'imagenet'."
            )
        first = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
        # Pooled at once, BatchNorm and ReLU see a quarter of the pixels: a step takes 0.38 s, not 0.45. A positive
        # scale and ReLU leave the largest of four values the largest, so that hardly anything is lost.
        model.conv1, model.maxpool = (
            nn.Sequential(first, nn.MaxPool2d(2)),
            nn.Identity(),
        )
    if weights != "none":
        _load_backbone(model, _weights(architecture, weights), weights)
        _expect_its_pixels(model, weights)
    return model.to(memory_format=torch.channels_last)


def _weights(architecture: str, weights: str) -> dict[str, torch.Tensor]:
    """The state to start from: torchvision's ImageNet weights (downloaded once) or a file; no pickle is executed."""
    if weights != "imagenet":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(
                f"weights must be none, imagenet or the path of a file; found {weights!r}."
            )
        try:
            if (
                path.suffix == ".safetensors"
            ):  # a checkpoint of `fit` holds the optimizer's tensors too
                return {
                    name.removeprefix("model/"): value
                    for name, value in load_file(path).items()
                }
            return torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGED as error:
            raise InputError(
                f"{path} is not a file of weights that torch can read: {error}"
            ) from error
    known = (
        {}
        if architecture == "resnet10"
        else torchvision.models.get_model_weights(architecture).__members__
    )
    if "IMAGENET1K_V1" not in known:
        raise InputError(
            f"torchvision has no ImageNet weights (version 1) of {architecture}: choose weights = 'none'."
        )
    try:
        download(known["IMAGENET1K_V1"].url, f"ImageNet weights of {architecture}")
    except InputError as error:
        raise InputError(f"{error}, or choose weights = 'none'.") from error
    # torchvision's own way into the network: files of DenseNets and vision transformers have older names in them
    return torchvision.models.get_model(
        architecture, weights=known["IMAGENET1K_V1"]
    ).state_dict()


def download(url: str, what: str) -> dict[str, torch.Tensor]:
    """The weights at an address, downloaded once into torch's cache; no pickle is executed.

    Raises InputError where they cannot be had, with the folder that a file downloaded by hand belongs in.
    Taught in: chapter 2.
    """
    try:
        return torch.hub.load_state_dict_from_url(
            url, map_location="cpu", weights_only=True, progress=False
        )
    except DAMAGED as error:  # no network, or half a download
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        reason = " ".join(str(error).split())[:200]
        file = Path(url).name
        raise InputError(
            f"{what} could not be had ({reason}). Put {file}, which {url} offers, into {folder}"
        ) from error


def _load_backbone(
    model: nn.Module, state: dict[str, torch.Tensor], origin: str
) -> None:
    """Load all that fits; only the head may differ in shape, everything else must be there."""
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if name in own and own[name].shape == value.shape
    }
    missing = own.keys() - fitting.keys()
    body = sorted(
        name for name in missing if not name.startswith(("fc", "classifier", "head"))
    )
    if body:
        raise InputError(
            f"weights {origin!r} are not of this network: {body[0]} and {len(body) - 1} more do not fit."
        )
    model.load_state_dict(fitting, strict=False)


def _expect_its_pixels(model: nn.Module, weights: str) -> None:
    """GoogLeNet's and Inception's ImageNet weights want pixels from -1 to 1: the network then converts ours."""
    if weights == "imagenet" and hasattr(model, "transform_input"):
        model.transform_input = True


# --- train ------------------------------------------------------------------------------------------------------------


def train(
    prepared: Prepared,
    folder: Path,
    recipe: Recipe,
    *,
    architecture: str,
    size: images.Size,
    weights: str = "none",
    stem: str = "imagenet",
    probe_first: bool = False,
    **options,
) -> tuple[nn.Module, list[dict]]:
    """Build a network, train it on the part `train`, and write `models.safetensors` into `folder`.

    probe_first: begin with the head that fits the first weights' features best (`probe`), so that the first steps do
    not spoil the body. options: those of `fit`. Returns the network and what `fit` returns. The checkpoint beside the
    weights makes a second call go on, or return at once: chapter 2 takes over what `accelerate launch` has trained.
    Taught in: chapter 2.
    """
    runtime.seed_everything(recipe.seed)
    with runtime.first_process_first():  # it downloads
        model = build(architecture, weights=weights, stem=stem)
    size = [size, size] if isinstance(size, int) else list(size)
    settings = {
        "architecture": architecture,
        "stem": stem,
        "size": size,
        "classes": len(CLASS_NAMES),
    }
    settings |= {"weights": weights, "fit": prepared.manifest["settings"]["fit"]}
    parts = (prepared.subset("train", size), prepared.subset("validation", size))
    where = {name: options[name] for name in ("device", "precision") if name in options}
    begin = (
        {"at_start": partial(probe, model, parts[0], **where)} if probe_first else {}
    )
    begin["checkpoint"] = folder / "classifier.checkpoint.safetensors"
    key = {**settings, "probe_first": probe_first, "data": prepared.checksum(size)}
    history = fit(model, *parts, recipe=recipe, settings=key, **begin, **options)
    if runtime.processes()[0] == 0:
        artifacts.save_weights(folder / "classifier.safetensors", model, settings)
    return model, history


def features(
    model: nn.Module,
    data: ImageSet,
    *,
    batch_size: int = 256,
    device: torch.device | str = "auto",
    precision: str = "auto",
) -> torch.Tensor:
    """What the network's last linear layer receives: float32 (M, features) on the CPU; one forward pass a picture.

    Raises InputError for a network without a linear layer. Taught in: chapter 2.
    """
    received = []
    hook = head(model).register_forward_pre_hook(
        lambda _, inputs: received.append(inputs[0].float().cpu())
    )
    try:
        predict(model, data, batch_size=batch_size, device=device, precision=precision)
    finally:
        hook.remove()
    return torch.cat(received)


def linear_probe(
    inputs: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (6, features) and bias (6,) of the logistic regression on standardised features (scikit-learn's).

    Taught in: chapter 2.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(inputs.numpy())
    regression = LogisticRegression(C=0.01, max_iter=300).fit(
        scaler.transform(inputs.numpy()), labels.numpy()
    )
    slopes, starts = regression.coef_ / scaler.scale_, regression.intercept_
    if (
        len(regression.classes_) == 2
    ):  # scikit-learn then keeps one row, for the second class against the first
        slopes, starts = (
            np.stack([0 * slopes[0], slopes[0]]),
            np.append(0 * starts, starts),
        )
    weight = np.zeros((len(CLASS_NAMES), inputs.shape[1]))
    bias = np.full(len(CLASS_NAMES), -1e3)  # of a class that the training part lacks
    weight[regression.classes_], bias[regression.classes_] = (
        slopes,
        starts - slopes @ scaler.mean_,
    )
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def probe(model: nn.Module, data: ImageSet, **options) -> None:
    """Set the network's head to the `linear_probe` of its own features; the body stays as it is (Kumar et al. 2022).

    options: those of `features`. Taught in: chapter 2.
    """
    weight, bias = linear_probe(
        features(model, data, **options), torch.from_numpy(data.labels)
    )
    with torch.no_grad():
        head(model).weight.copy_(weight)
        head(model).bias.copy_(bias)


# --- use --------------------------------------------------------------------------------------------------------------


def load(folder: Path, device: torch.device | str = "auto") -> tuple[nn.Module, dict]:
    """The trained network of a run (in `eval()`) and its settings, from `models.safetensors`.

    The settings hold architecture, stem and size, among others. Taught in: chapter 3.
    """
    device = runtime.device(device) if isinstance(device, str) else device
    path = Path(folder) / "classifier.safetensors"
    _, settings = artifacts.read_checkpoint(path)
    model = build(settings["architecture"], stem=settings["stem"])
    artifacts.load_weights(path, model)
    _expect_its_pixels(model, settings.get("weights", "none"))
    return model.to(device).eval(), settings


def classify(
    model: nn.Module, settings: dict, photo: Path, **options
) -> dict[str, float]:
    """Probability of each class for one picture file, prepared as the run's pictures were.

    settings: as `load` returns them. options: those of `predict`. Raises InputError where the file is no picture.
    Taught in: chapter 2.
    """
    height, width = settings["size"]
    try:
        pixels, original = decoding.decode(Path(photo).read_bytes(), (height, width))
    except decoding.UNREADABLE as error:
        raise InputError(
            f"{photo} is no picture that can be read ({error}): give the path of one."
        ) from error
    picture = decoding.resize(
        pixels, (height, width), settings["fit"], original=original
    )
    logits, _ = predict(
        model,
        ImageSet(picture[None], np.zeros(1, np.int64), np.zeros(1, np.int64)),
        **options,
    )
    return dict(zip(CLASS_NAMES, logits[0].softmax(0).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fashionlib.models", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    predicting = commands.add_parser(
        "predict", help="the class of a picture of your own"
    )
    predicting.add_argument("photo", type=Path)
    predicting.add_argument(
        "--run", default="sample", help="whose network: build/<run>/artifacts"
    )
    fitting = commands.add_parser(
        "fit", help="chapter 2's training, in one process or under accelerate launch"
    )
    fitting.add_argument(
        "--profile", default="sample", help="its chapter 1 must have run"
    )
    options = parser.parse_args()
    try:
        if options.command == "predict":
            model, settings = load(
                artifacts.require(options.run, "classifier.safetensors").parent
            )
            for name, probability in classify(model, settings, options.photo).items():
                print(f"{name:18} {100 * probability:5.1f} %")
        else:
            train_profile(options.profile)
    except InputError as error:
        sys.exit(f"error: {error}")


def train_profile(profile: str) -> None:
    """Chapter 2's training with the parameters of a profile, without the notebook."""
    parameters = artifacts.parameters_of("02_resnet152", profile)
    prepared = images.load(artifacts.require(profile, "prepared"))
    recipe = Recipe.of(parameters)
    names = (
        "architecture",
        "size",
        "weights",
        "stem",
        "probe_first",
        "precision",
        "compiled",
    )
    _, history = train(
        prepared,
        artifacts.folder(profile),
        recipe,
        **{name: parameters[name] for name in names},
    )
    if runtime.processes()[0] == 0:
        print(
            f"{profile}: validation accuracy {history[-1]['validation_accuracy']:.4f}; chapter 2 now takes it over"
        )


if __name__ == "__main__":
    main()
