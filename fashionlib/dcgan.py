"""DCGAN: a generator and a discriminator of 64x64 images, trained against each other.

    train = prepared.subset("train", dcgan.SIZE, [1])       # Women/Accessories
    recipe = dcgan.Recipe(epochs=13, ema_decay=0.99)
    result = dcgan.fit(train, recipe=recipe, checkpoint=folder / "dcgan_1")
    generated = dcgan.sample(result.generator, dcgan.noise(16, seed=1))

Images are uint8 arrays (N, 64, 64, 3) outside and float32 tensors (N, 3, 64, 64) in
[-1, 1] inside. `fashionlib.gan_metrics` measures how good they are.
Measured against PyTorch's example: `benchmarks/results/gan.json`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fashionlib import artifacts, cpu, gan_metrics, images, runtime
from fashionlib.models import evaluating
from fashionlib.parameters import check_recipe
from fashionlib.runtime import InputError

SIZE = 64  # side of the images: four doublings of a 4x4 map
RECORDED = ("discriminator_loss", "generator_loss", "real_score", "fake_score")

# --- the two networks -----------------------------------------------------------------


class Generator(nn.Sequential):
    """Noise z (B, latent_dim) to images (B, 3, 64, 64) in [-1, 1].

    base_channels: channels of the last hidden layer, c below; 64 gives 3,576,704
    parameters. Radford et al. 2016, https://arxiv.org/abs/1511.06434
    Taught in: chapter 5
    """

    def __init__(self, latent_dim: int = 100, base_channels: int = 64):
        c = base_channels
        super().__init__(
            nn.Unflatten(1, (latent_dim, 1, 1)),
            *_up(latent_dim, 8 * c, stride=1, padding=0),  # (B, 8c, 4, 4)
            *_up(8 * c, 4 * c),  # (B, 4c, 8, 8)
            *_up(4 * c, 2 * c),  # (B, 2c, 16, 16)
            *_up(2 * c, c),  # (B, c, 32, 32)
            nn.ConvTranspose2d(c, 3, 4, stride=2, padding=1, bias=False),
            nn.Tanh(),  # (B, 3, 64, 64)
        )
        self.apply(_initialize)


class Discriminator(nn.Sequential):
    """Images (B, 3, 64, 64) in [-1, 1] to one logit each (B,); above 0 means "real".

    base_channels: channels of the first layer, c below; 64 gives 2,765,568 parameters.
    Radford et al. 2016, https://arxiv.org/abs/1511.06434
    Taught in: chapter 5
    """

    def __init__(self, base_channels: int = 64):
        c = base_channels
        super().__init__(
            nn.Conv2d(3, c, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2),  # (B, c, 32, 32)
            *_down(c, 2 * c),  # (B, 2c, 16, 16)
            *_down(2 * c, 4 * c),  # (B, 4c, 8, 8)
            *_down(4 * c, 8 * c),  # (B, 8c, 4, 4)
            nn.Conv2d(8 * c, 1, 4, bias=False),  # (B, 1, 1, 1)
            nn.Flatten(0),  # (B,)
        )
        self.apply(_initialize)


def _up(inputs: int, outputs: int, stride: int = 2, padding: int = 1) -> list:
    """Twice the side (of z: 4x4); BatchNorm's bias makes one of its own needless."""
    convolution = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


def _down(inputs: int, outputs: int) -> list:
    """Half the side."""
    convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]


def _initialize(layer: nn.Module) -> None:
    """Weights around 0, BatchNorm's scales around 1: around 0 they would erase maps."""
    if hasattr(layer, "weight"):
        mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
        nn.init.normal_(layer.weight, mean, 0.02)


# --- losses and recipe ----------------------------------------------------------------


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))), the mean over the batch, of logits (B,).

    Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661
    Taught in: chapter 5
    """
    log_d_real = F.logsigmoid(real_logits.float())  # autocast may have made bfloat16
    log_d_fake = F.logsigmoid(-fake_logits.float())  # log(1 - D)
    return -log_d_real.mean() - log_d_fake.mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """-log D(G(z)), the non-saturating loss: the mean over the batch, of logits (B,).

    Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661
    Taught in: chapter 5
    """
    return -F.logsigmoid(fake_logits.float()).mean()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the two networks are trained; the defaults are the paper's settings.

    Raises InputError for a value that no training can use.
    Taught in: chapter 5
    """

    epochs: int  # passes over the images
    batch_size: int = 128  # images a step
    learning_rate: float = 2e-4  # of Adam, for both networks
    beta1: float = 0.5  # decay of Adam's first moment
    latent_dim: int = 100  # random numbers that an image is made from
    base_channels: int = 64  # channels of the 32x32 maps; smaller maps have more
    flip: bool = True  # mirror half of the images
    ema_decay: float = 0.0  # of the average of the generator's weights, a step; 0: none
    seed: int = 0  # of the first weights, the order of the images and the noise

    def __post_init__(self):
        check_recipe(self)


