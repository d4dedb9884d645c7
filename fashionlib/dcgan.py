"""DCGAN: a generator and a discriminator for 64x64 pictures, trained against each other.

    train = dcgan.of_classes(prepared, [1])                          # Women/Accessories
    recipe = dcgan.Recipe(epochs=13, ema=0.99)
    result = dcgan.fit(train, recipe=recipe, checkpoint=path)        # result.generator, .history, .snapshots, .alarms
    pictures = dcgan.sample(result.generator, dcgan.noise(16, seed=1))

Pictures are uint8 (N, 64, 64, 3) NumPy arrays outside, float32 (N, 3, 64, 64) in [-1, 1] inside. How good they are is
judged by `fashionlib.gan_metrics`.
Measured on 2 CPU cores, bfloat16: 216 real pictures a second with the paper's 64 feature maps and batch 128
(`benchmarks/results/small-cpu.json`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fashionlib import adversarial, artifacts, gan_metrics, images, runtime
from fashionlib.catalogue import CLASS_NAMES
from fashionlib.generators import (
    Discriminator,
    Generator,
    OfClass,
    interpolate,
    noise,
    sample,
)
from fashionlib.images import ImageSet, Prepared
from fashionlib.runtime import InputError

__all__ = [
    "Discriminator",
    "Generator",
    "Recipe",
    "fit",
    "interpolate",
    "load",
    "noise",
    "of_classes",
    "sample",
    "save",
]
VERSION = 2  # of the training: raise it when the same settings would give other weights
SIZE = 64  # side of the pictures: four doublings of a 4x4 map
SNAPSHOTS = 16  # moments of the training that are kept
RECORD = (
    "discriminator_loss",
    "generator_loss",
    "real_score",
    "fake_score",
)  # what is kept of every step
LOSSES = ("non-saturating", "hinge")
# What helped on the real catalogue within 700 steps: benchmarks/experiments/gan_recipes.py. The average of the weights,
# which helped as well, is set apart from it (`ema`), as its decay depends on the number of steps.
BEST = {"learning_rate": 4e-4}
PENALTY_EVERY = (
    16  # steps between two gradient penalties, each as heavy as 16 (Karras et al. 2020)
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the two networks are trained: the paper's settings, and below them the ingredients that came after it.

    `benchmarks/experiments/gan_recipes.py` measures what each is worth. Raises InputError for an unknown loss
    and for numbers that must be positive and are not.
    Taught in: chapter 5.
    """

    epochs: int  # passes over the pictures
    batch_size: int = 128
    learning_rate: float = 2e-4  # of Adam, for both networks
    beta1: float = 0.5  # decay of Adam's first moment
    latent: int = 100  # random numbers that a picture is made from
    features: int = 64  # maps of the widest pictures
    flip: bool = True  # mirror half of the pictures
    seed: int = 0
    loss: str = "non-saturating"  # or hinge (Lim and Ye 2017)
    discriminator_rate: float = (
        0.0  # the discriminator's own learning rate (Heusel et al. 2017); 0: the same
    )
    spectral_norm: bool = (
        False  # of the discriminator, instead of its BatchNorm (Miyato et al. 2018)
    )
    r1: float = (
        0.0  # weight of the gradient penalty on real pictures (Mescheder et al. 2018)
    )
    augment: bool = False  # change real and generated pictures alike before they are judged (Zhao et al. 2020)
    ema: float = 0.0  # decay of the average of the generator's weights a step, 0 for none (Yazici et al. 2019)
    conditional: bool = False  # both networks know the class (Mirza and Osindero 2014)

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise InputError(
                f"loss must be one of {', '.join(LOSSES)}; found {self.loss!r}."
            )
        runtime.expect_positive(epochs=self.epochs)


def ingredients(recipe: str) -> dict:
    """What a recipe puts in place of the paper's settings: `plain` nothing, `best` what helped on this catalogue.

    Raises InputError for another name. Taught in: chapter 5.
    """
    if recipe not in ("plain", "best"):
        raise InputError(f"recipe must be plain or best; found {recipe!r}.")
    return dict(BEST) if recipe == "best" else {}


