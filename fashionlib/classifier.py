"""The classifier: any torchvision network on the six classes: build, fit, predict, evaluate.

    model = classifier.build("resnet152", weights="imagenet")
    history = classifier.fit(model, prepared.subset("train", 224), prepared.subset("validation", 224), epochs=25, ...)
    logits, labels = classifier.predict(model, prepared.subset("test", 224))
    metrics = classifier.evaluate(logits, labels)

Metrics are taken from all logits at once, never as a mean of batch means: the last batch is shorter.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from fashionlib import artifacts, images, runtime
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.images import ImageSet
from fashionlib.runtime import InputError

VERSION = 2  # of the training: raise it when the same settings would give other weights
STEMS = ("imagenet", "small")
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = ("constant", "one-cycle")


# --- build ------------------------------------------------------------------------------------------------------------


def build(architecture: str, *, weights: str = "none", stem: str = "imagenet", classes: int = 6) -> nn.Module:
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
        model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=classes)
    elif architecture in torchvision.models.list_models(module=torchvision.models):
        auxiliary = {"aux_logits": False, "init_weights": True} if architecture in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(architecture, weights=None, num_classes=classes, **auxiliary)
    else:
        raise InputError(
            f"architecture {architecture!r} is not one of torchvision's: see torchvision.models.list_models()."
        )
    if stem == "small":
        if not isinstance(model, torchvision.models.ResNet):
            raise InputError(f"stem 'small' is made for ResNets; {architecture} keeps stem = 'imagenet'.")
        model.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.MaxPool2d(2)
    if weights != "none":
        _load_backbone(model, _weights(architecture, weights), weights)
    return model.to(memory_format=torch.channels_last)


def _weights(architecture: str, weights: str) -> dict[str, torch.Tensor]:
    """The state to start from: torchvision's ImageNet weights (downloaded once) or a file; no pickle is executed."""
    if weights != "imagenet":
        path = Path(weights).expanduser()
        if not path.is_file():
            raise InputError(f"weights must be none, imagenet or the path of a file; found {weights!r}.")
        try:
            if path.suffix == ".safetensors":  # a checkpoint of `fit` holds the optimizer's tensors too
                return {name.removeprefix("model/"): value for name, value in load_file(path).items()}
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
            raise InputError(f"{path} is not a file of weights that torch can read: {error}") from error
    known = {} if architecture == "resnet10" else torchvision.models.get_model_weights(architecture).__members__
    if "IMAGENET1K_V1" not in known:
        raise InputError(f"torchvision has no ImageNet weights (version 1) of {architecture}: choose weights = 'none'.")
    chosen = known["IMAGENET1K_V1"]
    try:
        return torch.hub.load_state_dict_from_url(chosen.url, map_location="cpu", weights_only=True, progress=False)
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"ImageNet weights of {architecture} could not be downloaded ({error}). Put {Path(chosen.url).name}, "
            f"which https://{chosen.url.split('//')[1]} offers, into {folder}, or choose weights = 'none'."
        ) from error


def _load_backbone(model: nn.Module, state: dict[str, torch.Tensor], origin: str) -> None:
    """Load all that fits; only the head may differ in shape, everything else must be there."""
    own = model.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = own.keys() - fitting.keys()
    body = sorted(name for name in missing if not name.startswith(("fc", "classifier", "head")))
    if body:
        raise InputError(f"weights {origin!r} are not of this network: {body[0]} and {len(body) - 1} more do not fit.")
    model.load_state_dict(fitting, strict=False)


# --- fit --------------------------------------------------------------------------------------------------------------