# What a named recipe changes in the paper's settings. "best" is what helped on the real
# catalogue within 700 steps (benchmarks/experiments/gan_recipes.py). The average of the
# weights helped as well; `ema_decay` is set apart: it depends on the number of steps.
RECIPES = {"plain": {}, "best": {"learning_rate": 4e-4}}


# --- training -------------------------------------------------------------------------


class DCGANTrainer(nn.Module):
    """What moves between two steps: both networks, their optimizers, the average.

    Its `state_dict` holds all that a stopped training needs to go on.
    Taught in: chapter 5
    """

    def __init__(self, recipe: Recipe, device="auto", precision="auto"):
        super().__init__()
        self.recipe, self.device = recipe, runtime.device(str(device))
        self.precision = runtime.resolve_precision(self.device, precision)
        if self.precision == "float16":
            self.precision = "float32"
            print("DCGAN computes in float32: float16 would lose small gradients.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # on the CPU: the same on every device
            self.generator, self.discriminator = self.networks()
        self.to(self.device, memory_format=torch.channels_last)
        average = get_ema_multi_avg_fn(recipe.ema_decay)  # with 0 it is a copy
        self.ema = AveragedModel(self.generator, multi_avg_fn=average, use_buffers=True)
        adam = dict(lr=recipe.learning_rate, betas=(recipe.beta1, 0.999), fused=True)
        self.g_optimizer = torch.optim.Adam(self.generator.parameters(), **adam)
        self.d_optimizer = torch.optim.Adam(self.discriminator.parameters(), **adam)
        self.log = {"history": [], "snapshots": {}, "diversity": {}, "seconds": 0.0}

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator with their first weights."""
        channels = self.recipe.base_channels
        return Generator(self.recipe.latent_dim, channels), Discriminator(channels)

    def train_step(self, real: Tensor, z: Tensor) -> Tensor:
        """The discriminator's update, then the generator's, with the same fakes.

        real: (B, 3, 64, 64) in [-1, 1]; z: noise (B, latent_dim). Returns the values
        named in `RECORDED`, (4,) on the device. Goodfellow et al. 2014, algorithm 1.
        """
        with runtime.autocast(self.device, self.precision):
            fake = self.generator(z)
            real_logits = self.discriminator(real)
            fake_logits = self.discriminator(fake.detach())
        d_loss = discriminator_loss(real_logits, fake_logits)
        self.d_optimizer.zero_grad()
        d_loss.backward()
        self.d_optimizer.step()

        with runtime.autocast(self.device, self.precision):
            new_logits = self.discriminator(fake)  # of the discriminator as it is now
        g_loss = generator_loss(new_logits)
        self.g_optimizer.zero_grad()
        g_loss.backward()
        self.g_optimizer.step()
        scores = torch.stack([real_logits, fake_logits]).float().sigmoid().mean(1)
        return torch.stack([d_loss, g_loss, *scores]).detach()

    def batches(self, pixels: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield full batches: real (B, 3, 64, 64) in [-1, 1] and z (B, latent_dim).

        pixels: uint8 (N, 64, 64, 3). All depends on (seed, epoch) and nothing before.
        """
        count, size = len(pixels), self.recipe.batch_size
        rng = torch.Generator().manual_seed(images.epoch_seed(self.recipe.seed, epoch))
        order = torch.randperm(count, generator=rng)
        mirrored = torch.rand(count, generator=rng) < (0.5 if self.recipe.flip else 0)
        for rows in order[: count - count % size].split(size):
            flip = mirrored[rows, None, None, None].to(self.device)
            batch = pixels[rows.to(self.device)]
            batch = torch.where(flip, batch.flip(2), batch).permute(0, 3, 1, 2)
            z = torch.randn(size, self.recipe.latent_dim, generator=rng)
            yield batch.float().div_(127.5).sub_(1), z.to(self.device)

    def train_epoch(self, pixels: Tensor, epoch: int) -> None:
        """One pass over pixels, uint8 (N, 64, 64, 3), added to `log`.

        Raises InputError where a loss is no longer finite.
        """
        started, steps = time.perf_counter(), []
        for real, z in self.batches(pixels, epoch):
            steps.append(self.train_step(real, z))
            self.ema.update_parameters(self.generator)
        steps = torch.stack(steps).cpu()  # (steps, 4); the only wait for the device
        self.log["seconds"] += time.perf_counter() - started
        if not steps.isfinite().all():
            rate = self.recipe.learning_rate
            raise InputError(f"a loss is not finite: lower learning_rate = {rate}.")
        for values in steps.tolist():
            record = dict(zip(RECORDED, values, strict=True))
            self.log["history"].append({"epoch": epoch, **record})

    def get_extra_state(self) -> dict:
        """What `state_dict` holds beside the networks."""
        optimizers = [self.g_optimizer.state_dict(), self.d_optimizer.state_dict()]
        return {"optimizers": optimizers, "log": self.log}

    def set_extra_state(self, state: dict) -> None:
        """Called by `load_state_dict`."""
        self.g_optimizer.load_state_dict(state["optimizers"][0])
        self.d_optimizer.load_state_dict(state["optimizers"][1])
        self.log = state["log"]


def fit(
    train, *, recipe, checkpoint=None, settings=None, trainer=DCGANTrainer, **options
) -> SimpleNamespace:
    """Train a generator on 64x64 images against a discriminator, both by Adam.

    Returns generator (the average of its weights where `ema_decay` is not 0) and
    discriminator, both in `eval()`; history: of every step the epoch, both losses, and
    the means of D(x) and D(G(z)); snapshots: {epoch: uint8 (16, 64, 64, 3)}, from the
    same noise; diversity: {epoch: how much images differ from each other, 1 as much as
    real ones}; seconds and images_per_second of the training alone.

    An epoch leaves out the images that do not fill a batch; which ones differs from
    epoch to epoch. checkpoint: a path without suffix (`artifacts.checkpoint_path`),
    written after every epoch: a run that was stopped goes on from it and ends with the
    same numbers, a finished one returns at once. settings: what names the data there
    (`Prepared.checksum`, the class). trainer: another one, as experiments have it.
    options: device and precision, "auto" if they are not given.
    Raises InputError for fewer images than a batch, another size, images that are all
    the same, or losses that are no longer finite. Radford et al. 2016, https://arxiv.org/abs/1511.06434
    Taught in: chapter 5
    """
    pixels = torch.from_numpy(train.images[train.rows])  # uint8: 12 KB an image
    if pixels.shape[1:] != (SIZE, SIZE, 3) or len(pixels) < recipe.batch_size:
        expected = f"batch_size = {recipe.batch_size} or more images (64, 64, 3)"
        found = f"found {tuple(pixels.shape)}: lower batch_size or take other images"
        raise InputError(f"expected {expected}; {found}.")
    training, path = trainer(recipe, **options), None
    if checkpoint is not None:
        key = {"precision": training.precision, "images": len(pixels), **asdict(recipe)}
        code = ("dcgan", "gan_metrics", "models", "images", "data.prepare")
        path = artifacts.checkpoint_path(checkpoint, key | (settings or {}), code)
        if path.exists():
            training.load_state_dict(artifacts.load_checkpoint(path))
    with cpu.keep_freed_memory(training.device):
        _run(training, pixels.to(training.device), path)
    generator, discriminator = training.ema.module.eval(), training.discriminator.eval()
    speed = len(training.log["history"]) * recipe.batch_size / training.log["seconds"]
    log = training.log | {"images_per_second": speed}
    log["snapshots"] = {epoch: x.numpy() for epoch, x in log["snapshots"].items()}
    return SimpleNamespace(generator=generator, discriminator=discriminator, **log)


def _run(training: DCGANTrainer, pixels: Tensor, path: Path | None) -> None:
    """Train the epochs left; keep images of 16 of them, more often of early ones."""
    recipe, log = training.recipe, training.log
    shown = {math.ceil(recipe.epochs * (i / 16) ** 1.5) for i in range(1, 17)}
    z = noise(64, recipe.latent_dim, seed=recipe.seed)  # the same at every look
    some = images.random_subset(images.from_array(pixels), 64, recipe.seed).rows
    scale = gan_metrics.diversity(pixels[some].cpu().numpy())
    if not scale:
        raise InputError(f"{len(some)} real images are all the same: take others.")
    done = log["history"][-1]["epoch"] if log["history"] else 0
    epochs = range(done + 1, recipe.epochs + 1)
    for epoch in runtime.progress(epochs, "DCGAN", unit="epoch"):
        training.train_epoch(pixels, epoch)
        if epoch in shown:
            generated = sample(training.ema.module, z)
            log["snapshots"][epoch] = torch.from_numpy(generated[:16])
            log["diversity"][epoch] = gan_metrics.diversity(generated) / scale
        if path is not None:
            artifacts.save_checkpoint(path, training.state_dict())


# --- use ------------------------------------------------------------------------------


def noise(count: int, latent_dim: int = 100, *, seed: int = 0) -> Tensor:
    """Standard normal z, float32 (count, latent_dim), the same on every device.

    Taught in: chapter 5
    """
    return torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def sample(generator: nn.Module, z: Tensor, *, batch_size: int = 256) -> np.ndarray:
    """Images uint8 (N, 64, 64, 3) from noise z (N, latent_dim), in `eval()`.

    BatchNorm's running statistics make each image depend on its own z only; the mode is
    put back afterwards.
    Taught in: chapter 5
    """
    device = next(generator.parameters()).device
    with evaluating(generator):
        parts = [generator(part.to(device)) for part in z.split(batch_size)]
    pixels = torch.cat(parts).add(1).mul(127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).cpu().contiguous().numpy()
