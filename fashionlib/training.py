"""Training and prediction: one loop for a CPU, a GPU, and as many processes as there are GPUs.

    recipe = Recipe(epochs=25, batch_size=256, learning_rate=1e-4, optimizer="adam", schedule="constant")  # the study's
    history = fit(model, train, validation, recipe=recipe, checkpoint=folder / "classifier.checkpoint.safetensors")
    logits, labels = predict(model, test)

    accelerate launch -m fashionlib.models fit --profile full    # the same `fit`, in several processes

What chance decides depends on the seed, the epoch and the sample (order, augmentation) or the step (dropout) alone: a
run that was killed goes on as if nothing had happened; order and augmentation are the same in any number of processes.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from fashionlib import artifacts, cpu, images, runtime
from fashionlib.images import ImageSet
from fashionlib.runtime import InputError

VERSION = 6  # of the training: raise it when the same recipe would give other weights
OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
SCHEDULES = ("constant", "one-cycle")
STATISTICS_BATCHES = 50  # training batches that the BatchNorm statistics of averaged weights are taken from


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained: the ingredients. `benchmarks/experiments/ablation.py` measures what each is worth.

    Raises InputError for an unknown optimizer or schedule, and for numbers that make no sense. Taught in: chapter 2.
    """

    epochs: int  # passes over the training part
    batch_size: int  # pictures a step, of all processes together
    learning_rate: float  # the highest of the schedule
    optimizer: str = "adamw"  # adam (the study), or adamw (Loshchilov and Hutter 2019)
    weight_decay: float = 0.0
    schedule: str = "one-cycle"  # constant, or: warm up over a fifth of the steps, then a cosine to zero
    label_smoothing: float = 0.0  # share of the target that is spread over all classes
    flip: bool = False  # mirror half of the pictures
    crop: int = 0  # shift each picture by up to so many pixels
    half_size_epochs: int = 0  # first epochs at half the height and width
    average: float = 0.0  # share of all steps that the average of the weights reaches back; 0: the last weights
    frozen_batch_norm: bool = False  # keep the statistics that the weights came with
    seed: int = 0

    @classmethod
    def of(cls, parameters: dict) -> Recipe:
        """The recipe among a chapter's parameters, which bear the same names. Taught in: chapter 2."""
        return cls(**{field.name: parameters[field.name] for field in fields(cls)})

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS or self.schedule not in SCHEDULES:
            raise InputError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)} and schedule one of {', '.join(SCHEDULES)}; "
                f"found {self.optimizer!r} and {self.schedule!r}."
            )
        runtime.expect_positive(epochs=self.epochs, batch_size=self.batch_size)
        if self.crop < 0:
            raise InputError(f"crop must be 0 or more pixels; found {self.crop}.")
        if not 0 <= self.average < 1:
            raise InputError(
                f"average must be a share of the steps, at least 0 and below 1; found {self.average}."
            )


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
    checkpoint_steps: int = 200,
    settings: dict | None = None,
    at_start: Callable[[], None] | None = None,
) -> list[dict]:
    """Train `model` in place; one dictionary an epoch: losses, accuracies, learning rate, seconds.

    compiled: run through `torch.compile`. checkpoint: a file that is written every `checkpoint_steps` steps and after
    every epoch; a run that was stopped goes on from it, a finished one returns at once. settings: what names the model
    and the data there (`images.Prepared.checksum`). at_start: called where there is no checkpoint to go on from. Where
    several processes were launched, each takes its share of
    every batch, all end with the same weights, and the first one writes the checkpoint.
    Raises InputError where the loss is no longer finite, or a batch does not fit into the GPU, and for no pictures.
    Taught in: chapter 2.
    """
    device = runtime.device(device) if isinstance(device, str) else device
    if not len(train.rows):
        raise InputError(
            "the training part holds no picture of these classes: choose others, or a larger catalogue."
        )
    if validation is not None:
        head(model)  # its absence is told now, not after an epoch
    _, processes = runtime.processes()
    if processes > 1 and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(device)
    run = Run(
        model,
        images.resident(train, device),
        recipe,
        device,
        runtime.resolve_precision(device, precision),
    )
    if (
        not run.resume(checkpoint, {"precision": precision, **(settings or {})})
        and at_start is not None
    ):
        at_start()
    network = DistributedDataParallel(model) if processes > 1 else model
    network = torch.compile(network, dynamic=False) if compiled else network
    with contextlib.nullcontext() if compiled else cpu.as_products(device):
        for _ in range(len(run.history), recipe.epochs):
            for step in run.epoch(network):
                if step % checkpoint_steps == 0:
                    run.save(checkpoint)
            run.end_epoch(validation)
            run.save(checkpoint)
    return run.history