def fit(
    model: nn.Module,
    train: ImageSet,
    validation: ImageSet | None = None,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    schedule: str = "one-cycle",
    label_smoothing: float = 0.0,
    flip: bool = False,
    crop: int = 0,
    half_size_epochs: int = 0,
    seed: int = 0,
    device: torch.device | str = "auto",
    precision: str = "auto",
    checkpoint: Path | None = None,
    settings: dict | None = None,
) -> list[dict]:
    """Train `model` in place; one dictionary an epoch: losses, accuracies, learning rate, seconds.

    The study's recipe is optimizer="adam", schedule="constant", learning_rate=1e-4; "one-cycle" warms up over the
    first fifth of the steps and then falls to zero (Smith and Topin 2019). flip, crop: see `images.batches`.
    half_size_epochs: so many first epochs see the pictures at half their height and width, in a quarter of the time,
    the validation part included.
    checkpoint: a file that is written after every epoch; a run that was stopped goes on from it, a finished one
    returns at once. settings: what names the model and the data there (`images.Prepared.checksum`).
    Raises InputError for an unknown option, or where the loss is no longer finite. Taught in: chapter 2.
    """
    if optimizer not in OPTIMIZERS or schedule not in SCHEDULES:
        raise InputError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)} and schedule one of {', '.join(SCHEDULES)}; "
            f"found {optimizer!r} and {schedule!r}."
        )
    device = runtime.device(device) if isinstance(device, str) else device
    model.to(device)
    steps = math.ceil(len(train.rows) / batch_size)
    update = OPTIMIZERS[optimizer](model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    rates = _schedule(update, schedule, learning_rate, epochs * steps)
    recipe = {
        **{
            "version": VERSION,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "optimizer": optimizer,
        },
        **{"weight_decay": weight_decay, "schedule": schedule, "label_smoothing": label_smoothing, "flip": flip},
        **{
            "crop": crop,
            "half_size_epochs": half_size_epochs,
            "seed": seed,
            "precision": runtime.resolve_precision(device, precision),
            **(settings or {}),
        },
    }
    history = _resume(checkpoint, recipe, model, update, rates)
    for epoch in range(len(history), epochs):
        started = time.perf_counter()
        torch.manual_seed(
            images.epoch_seed(seed, epoch)
        )  # dropout: a resumed run draws what the first would have drawn
        options = {"batch_size": batch_size, "device": device, "epoch": epoch, "seed": seed, "flip": flip, "crop": crop}
        network = nn.Sequential(nn.AvgPool2d(2), model) if epoch < half_size_epochs else model
        batches = images.batches(train, **options)
        loss, accuracy = _epoch(network, batches, steps, update, rates, label_smoothing, precision)
        record = {"epoch": epoch + 1, "train_loss": loss, "train_accuracy": accuracy}
        record |= {"learning_rate": rates.get_last_lr()[0], "seconds": time.perf_counter() - started}
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} in epoch {epoch + 1}: lower learning_rate = {learning_rate}.")
        if validation is not None:
            logits, labels = predict(network, validation, device=device, precision=precision)
            record["validation_loss"] = F.cross_entropy(logits, labels).item()
            record["validation_accuracy"] = (logits.argmax(1) == labels).float().mean().item()
        history.append(record)
        if checkpoint is not None:
            state = {"model": model.state_dict(), "optimizer": update.state_dict(), "schedule": rates.state_dict()}
            artifacts.save_checkpoint(checkpoint, {**state, "history": history}, settings=recipe)
    return history


def _schedule(update: torch.optim.Optimizer, name: str, learning_rate: float, steps: int):
    if name == "constant":
        return torch.optim.lr_scheduler.LambdaLR(update, _unchanged)
    return torch.optim.lr_scheduler.OneCycleLR(update, learning_rate, total_steps=steps + 1, pct_start=0.2)


def _unchanged(_step: int) -> float:
    return 1.0


def _resume(checkpoint: Path | None, recipe: dict, model: nn.Module, update, rates) -> list[dict]:
    """Bring model, optimizer and schedule to where the checkpoint stopped; returns the epochs done so far."""
    state = artifacts.load_checkpoint(checkpoint, settings=recipe) if checkpoint is not None else None
    if state is None:
        return []
    model.load_state_dict(state["model"])
    artifacts.restore_optimizer(update, state["optimizer"])
    rates.load_state_dict(state["schedule"])
    return state["history"]


def _epoch(model, batches, steps, update, rates, label_smoothing, precision) -> tuple[float, float]:
    """One pass over the training part; the mean loss and accuracy over all its samples, as they were seen."""
    model.train()
    total_loss, correct, count = 0.0, 0, 0
    for pixels, labels in runtime.progress(batches, "training", total=steps, unit="batch"):
        with runtime.autocast(pixels.device, precision):
            logits = model(pixels)
            loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        update.zero_grad(set_to_none=True)
        loss.backward()
        update.step()
        rates.step()
        total_loss += loss.detach().float() * len(labels)  # stays on the device: no synchronisation a step
        correct += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return float(total_loss) / count, float(correct) / count


