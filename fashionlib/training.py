"""Training and prediction: one loop for a CPU, for a GPU, and for several of them.

    recipe = Recipe(epochs=25, batch_size=256, learning_rate=1e-4)
    history = fit(model, train, validation, recipe=recipe, checkpoint=folder / "model")
    logits, labels = predict(model, test)

    torchrun --nproc-per-node 4 -m fashionlib fit --profile full  # or accelerate launch

What is random depends on the seed, the epoch and the sample (order, augmentation) or
the step (dropout) alone: on a CPU a run that was killed goes on bit for bit.
Several processes share each batch and take the steps of one process: same order, same
augmentation, same gradients. On GPUs this holds with BatchNorm, too (SyncBatchNorm). On
a CPU BatchNorm sees the images of its own process only, so that the curve equals that
of one process for networks without it (or with it frozen); the running statistics are
averaged after each epoch, and all processes end with the same network.
Measured against torchvision's reference loop: `benchmarks/results/train.json`.
"""

from __future__ import annotations

import copy
import itertools
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler

from fashionlib import artifacts, cpu, images, models, runtime
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.images import ImageSet
from fashionlib.parameters import check_recipe
from fashionlib.runtime import InputError

BatchNorm = nn.modules.batchnorm._BatchNorm  # of any dimension
PARTS = ("model", "optimizer", "scheduler", "scaler")  # of a checkpoint
CODE = ("training", "models", "images", "cpu", "data.prepare")  # decides the weights
CHECKPOINT_STEPS = 200  # steps between two checkpoints


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained; `benchmarks/experiments/ablation.py` weighs each part.

    Raises InputError for numbers and names that make no sense.
    Taught in: chapter 2
    """

    epochs: int  # passes over the training set; 0: the linear probe alone
    batch_size: int  # images a step, of all processes together
    learning_rate: float  # the highest of the schedule
    # of AdamW (Loshchilov and Hutter 2019), which without it is the study's Adam
    weight_decay: float = 0.0
    # constant, or one-cycle (Smith and Topin 2019): warm up over a fifth of the steps,
    # then a cosine to zero; Adam's beta1 goes the other way, 0.95 to 0.85 to 0.95
    schedule: str = "one-cycle"
    label_smoothing: float = 0.0  # fraction of the target spread over all classes
    flip: bool = False  # mirror half of the images
    crop: int = 0  # shift each image by up to so many pixels
    frozen_until: str = "none"  # up to this one of `models.stages` nothing is trained
    layer_decay: float = 1.0  # rate of a stage, as a part of that of the stage after it
    frozen_batch_norm: bool = False  # keep the statistics that the weights came with
    # images of one forward and backward pass, of all processes; 0: the whole batch
    micro_batch: int = 0
    seed: int = 0

    @classmethod
    def from_parameters(cls, parameters: dict) -> Recipe:
        """The recipe among a chapter's parameters, which have the same names.

        Taught in: chapter 2
        """
        return cls(**{field.name: parameters[field.name] for field in fields(cls)})

    def __post_init__(self):
        check_recipe(self, "02_resnet152")
        if self.batch_size % (self.micro_batch or 1):
            found = f"{self.micro_batch} and {self.batch_size}"
            raise InputError(f"micro_batch must divide batch_size; found {found}.")


def fit(
    model: nn.Module,
    train: ImageSet,
    validation: ImageSet | None = None,
    *,
    recipe: Recipe,
    device: torch.device | str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    checkpoint: Path | None = None,
    settings: dict | None = None,
    probe_first: bool = False,
) -> list[dict]:
    """Train `model` in place; returns one record an epoch.

    A record has epoch, train_loss, train_accuracy, validation_loss,
    validation_accuracy, learning_rate (of the last step) and seconds; epoch 0 is the
    linear probe.
    compiled: run whole batches through `torch.compile`. checkpoint: a path without
    suffix; a run that was stopped goes on from the file written there, a finished one
    returns at once (several machines need a folder in common). settings: what else
    names the computation there: network, data (`Prepared.checksum`). probe_first:
    begin with the last layer that fits the first weights' features best
    (`models.set_head_to_probe`).
    Raises InputError for no images, for those that the network cannot take
    (`check_images`) or that are not larger than `crop`, for neither epochs nor a probe,
    for a loss that is not finite, and where a batch does not fit into the GPU's memory.
    Taught in: chapter 2
    """
    if not len(train.rows):
        raise InputError("there is no image to train on: take more classes or images.")
    if validation is not None and not len(validation.rows):
        raise InputError("the validation set has no image: take None or more images.")
    if not (recipe.epochs or probe_first):
        raise InputError("nothing is trained: take epochs = 1 or probe_first = true.")
    device = runtime.device(str(device))
    runtime.join_processes(device)
    options = {"recipe": recipe, "precision": precision, "compiled": compiled}
    path = state = None
    if checkpoint is not None:
        named = options | {"recipe": asdict(recipe), "probe_first": probe_first}
        path = artifacts.checkpoint_path(checkpoint, named | (settings or {}), CODE)
        state = artifacts.load_checkpoint(path)
    model.to(device)
    answers = None  # of the probe
    started = time.perf_counter()
    if state is None:
        check_images(model, train, recipe, device)
        if probe_first:
            where = {"device": device, "precision": precision}
            answers = models.set_head_to_probe(model, train, **where)
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = device.type == "cuda"
    try:
        with (
            cpu.keep_freed_memory(device),
            cpu.gemm_convolutions(device),
            forked_rng(device),  # steps are seeded; the caller's numbers go on
        ):
            trainer = Trainer(model, train, device=device, **options)
            if state is not None:
                trainer.load_state_dict(state)
            if answers is not None:
                trainer.started = started
                labels = torch.from_numpy(train.labels)
                trainer.totals += trainer.count(answers, labels).to(device)
                trainer.end_epoch(validation)
                trainer.save(path)
            trainer.run(validation, path)
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # a notebook would keep the batch
        count = recipe.micro_batch or recipe.batch_size
        found = f"{count} images do not fit into the memory of {device}"
        raise InputError(f"{found}: lower micro_batch or batch_size.") from None
    finally:
        torch.backends.cudnn.benchmark = benchmark
    return trainer.history


def forked_rng(device: torch.device):
    """A context after which torch's global generators are as they were before."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def check_images(model, train: ImageSet, recipe: Recipe, device: torch.device) -> None:
    """One pass of grey images through a copy of the network.

    Raises InputError where it cannot be trained on images of this size, or on the
    smallest number of them that a process has in a pass (BatchNorm needs two values).
    Taught in: chapter 2
    """
    height, width = train.images.shape[1:3]
    if recipe.crop >= min(height, width):
        raise InputError(f"crop must be below {height}x{width}; found {recipe.crop}.")
    size = recipe.micro_batch or recipe.batch_size
    bounds = images.batch_bounds(len(train.rows), size)
    fewest = min(end - start for start, end in bounds)
    if device.type == "cpu":  # GPUs share their statistics
        fewest //= runtime.rank_and_world_size()[1]
    grey = torch.zeros(min(2, max(1, fewest)), 3, height, width, device=device)
    trial = train_mode(copy.deepcopy(model), recipe)
    with torch.no_grad(), forked_rng(device):
        models.logits_of(trial, grey)