# --- fit -------------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """generator: the average of its weights where `ema` is not 0, in `eval()`. history: one dictionary a step.

    snapshots: {epoch: uint8 (16, 64, 64, 3)}, always from the same noise. variety: {epoch: how much the pictures differ
    from each other, 1 as much as real ones}. alarms: what went wrong, a line each. seconds: of the training alone.
    Taught in: chapter 5.
    """

    generator: Generator | OfClass
    discriminator: Discriminator
    history: list[dict]
    snapshots: dict[int, np.ndarray]
    variety: dict[int, float]
    alarms: list[str]
    seconds: float
    images_per_second: float

    def of_class(self, index: int) -> Result:
        """Of a conditional training what belongs to one of its classes, in their order; of another one all of it."""
        if not (classes := self.generator.classes):
            return self
        snapshots = {
            epoch: pictures[index::classes]
            for epoch, pictures in self.snapshots.items()
        }
        return self._replace(
            generator=OfClass(self.generator, index), snapshots=snapshots
        )


def of_classes(prepared: Prepared, labels: list[int], split: str = "train") -> ImageSet:
    """The 64x64 pictures of some classes. Raises InputError for a class that does not exist. Taught in: chapter 5."""
    for label in labels:
        if label not in range(len(CLASS_NAMES)):
            known = ", ".join(f"{i} {name}" for i, name in enumerate(CLASS_NAMES))
            raise InputError(
                f"class {label!r} does not exist; the classes are {known}."
            )
    return prepared.subset(split, SIZE, labels)


def fit(
    train: ImageSet,
    *,
    recipe: Recipe,
    device: torch.device | str = "auto",
    precision: str = "auto",
    checkpoint: Path | None = None,
    settings: dict | None = None,
) -> Result:
    """Train a generator on the pictures of `train` (64x64) against a discriminator; both by Adam (Radford et al. 2016).

    An epoch leaves out the pictures that do not fill a batch; which ones differs from epoch to epoch.
    checkpoint: a file that is written after every epoch; a run that was stopped goes on from it and ends with the same
    numbers, a finished one returns at once. settings: what names the data there (`Prepared.checksum`, the class).
    Raises InputError for fewer pictures than a batch, another size, or losses that are no longer finite.
    Taught in: chapter 5.
    """
    _check(train, recipe.batch_size)
    device = runtime.device(device) if isinstance(device, str) else device
    game = Game(train, recipe, device, runtime.resolve_precision(device, precision))
    game.resume(checkpoint, {"precision": precision, **(settings or {})})
    for epoch in runtime.progress(
        range(len(game.records) + 1, recipe.epochs + 1), "DCGAN", unit="epoch"
    ):
        game.epoch(epoch)
        game.save(checkpoint)
    return game.result()


def _check(train: ImageSet, batch_size: int) -> None:
    if train.images.shape[1:] != (SIZE, SIZE, 3):
        raise InputError(
            f"DCGAN draws {SIZE}x{SIZE} pictures; found {train.images.shape[1:]}. Take size {SIZE}."
        )
    if not 2 <= batch_size <= len(train.rows):
        raise InputError(
            f"an epoch needs at least one full batch of two or more: found {len(train.rows)} pictures and "
            f"batch_size = {batch_size}. Choose a smaller batch_size or a class with more pictures."
        )


class Game:
    """A training between two epochs: both players, their optimizers, and what is kept. Taught in: chapter 5."""

    def __init__(
        self, train: ImageSet, recipe: Recipe, device: torch.device, precision: str
    ):
        self.recipe, self.device, self.precision = recipe, device, precision
        self.pictures = torch.from_numpy(train.images[train.rows]).to(
            device
        )  # (N, 64, 64, 3) uint8: 12 KB a picture
        known, labels = np.unique(train.labels, return_inverse=True)
        self.labels, self.classes = (
            torch.from_numpy(labels).to(device),
            len(known) if recipe.conditional else 0,
        )
        with torch.random.fork_rng(
            devices=[]
        ):  # on the CPU: the same first weights on every device
            torch.manual_seed(recipe.seed)
            generator = Generator(recipe.latent, recipe.features, self.classes)
            discriminator = Discriminator(
                recipe.features, self.classes, spectral=recipe.spectral_norm
            )
        self.networks = nn.ModuleDict(
            {"generator": generator, "discriminator": discriminator}
        )
        self.networks.to(device, memory_format=torch.channels_last)
        rates = {
            "generator": recipe.learning_rate,
            "discriminator": recipe.discriminator_rate or recipe.learning_rate,
        }
        options = {
            "betas": (recipe.beta1, 0.999),
            "fused": device.type in ("cuda", "cpu"),
        }
        self.updates = {
            name: torch.optim.Adam(self.networks[name].parameters(), rate, **options)
            for name, rate in rates.items()
        }
        if recipe.ema:
            moving = get_ema_multi_avg_fn(recipe.ema)
            self.networks["average"] = AveragedModel(
                generator, multi_avg_fn=moving, use_buffers=True
            )
        self.records, self.snapshots, self.variety, self.seconds = [], {}, {}, []
        self.shown = {
            math.ceil(recipe.epochs * (i / SNAPSHOTS) ** 1.5)
            for i in range(1, SNAPSHOTS + 1)
        }  # early ones

    @property
    def final(self) -> Generator:
        """The generator that pictures are drawn from."""
        return (
            self.networks["average"].module
            if self.recipe.ema
            else self.networks["generator"]
        )

    def batches(
        self, epoch: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Generator]]:
        """(B, 3, 64, 64) in [-1, 1], labels (B,), and the source of chance: all depends on (seed, epoch) only."""
        size, count = self.recipe.batch_size, len(self.pictures)
        chance = torch.Generator().manual_seed(
            images.epoch_seed(self.recipe.seed, epoch)
        )
        order = torch.randperm(count, generator=chance)
        mirrored = torch.rand(count, generator=chance) < (
            0.5 if self.recipe.flip else 0
        )
        for start in range(0, count - size + 1, size):
            chosen = order[start : start + size]
            turned, chosen = mirrored[chosen].to(self.device), chosen.to(self.device)
            batch = self.pictures[chosen]
            batch = torch.where(turned[:, None, None, None], batch.flip(2), batch)
            yield (
                batch.permute(0, 3, 1, 2).float().div_(127.5).sub_(1),
                self.labels[chosen],
                chance,
            )

    def epoch(self, epoch: int) -> None:
        """One pass over the pictures. Raises InputError where a loss is no longer finite."""
        started, steps = time.perf_counter(), []
        self.networks.train()
        for real, labels, chance in self.batches(epoch):
            drawn = torch.randn(len(real), self.recipe.latent, generator=chance).to(
                self.device
            )
            number = len(self.records) * (
                len(self.pictures) // self.recipe.batch_size
            ) + len(steps)
            penalty = number % PENALTY_EVERY == 0
            steps.append(self.step(real, labels, drawn, chance, penalty=penalty))
            if self.recipe.ema:
                self.networks["average"].update_parameters(self.networks["generator"])
        record = torch.stack(
            steps
        ).cpu()  # (steps, 4); the only synchronisation with the device
        self.seconds.append(time.perf_counter() - started)
        if not record.isfinite().all():
            rate = self.recipe.learning_rate
            raise InputError(
                f"the losses of epoch {epoch} are not finite: lower learning_rate = {rate}."
            )
        self.records.append(record)
        if epoch in self.shown:
            self.look(epoch)

    def step(
        self,
        real: torch.Tensor,
        labels: torch.Tensor,
        drawn: torch.Tensor,
        chance: torch.Generator,
        *,
        penalty: bool,
    ) -> torch.Tensor:
        """The discriminator's move, then the generator's, on the same fakes; the four values of `RECORD`.

        real: (B, 3, 64, 64) in [-1, 1], of the classes labels (B,); drawn: noise (B, latent). Goodfellow et al. 2014.
        """
        generator, discriminator = (
            self.networks["generator"],
            self.networks["discriminator"],
        )
        hinge = self.recipe.loss == "hinge"
        with runtime.autocast(self.device, self.precision):
            fake = generator(drawn, labels)
            real_logits = discriminator(self.seen(real, chance), labels)
            fake_logits = discriminator(self.seen(fake.detach(), chance), labels)
        judged = (adversarial.hinge_loss if hinge else adversarial.discriminator_loss)(
            real_logits, fake_logits
        )
        cost = judged
        if self.recipe.r1 and penalty:
            cost = (
                judged
                + self.recipe.r1
                * PENALTY_EVERY
                * adversarial.gradient_penalty(discriminator, real, labels)
            )
        self.updates["discriminator"].zero_grad(set_to_none=True)
        cost.backward()
        self.updates["discriminator"].step()

        with runtime.autocast(self.device, self.precision):
            answer = discriminator(
                self.seen(fake, chance), labels
            )  # through the discriminator as it is now
        made = -answer.float().mean() if hinge else adversarial.generator_loss(answer)
        self.updates["generator"].zero_grad(set_to_none=True)
        made.backward()
        self.updates["generator"].step()
        scores = [
            logits.detach().float().sigmoid().mean()
            for logits in (real_logits, fake_logits)
        ]
        return torch.stack([judged.detach(), made.detach(), *scores])

    def seen(self, pixels: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        """What the discriminator gets to see of pictures, real or generated."""
        return adversarial.augment(pixels, chance) if self.recipe.augment else pixels

    def look(self, epoch: int) -> None:
        """Keep sixteen pictures of this epoch, and how much sixty-four of them differ from each other."""
        count = 64
        labels = torch.arange(count) % self.classes if self.classes else None
        drawn = sample(
            self.final, noise(count, self.recipe.latent, seed=self.recipe.seed), labels
        )
        self.snapshots[epoch] = torch.from_numpy(drawn[:16])
        real = (
            self.pictures[:: max(1, len(self.pictures) // count)][:count].cpu().numpy()
        )
        self.variety[epoch] = gan_metrics.variety(drawn) / max(
            gan_metrics.variety(real), 1e-9
        )

    def resume(self, checkpoint: Path | None, settings: dict) -> None:
        """Bring everything to where the checkpoint stopped, if there is one for this recipe and these data."""
        self.settings = {
            "version": VERSION,
            **asdict(self.recipe),
            "images": len(self.pictures),
            **settings,
        }
        state = (
            artifacts.load_checkpoint(checkpoint, settings=self.settings)
            if checkpoint is not None
            else None
        )
        if state is None:
            return
        self.networks.load_state_dict(state["networks"])
        for name, update in self.updates.items():
            artifacts.restore_optimizer(update, state["updates"][name])
        for name in ("records", "snapshots", "variety", "seconds"):
            setattr(self, name, state[name])

    def save(self, checkpoint: Path | None) -> None:
        """Write the checkpoint, atomically."""
        if checkpoint is not None:
            state = {
                name: getattr(self, name)
                for name in ("records", "snapshots", "variety", "seconds")
            }
            state |= {"networks": dict(self.networks.state_dict())}
            state |= {
                "updates": {
                    name: update.state_dict() for name, update in self.updates.items()
                }
            }
            artifacts.save_checkpoint(checkpoint, state, settings=self.settings)

    def result(self) -> Result:
        """What the training has come to."""
        steps = [
            {"epoch": epoch, **dict(zip(RECORD, values, strict=True))}
            for epoch, record in enumerate(self.records, start=1)
            for values in record.tolist()
        ]
        snapshots = {
            epoch: pictures.numpy() for epoch, pictures in self.snapshots.items()
        }
        seconds = sum(self.seconds)
        rate = len(steps) * self.recipe.batch_size / seconds
        players = self.final.eval(), self.networks["discriminator"].eval()
        return Result(
            *players,
            steps,
            snapshots,
            self.variety,
            _alarms(steps, self.variety),
            seconds,
            rate,
        )


def _alarms(steps: list[dict], variety: dict[int, float]) -> list[str]:
    """What the last tenth of the steps and the last pictures give away."""
    found, last = [], steps[-max(1, len(steps) // 10) :]
    gap = float(np.mean([step["real_score"] - step["fake_score"] for step in last]))
    if gap > 0.9:
        found.append(
            f"the discriminator has won: D(x) - D(G(z)) is {gap:.2f}, the generator learns no more"
        )
    if variety and (share := variety[max(variety)]) < 0.5:
        found.append(
            f"mode collapse: the pictures differ from each other {share:.2f} times as much as real ones"
        )
    return found


# --- files ------------------------------------------------------------------------------------------------------------


def save(path: Path, result: Result, recipe: Recipe, index: int = 0) -> None:
    """Write the generator of a training for `load`; index: the class that `load` gives of a conditional one.

    Taught in: chapter 5.
    """
    settings = {
        "latent": recipe.latent,
        "features": recipe.features,
        "epochs": recipe.epochs,
    }
    settings |= {"classes": result.generator.classes, "index": index}
    artifacts.save_weights(path, result.generator, settings)


def load(path: Path, device: torch.device | str = "auto") -> tuple[nn.Module, dict]:
    """A run's generator (in `eval()`) and its settings, from `dcgan_<class>.safetensors`. Taught in: chapter 5.

    Of a conditional one (settings `classes`, `index`) the part that draws this class.
    """
    device = runtime.device(device) if isinstance(device, str) else device
    _, settings = artifacts.read_checkpoint(path)
    generator = Generator(
        settings["latent"], settings["features"], settings.get("classes", 0)
    )
    artifacts.load_weights(path, generator)
    generator.to(device, memory_format=torch.channels_last).eval()
    return (
        OfClass(generator, settings["index"]) if generator.classes else generator
    ), settings