# --- predict and evaluate ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    model: nn.Module,
    data: ImageSet,
    *,
    batch_size: int = 256,
    device: torch.device | str = "auto",
    precision: str = "auto",
    flip: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 (M, classes) and labels int64 (M,) of all samples, on the CPU, in the order of `data.rows`.

    flip: average the logits of each picture and its mirror image (test-time augmentation). The model is evaluated in
    `eval()` and left in the mode it came in. Taught in: chapter 2.
    """
    device = runtime.device(device) if isinstance(device, str) else device
    training = model.training
    model.to(device).eval()
    logits = []
    try:
        for pixels, _ in images.batches(data, batch_size=batch_size, device=device):
            with runtime.autocast(device, precision):
                output = model(pixels)
                if flip:
                    output = (output + model(pixels.flip(3))) / 2
            logits.append(output.float().cpu())
    finally:
        model.train(training)
    return torch.cat(logits), torch.from_numpy(data.labels)


def accuracy_interval(correct: int, count: int) -> list[float]:
    """Wilson's 95 % confidence interval of a proportion (Wilson 1927). Taught in: chapter 2."""
    from scipy.stats import binomtest

    interval = binomtest(int(correct), int(count)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


def difference_interval(first: tuple[int, int], second: tuple[int, int]) -> list[float]:
    """95 % interval of the difference of two accuracies, each (correct, count), first minus second (Newcombe 1998).

    Newcombe's hybrid score interval, from the Wilson intervals of the two. Taught in: chapter 2.
    """
    p, q = first[0] / first[1], second[0] / second[1]
    (p_low, p_high), (q_low, q_high) = accuracy_interval(*first), accuracy_interval(*second)
    return [p - q - math.hypot(p - p_low, q_high - q), p - q + math.hypot(p_high - p, q - q_low)]


def recall_equality(confusion: Sequence[Sequence[int]]) -> float:
    """p-value of the chi-square test that every class has the same recall, from a confusion matrix (true x predicted).

    Small values speak against "every class is found equally well". Pearson 1900. Taught in: chapter 2.
    """
    from scipy.stats import chi2_contingency

    matrix = np.asarray(confusion)
    matrix = matrix[matrix.sum(1) > 0]
    right = np.asarray(confusion).diagonal()[np.asarray(confusion).sum(1) > 0]
    table = np.stack([right, matrix.sum(1) - right])
    return float(chi2_contingency(table).pvalue) if (table.sum(1) > 0).all() else 1.0


def evaluate(logits: torch.Tensor, labels: torch.Tensor) -> dict:
    """Everything a result consists of, from logits (M, 6) and labels (M,).

    Keys: count, accuracy, accuracy_ci95, macro_f1, precision[6], recall[6], confusion[6][6] (rows are true classes),
    recall_equality_p (`recall_equality`),
    true_distribution[6], predicted_distribution[6], expected_calibration_error (15 bins; Guo et al. 2017),
    gender_errors, category_errors, both_errors. Taught in: chapter 2.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    from torchmetrics.functional.classification import multiclass_calibration_error

    predicted, classes = logits.argmax(1), range(len(CLASS_NAMES))
    correct = int((predicted == labels).sum())
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=0.0)
    gender, category = predicted % 2 != labels % 2, predicted // 2 != labels // 2  # class = 2 * category + gender
    return {
        "count": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_ci95": accuracy_interval(correct, len(labels)),
        "macro_f1": float(f1.mean()),
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "confusion": (matrix := confusion_matrix(labels, predicted, labels=classes)).tolist(),
        "recall_equality_p": recall_equality(matrix),
        "true_distribution": distribution(labels),
        "predicted_distribution": distribution(predicted),
        "expected_calibration_error": float(
            multiclass_calibration_error(logits.softmax(1), labels, num_classes=len(classes), n_bins=15)
        ),
        "gender_errors": int((gender & ~category).sum()),
        "category_errors": int((~gender & category).sum()),
        "both_errors": int((gender & category).sum()),
    }


def distribution(labels: torch.Tensor | np.ndarray) -> list[float]:
    """Share of each of the six classes.

    Taught in: chapter 2.
    """
    return (np.bincount(np.asarray(labels), minlength=len(CLASS_NAMES)) / len(labels)).tolist()


def load(folder: Path, device: torch.device | str = "auto") -> tuple[nn.Module, dict]:
    """The trained network of a run (in `eval()`) and its settings, from `classifier.safetensors` and `.json`.

    The settings hold architecture, stem and size, among others. Taught in: chapter 3.
    """
    device = runtime.device(device) if isinstance(device, str) else device
    path = Path(folder) / "classifier.safetensors"
    _, settings = artifacts.read_checkpoint(path)
    model = build(settings["architecture"], stem=settings["stem"])
    artifacts.load_weights(path, model)
    return model.to(device).eval(), settings