class Trainer:
    """What moves in a training, and how one step moves it.

    model, train, recipe, precision, compiled: as in `fit`; device: a torch.device.
    `network` is the model that shares its gradients with the other processes.
    Taught in: chapter 2
    """

    def __init__(self, model, train, *, recipe, device, precision, compiled=False):
        self.model, self.recipe, self.device = model, recipe, device
        self.train = images.to_device(train, device)
        self.precision = runtime.resolve_precision(device, precision)
        self.rank, self.world_size = runtime.rank_and_world_size()
        self.images = len(train.rows)
        self.steps = len(images.batch_bounds(self.images, recipe.batch_size))
        self.micro_batch = recipe.micro_batch or recipe.batch_size
        self.network = model
        rates, stages = stage_rates(model, recipe), models.stages(model)
        for name, weights in stages.items():  # before they are shared
            for weight in weights:
                weight.requires_grad_(name in rates)
        if self.world_size > 1:
            if device.type == "cuda":
                nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.network = DistributedDataParallel(model, broadcast_buffers=False)
        self.share = len(range(self.rank, self.micro_batch, self.world_size))
        self.compiled = self.network
        if compiled:
            self.compiled = torch.compile(self.network, dynamic=False)
        smoothing = recipe.label_smoothing
        self.criterion = nn.CrossEntropyLoss(reduction="sum", label_smoothing=smoothing)
        options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
        options["fused"] = device.type in ("cpu", "cuda")  # ResNet18: 11 ms, not 33
        groups = [{"params": stages[name], "lr": rates[name]} for name in rates]
        self.optimizer = torch.optim.AdamW(groups, **options)
        self.scheduler = make_scheduler(self.optimizer, recipe, self.steps)
        half = self.precision == "float16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.learning_rate, self.step, self.history = 0.0, 0, []
        self.started = time.perf_counter()
        self.totals = torch.zeros(2, device=device)  # of an epoch: loss, correct

    def train_step(self, batches: Iterator) -> None:
        """One step of the optimizer, by the gradients of one or more micro-batches.

        batches: yields pixels (B, 3, H, W), labels (B,), and the factor that makes the
        sum of their losses a part of the mean over all images of the step.
        """
        number = self.step * self.world_size + self.rank  # dropout depends on it alone
        torch.manual_seed(images.epoch_seed(self.recipe.seed, number))
        self.optimizer.zero_grad()
        is_last = (self.step + 1) % self.steps == 0  # it may have an image more
        passes = None if is_last else self.recipe.batch_size // self.micro_batch
        for pixels, labels, factor in itertools.islice(batches, passes):
            # Only whole batches are compiled: each other shape would be, too
            network = self.compiled if len(labels) == self.share else self.network
            with runtime.autocast(self.device, self.precision):
                totals = self.count(network(pixels), labels)
            self.scaler.scale(totals[0] * factor).backward()
            self.totals += runtime.all_reduce_sum(totals.detach() * (factor > 0))
        self.learning_rate = self.scheduler.get_last_lr()[-1]
        self.scaler.step(self.optimizer)  # optimizer.step(), unless in float16
        self.scaler.update()
        self.scheduler.step()
        self.step += 1

    def count(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(loss, correct): sum of the losses and number of correct answers."""
        correct = (logits.argmax(1) == labels).sum()
        return torch.stack([self.criterion(logits, labels), correct])

    def batches(self) -> Iterator:
        """This process's micro-batches of the epoch, for the steps that are not done.

        DistributedDataParallel averages the gradients of the processes: the factor is
        their number over the number of images in the step, and 0 for a process without
        a share of a small batch, which gets a copy of another's image.
        """
        recipe, epoch, size = self.recipe, self.step // self.steps, self.micro_batch
        first = (self.step - epoch * self.steps) * recipe.batch_size
        options = {"device": self.device, "dtype": getattr(torch, self.precision)}
        options |= {"seed": recipe.seed, "flip": recipe.flip, "crop": recipe.crop}
        options |= {"rank": self.rank, "world_size": self.world_size, "epoch": epoch}
        options |= {"batch_size": size, "first_batch": first // size}
        steps = images.batch_bounds(self.images, recipe.batch_size)
        bounds = images.batch_bounds(self.images, size)[first // size :]
        batches = zip(bounds, images.batches(self.train, **options), strict=True)
        for (start, end), (pixels, labels) in batches:
            begin, stop = steps[min(start // recipe.batch_size, self.steps - 1)]
            has_share = self.rank < end - start
            factor = has_share * self.world_size / (stop - begin)
            yield pixels, labels, factor

    def run(self, validation: ImageSet | None, checkpoint: Path | None) -> None:
        """Take all steps that are not done yet; `checkpoint` is written on the way."""
        recipe = self.recipe
        steps = {"initial": self.step, "total": recipe.epochs * self.steps}
        with runtime.progress(**steps, unit="step") as bar:
            for epoch in range(self.step // self.steps, recipe.epochs):
                bar.set_description(f"epoch {epoch + 1} of {recipe.epochs}")
                train_mode(self.model, recipe)
                batches = self.batches()
                while self.step < (epoch + 1) * self.steps:
                    if self.step % CHECKPOINT_STEPS == 0:
                        self.save(checkpoint)
                    self.train_step(batches)
                    bar.update()
                self.end_epoch(validation)
                self.save(checkpoint)

    def end_epoch(self, validation: ImageSet | None) -> None:
        """Put the epoch on record; before the first step, the probe as epoch 0."""
        loss, accuracy = (self.totals.cpu().double() / self.images).tolist()
        record = {"epoch": self.step // self.steps, "train_loss": loss}
        record |= {"train_accuracy": accuracy, "learning_rate": self.learning_rate}
        record |= {"seconds": time.perf_counter() - self.started}
        self.history.append(record)
        for buffer in self.model.buffers():  # BatchNorm's statistics, of all processes
            if buffer.is_floating_point():
                runtime.all_reduce_sum(buffer).div_(self.world_size)
        if validation is not None:
            options = {"device": self.device, "precision": self.precision}
            logits, labels = predict(self.model, validation, **options)
            correct = (logits.argmax(1) == labels).float()
            record["validation_loss"] = F.cross_entropy(logits, labels).item()
            record["validation_accuracy"] = correct.mean().item()
        self.totals, self.started = torch.zeros_like(self.totals), time.perf_counter()

    def save(self, checkpoint: Path | None) -> None:
        """Write the checkpoint. Raises InputError where the loss is not finite."""
        values = [self.totals, *self.model.parameters()]
        if not all(value.isfinite().all() for value in values):
            found = f"loss or weights are not finite after {self.step} steps"
            cause = "learning_rate" if self.step else "the first weights"
            raise InputError(f"{found}: change {cause}.")
        if checkpoint is not None and self.rank == 0:
            artifacts.save_checkpoint(checkpoint, self.state_dict())

    def state_dict(self) -> dict:
        """All that the next step depends on."""
        state = {name: getattr(self, name).state_dict() for name in PARTS}
        state |= {"step": self.step, "history": self.history, "totals": self.totals}
        return state | {"seconds": time.perf_counter() - self.started}

    def load_state_dict(self, state: dict) -> None:
        """Go to where `state_dict` was taken."""
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.history = state["step"], state["history"]
        self.totals = state["totals"].to(self.device)
        self.started = time.perf_counter() - state["seconds"]


def make_scheduler(optimizer, recipe: Recipe, steps: int) -> lr_scheduler.LRScheduler:
    """The schedule of a recipe whose epochs have `steps` steps."""
    if recipe.schedule == "constant":
        return lr_scheduler.ConstantLR(optimizer, factor=1.0)
    rates = [group["lr"] for group in optimizer.param_groups]  # each one's highest
    total = max(recipe.epochs * steps + 1, 2)
    rise = max(0.2, 2 / total)  # torch divides by the number of steps up
    return lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=rise)


def stage_rates(model: nn.Module, recipe: Recipe) -> dict[str, float]:
    """Highest learning rate of each of the `models.stages` that are trained.

    The last one has the recipe's rate, each one before it `layer_decay` times that of
    the next (Clark et al. 2020, arXiv 2003.10555); a BatchNorm that is a stage of its
    own has that of its convolution.
    Raises InputError where `frozen_until` is no stage, or the last one.
    Taught in: chapter 2
    """
    stages, frozen = models.stages(model), recipe.frozen_until
    if frozen not in ("none", *list(stages)[:-1]):
        names = ", ".join(["none", *list(stages)[:-1]])
        raise InputError(f"frozen_until must be one of {names}; found {frozen!r}.")
    rates, rate = {}, recipe.learning_rate
    for name, weights in reversed(stages.items()):
        if name == frozen:
            break
        rates[name] = rate
        has_matrix = any(weight.ndim > 1 for weight in weights)
        rate *= recipe.layer_decay if has_matrix else 1
    return dict(reversed(rates.items()))


def train_mode(model: nn.Module, recipe: Recipe) -> nn.Module:
    """`model.train()`, but frozen layers keep and use the statistics that they have.

    Taught in: chapter 2
    """
    model.train()
    frozen = models.stages(model).keys() - stage_rates(model, recipe).keys()
    for name in frozen - {""}:
        model.get_submodule(name).eval()
    for module in model.modules():
        if recipe.frozen_batch_norm and isinstance(module, BatchNorm):
            module.eval()
    return model


def predict(model, data, *, flip=False, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 (M, classes) and labels int64 (M,) of a set, on the CPU, in order.

    flip: average the logits of each image and its mirror image (test-time
    augmentation). options: those of `models.extract_features`.
    Raises InputError for no images, and for a network without a linear layer.
    Taught in: chapter 2
    """
    _, logits = models.extract_features(model, data, **options)
    if flip:
        mirrored = data._replace(images=data.images[:, :, ::-1])
        _, others = models.extract_features(model, mirrored, **options)
        logits = (logits + others) / 2
    return logits, torch.from_numpy(data.labels)


def settings_of(prepared, network: dict) -> dict:
    """What names a training on prepared images, and what `models.load` needs.

    network: as in `train_classifier`.
    Taught in: chapter 2
    """
    settings = network | {"classes": len(CLASS_NAMES)}
    settings["size"] = list(prepared.array(network["size"]).shape[1:3])
    settings["resize_mode"] = prepared.manifest["settings"]["resize_mode"]
    return settings | {"data": prepared.checksum(network["size"])}


def train_classifier(
    prepared, folder, recipe, *, network: dict, **options
) -> tuple[nn.Module, list[dict]]:
    """Build a network, train it, and write `classifier.safetensors` into `folder`.

    network: `size` of its images, and what `models.build` takes. options: those of
    `fit`. Returns the network and `fit`'s records. Chapter 2 takes over what
    `python -m fashionlib fit` has trained before: the checkpoint is the same.
    Taught in: chapter 2
    """
    runtime.join_processes(runtime.device(str(options.get("device", "auto"))))
    runtime.seed_everything(recipe.seed)
    chosen, size = {**network}, network["size"]
    del chosen["size"]
    with runtime.local_main_process_first():  # it may download weights
        model = models.build(**chosen)
    train, validation = (prepared.subset(s, size) for s in ("train", "validation"))
    options["settings"] = settings = settings_of(prepared, network)
    options |= {"recipe": recipe, "checkpoint": folder / "classifier"}
    history = fit(model, train, validation, **options)
    if runtime.rank_and_world_size()[0] == 0:
        artifacts.save_weights(folder / "classifier.safetensors", model, settings)
    return model, history