class Run:
    """A training between two steps: everything that moves, and how it moves on. Taught in: chapter 2."""

    def __init__(
        self,
        model: nn.Module,
        train: ImageSet,
        recipe: Recipe,
        device: torch.device,
        precision: str,
    ):
        self.model, self.train, self.recipe, self.device, self.precision = (
            model,
            train,
            recipe,
            device,
            precision,
        )
        self.process, self.processes = runtime.processes()
        self.steps = math.ceil(len(train.rows) / recipe.batch_size)  # of an epoch
        fused = device.type in (
            "cuda",
            "cpu",
        )  # ResNet18 on 2 cores: 11 ms a step instead of 33
        options = {
            "lr": recipe.learning_rate,
            "weight_decay": recipe.weight_decay,
            "fused": fused,
        }
        self.update = OPTIMIZERS[recipe.optimizer](model.parameters(), **options)
        self.rates = _schedule(self.update, recipe, recipe.epochs * self.steps)
        self.average = None
        if recipe.average:
            decay = 1 - 1 / max(1, recipe.average * recipe.epochs * self.steps)
            self.average = AveragedModel(
                model, multi_avg_fn=get_ema_multi_avg_fn(decay)
            )
        self.history: list[dict] = []
        self.start_epoch()

    def start_epoch(self) -> None:
        """Nothing of the next epoch is done yet."""
        self.step, self.seconds, self.started = 0, 0.0, time.perf_counter()
        self.totals = torch.zeros(
            3, device=self.device
        )  # loss, hits, pictures; on the device: no wait a step

    def batches(
        self, epoch: int, **share
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Training batches as the recipe wants them; share: the process's part, the batch to begin with."""
        recipe, dtype = self.recipe, getattr(torch, self.precision)
        options = {
            "batch_size": recipe.batch_size,
            "seed": recipe.seed,
            "flip": recipe.flip,
            "crop": recipe.crop,
        }
        return images.batches(
            self.train, device=self.device, epoch=epoch, dtype=dtype, **options, **share
        )

    def epoch(self, network: nn.Module) -> Iterator[int]:
        """The steps of this epoch that are not done yet; yields the number of those that are."""
        epoch = len(self.history)
        train_mode(self.model, frozen_batch_norm=self.recipe.frozen_batch_norm)
        batches = self.batches(
            epoch, first=self.step, process=self.process, processes=self.processes
        )
        self.started = time.perf_counter() - self.seconds
        bar = {"total": self.steps, "initial": self.step, "unit": "batch"}
        for pixels, labels in runtime.progress(batches, "training", **bar):
            self.seed_step(epoch * self.steps + self.step)
            try:
                self.one_step(
                    network, F.avg_pool2d(pixels, 2) if self.half else pixels, labels
                )
            except torch.OutOfMemoryError:
                break  # the traceback holds the batch: only behind this block is its memory free
            self.step += 1
            yield self.step
        else:
            return
        raise InputError(self.what_fits())

    def seed_step(self, step: int) -> None:
        """What dropout draws depends on the step alone, and differs between the processes."""
        torch.manual_seed(
            images.epoch_seed(self.recipe.seed, step * self.processes + self.process)
        )

    @property
    def half(self) -> bool:
        """Whether this epoch sees the pictures at half their height and width."""
        return len(self.history) < self.recipe.half_size_epochs

    def one_step(
        self, network: nn.Module, pixels: torch.Tensor, labels: torch.Tensor
    ) -> None:
        """Forward, backward, update; pixels (B, 3, H, W) of this process, labels (B,)."""
        together = min(
            self.recipe.batch_size,
            len(self.train.rows) - self.step * self.recipe.batch_size,
        )
        counted = min(
            len(labels), len(range(self.process, together, self.processes))
        )  # 0: a share that another has
        with runtime.autocast(self.device, self.precision):
            logits = network(pixels)
            loss = F.cross_entropy(
                logits,
                labels,
                label_smoothing=self.recipe.label_smoothing,
                reduction="sum",
            )
        self.update.zero_grad(set_to_none=True)
        factor = (
            self.processes / together if counted else 0.0
        )  # the processes' gradients are averaged, not summed
        (loss * factor).backward()
        self.update.step()
        self.rates.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if counted:
            hits = (logits.detach().argmax(1) == labels).sum()
            self.totals += torch.stack(
                [loss.detach().float(), hits, torch.full_like(hits, counted)]
            )

    def take_average(self) -> None:
        """The averaged weights become the model's, and their BatchNorm statistics are taken anew."""
        self.model.load_state_dict(self.average.module.state_dict())
        if not self.recipe.frozen_batch_norm:
            self.seed_step(self.recipe.epochs * self.steps)
            with runtime.autocast(self.device, self.precision):
                update_bn(
                    itertools.islice(
                        self.batches(self.recipe.epochs), STATISTICS_BATCHES
                    ),
                    self.model,
                )

    def end_epoch(self, validation: ImageSet | None) -> None:
        """Put the epoch on record, with what the validation part says of it; after the last, take the average."""
        loss, hits, count = self.totals_of_all().tolist()
        self.seconds = time.perf_counter() - self.started
        record = {
            "epoch": len(self.history) + 1,
            "train_loss": loss / count,
            "train_accuracy": hits / count,
        }
        record |= {
            "learning_rate": self.rates.get_last_lr()[0],
            "seconds": self.seconds,
        }
        if self.average is not None and len(self.history) + 1 == self.recipe.epochs:
            self.take_average()
        if validation is not None:
            network = (
                nn.Sequential(nn.AvgPool2d(2), self.model) if self.half else self.model
            )
            logits, labels = self.predict_together(network, validation)
            record["validation_loss"] = F.cross_entropy(logits, labels).item()
            record["validation_accuracy"] = (
                (logits.argmax(1) == labels).float().mean().item()
            )
        self.history.append(record)
        self.start_epoch()

    def predict_together(
        self, network: nn.Module, data: ImageSet
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`predict`, of which each process does a part; every one gets the whole."""
        mine = np.array_split(np.arange(len(data.rows)), self.processes)[self.process]
        share = data._replace(rows=data.rows[mine], labels=data.labels[mine])
        logits = torch.zeros(
            len(data.rows), head(network).out_features, device=self.device
        )
        if len(mine):
            part, _ = predict(
                network, share, device=self.device, precision=self.precision
            )
            logits[torch.from_numpy(mine).to(self.device)] = part.to(self.device)
        return runtime.sum_over_processes(logits).cpu(), torch.from_numpy(data.labels)

    def totals_of_all(self) -> torch.Tensor:
        """Loss, hits and pictures of this epoch over all processes. Raises InputError where something is not finite."""
        totals = runtime.sum_over_processes(self.totals.clone())
        found = "" if math.isfinite(loss := float(totals[0])) else f"the loss is {loss}"
        if not found and not all(
            parameter.isfinite().all() for parameter in self.model.parameters()
        ):
            found = "weights are not finite"
        if found:
            epoch = len(self.history) + 1
            raise InputError(
                f"{found} in epoch {epoch}: lower learning_rate = {self.recipe.learning_rate}."
            )
        return totals

    def moving(self) -> dict:
        """What a checkpoint keeps as tensors."""
        parts = {"model": self.model, "optimizer": self.update, "schedule": self.rates}
        return parts | ({"average": self.average} if self.average is not None else {})

    def resume(self, checkpoint: Path | None, settings: dict) -> bool:
        """Go to where the checkpoint stopped; False where there is none to go on from."""
        self.settings = {"version": VERSION, **asdict(self.recipe), **settings}
        with runtime.first_process_first():  # it moves a file of other settings away
            state = (
                artifacts.load_checkpoint(checkpoint, settings=self.settings)
                if checkpoint is not None
                else None
            )
        if state is None:
            return False
        for name, part in self.moving().items():
            if part is self.update:
                artifacts.restore_optimizer(part, state[name])
            else:
                part.load_state_dict(state[name])
        self.history, self.step, self.seconds = (
            state["history"],
            state["step"],
            state["seconds"],
        )
        if self.process == 0:  # the totals are those of all
            self.totals = state["totals"].to(self.device)
        return True

    def save(self, checkpoint: Path | None) -> None:
        """Write the checkpoint; what is not finite leaves the last good one as it is."""
        totals = self.totals_of_all()
        self.seconds = time.perf_counter() - self.started if self.step else 0.0
        if checkpoint is not None and self.process == 0:
            state = {name: part.state_dict() for name, part in self.moving().items()}
            state |= {
                "history": self.history,
                "step": self.step,
                "seconds": self.seconds,
                "totals": totals,
            }
            artifacts.save_checkpoint(checkpoint, state, settings=self.settings)

    def what_fits(self) -> str:
        """After a batch that did not fit into the device: halve it until a step does, and say so."""
        height, width = self.train.images.shape[1:3]
        found = f"batch_size = {self.recipe.batch_size} does not fit into the memory of {self.device}"
        if self.processes > 1:  # a trial would wait for processes that have stopped
            return f"{found}, of which {self.processes} processes share each batch; try half of it."
        self.step, size = 0, self.recipe.batch_size
        while (size := size // 2) >= 2:  # BatchNorm may want two
            runtime.release_memory(self.device)
            with contextlib.suppress(torch.OutOfMemoryError):
                pixels = torch.zeros(size, 3, height, width, device=self.device)
                labels = torch.zeros(size, dtype=torch.int64, device=self.device)
                self.one_step(
                    self.model, pixels.to(memory_format=torch.channels_last), labels
                )
                return f"{found}; {size} does."
        return f"{found}; nor do two pictures."


def _schedule(
    update: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(update, _unchanged)
    rise = max(
        0.2, 2 / (steps + 1)
    )  # at least one step: torch divides by the number of steps up
    return torch.optim.lr_scheduler.OneCycleLR(
        update, recipe.learning_rate, total_steps=steps + 1, pct_start=rise
    )


def _unchanged(_step: int) -> float:
    return 1.0


def train_mode(model: nn.Module, *, frozen_batch_norm: bool = False) -> nn.Module:
    """`model.train()`; with `frozen_batch_norm` its BatchNorm layers keep and use the statistics that they have.

    Taught in: chapter 2.
    """
    model.train()
    for module in model.modules():
        if frozen_batch_norm and isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def head(model: nn.Module) -> nn.Linear:
    """The network's last linear layer, which gives the logits. Raises InputError where there is none.

    Taught in: chapter 2.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"{type(model).__name__} has no linear layer at its end.")
    return linear[-1]


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
    `eval()` and left in the mode it came in. Raises InputError for no pictures. Taught in: chapter 2.
    """
    if not len(data.rows):
        raise InputError(
            "there is no picture to predict: the part is empty; a larger catalogue fills it."
        )
    device = runtime.device(device) if isinstance(device, str) else device
    dtype = getattr(torch, runtime.resolve_precision(device, precision))
    model.to(device)
    modes = {module: module.training for module in model.modules()}
    outputs = []
    try:
        model.eval()
        with torch.inference_mode(), runtime.autocast(device, precision):
            for pixels, _ in images.batches(
                data, batch_size=batch_size, device=device, dtype=dtype
            ):
                output = model(pixels)
                if flip:
                    output = (output + model(pixels.flip(3))) / 2
                outputs.append(output.float().cpu())
        logits = torch.cat(outputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return logits, torch.from_numpy(data.labels)
