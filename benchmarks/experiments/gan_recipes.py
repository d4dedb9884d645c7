"""What each ingredient is worth to the DCGAN.

    python benchmarks/experiments/gan_recipes.py            # 100 minutes on 2 cores
    python benchmarks/experiments/gan_recipes.py --dry-run  # a toy; nothing is kept

Class 1 (Women/Accessories) of the real 60x80 catalogue, 700 steps of 64 images and the
rest of their epoch, two seeds: the paper's networks and recipe, the same with one
ingredient changed, and what `dcgan.RECIPES["best"]` and an average of the
weights make together. Judged by the Frechet distance between features of chapter 2's
classifier (of `make report PROFILE=small`), at equal numbers of images. Stopped, it
goes on where it was. The ingredients that did not help live here, not in the library.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

sys.path.insert(0, str(Path(__file__).parents[1]))
import measuring
from conftest import real_data_folder

from fashionlib import artifacts, dcgan, gan_metrics, images, models, runtime
from fashionlib.data import prepare, synthetic

LABEL, OTHER = 1, 2
PENALTY_EVERY = 16  # steps between two gradient penalties, each as heavy as 16
AVERAGE = {"ema_decay": 0.99}
VARIANTS = {
    "the paper's recipe": {},
    "average of the weights": AVERAGE,
    "both learning rates doubled": {"learning_rate": 4e-4},
    "hinge loss": {"hinge": True},
    "a discriminator twice as fast": {"discriminator_lr": 4e-4},
    "spectral normalisation": {"spectral": True},
    "gradient penalty": {"r1": 1.0},
    "augmentation inside the game": {"augment": True},
    "no flips": {"flip": False},
    "two classes, told apart": {"classes": 2},  # Men/Apparel, too; judged on class 1
    "the best": dcgan.RECIPES["best"] | AVERAGE,
}


# --- the ingredients ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Recipe(dcgan.Recipe):
    """The library's recipe and the ingredients that came after the paper."""

    hinge: bool = False  # Lim and Ye 2017
    discriminator_lr: float = 0.0  # of the discriminator; 0: the same (Heusel 2017)
    spectral: bool = False  # norm 1 instead of its BatchNorm (Miyato et al. 2018)
    r1: float = 0.0  # weight of the gradient penalty (Mescheder et al. 2018)
    augment: bool = False  # before the discriminator looks (Zhao et al. 2020)
    classes: int = 0  # that both networks know (Mirza and Osindero 2014)


class Generator(dcgan.Generator):
    """The library's generator, which may be told a class: z and a one-hot code.

    Without labels it draws the first class, as a generator of its own would.
    """

    def __init__(self, latent_dim: int, base_channels: int, classes: int = 0):
        super().__init__(latent_dim + classes, base_channels)
        self.classes = classes

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.classes:
            labels = z.new_zeros(len(z)).long() if labels is None else labels
            z = torch.cat([z, F.one_hot(labels, self.classes).to(z)], dim=1)
        return super().forward(z)


class Discriminator(dcgan.Discriminator):
    """The library's discriminator; one logit a class, spectral norm, or both."""

    def __init__(self, base_channels: int, classes: int = 0, spectral: bool = False):
        super().__init__(base_channels)
        self.classes = classes
        if classes:
            self[-2] = nn.Conv2d(8 * base_channels, classes, 4, bias=False)
            nn.init.normal_(self[-2].weight, 0.0, 0.02)
            self[-1] = nn.Flatten(1)  # (B, classes)
        for index, layer in enumerate(self) if spectral else ():
            if isinstance(layer, nn.BatchNorm2d):
                self[index] = nn.Identity()
                self[index - 1].bias = nn.Parameter(torch.zeros(layer.num_features))
        for layer in list(self) if spectral else ():
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = super().forward(pixels)
        return logits.gather(1, labels[:, None])[:, 0] if self.classes else logits


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """max(0, 1 - a) of real and max(0, 1 + a) of fake logits a: no gain beyond 1."""
    real_loss = F.relu(1 - real_logits.float()).mean()
    return real_loss + F.relu(1 + fake_logits.float()).mean()


def gradient_penalty(
    discriminator: nn.Module, real: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Half the squared slope of the logit at real images (B, 3, 64, 64), in float32."""
    real = real.detach().float().requires_grad_()
    logits = discriminator(real, labels)
    (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean() / 2


def augment(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Images (B, 3, H, W) in other colors, moved by up to an eighth, a quarter cut out.

    DiffAugment: brightness, saturation, contrast, translation, cutout. Gradients pass.
    """
    drawn = torch.rand(7, len(pixels), generator=rng).to(pixels)
    brightness, saturation, contrast = drawn[:3, :, None, None, None]
    pixels = pixels + brightness - 0.5
    gray = pixels.mean(1, keepdim=True)
    pixels = gray + 2 * saturation * (pixels - gray)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (contrast + 0.5) * (pixels - mean)
    rows, inside_rows, cut_rows = _along(drawn[3], drawn[5], pixels.shape[2])
    columns, inside_columns, cut_columns = _along(drawn[4], drawn[6], pixels.shape[3])
    inside = inside_rows[:, :, None] & inside_columns[:, None]  # (B, H, W)
    kept = inside & ~(cut_rows[:, :, None] & cut_columns[:, None])
    batch = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    moved = pixels.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]]
    return (moved * kept[..., None]).permute(0, 3, 1, 2)


def _along(shift: Tensor, start: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one axis, each (B, side): a pixel's source, is it inside, is it cut out?"""
    line = torch.arange(side, device=shift.device)
    source = line - ((2 * shift - 1) * side / 8).round().long()[:, None]
    first = (start * side).long()[:, None] - side // 4
    inside = (source >= 0) & (source < side)
    return (
        source.clamp(0, side - 1),
        inside,
        (line >= first) & (line < first + side // 2),
    )


class Trainer(dcgan.DCGANTrainer):
    """The library's trainer with the ingredients; labels: int64 (N,), of all images."""

    def __init__(self, recipe, device="auto", precision="auto", *, labels: Tensor):
        super().__init__(recipe, device, precision)
        self.labels = labels.to(self.device)
        if recipe.discriminator_lr:
            self.d_optimizer.param_groups[0]["lr"] = recipe.discriminator_lr

    def networks(self) -> tuple[nn.Module, nn.Module]:
        recipe, channels = self.recipe, self.recipe.base_channels
        generator = Generator(recipe.latent_dim, channels, recipe.classes)
        return generator, Discriminator(channels, recipe.classes, recipe.spectral)

    def batches(self, pixels: Tensor, epoch: int):
        """Yield (real, labels) and z: the library's batches, in the same order."""
        size, count = self.recipe.batch_size, len(pixels)
        self.rng = torch.Generator().manual_seed(images.epoch_seed(epoch, 1))
        self.step = (epoch - 1) * (count // size)
        seed = images.epoch_seed(self.recipe.seed, epoch)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        labels = self.labels[order.to(self.device)].split(size)
        for (real, z), chosen in zip(
            super().batches(pixels, epoch), labels, strict=False
        ):
            yield (real, chosen), z

    def judge(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """The discriminator's logits (B,) of images as it gets to see them."""
        seen = augment(pixels, self.rng) if self.recipe.augment else pixels
        return self.discriminator(seen, labels)

    def train_step(self, batch: tuple[Tensor, Tensor], z: Tensor) -> Tensor:
        (real, labels), recipe = batch, self.recipe
        with runtime.autocast(self.device, self.precision):
            fake = self.generator(z, labels)
            real_logits = self.judge(real, labels)
            fake_logits = self.judge(fake.detach(), labels)
        loss = hinge_loss if recipe.hinge else dcgan.discriminator_loss
        d_loss = cost = loss(real_logits, fake_logits)
        if recipe.r1 and self.step % PENALTY_EVERY == 0:
            penalty = gradient_penalty(self.discriminator, real, labels)
            cost = d_loss + recipe.r1 * PENALTY_EVERY * penalty
        self.d_optimizer.zero_grad()
        cost.backward()
        self.d_optimizer.step()

        with runtime.autocast(self.device, self.precision):
            new_logits = self.judge(fake, labels)
        g_loss = dcgan.generator_loss(new_logits)
        if recipe.hinge:
            g_loss = -new_logits.float().mean()
        self.g_optimizer.zero_grad()
        g_loss.backward()
        self.g_optimizer.step()
        self.step += 1
        scores = torch.stack([real_logits, fake_logits]).float().sigmoid().mean(1)
        return torch.stack([d_loss, g_loss, *scores]).detach()


# --- the experiment -------------------------------------------------------------------


def train(prepared, changed: dict, seed: int, budget: dict, folder: Path):
    """One training of a variant; `folder` keeps its checkpoint."""
    classes = [LABEL, OTHER] if changed.get("classes") else [LABEL]
    data = prepared.subset("train", dcgan.SIZE, classes)
    steps_an_epoch = len(data.rows) // budget["batch_size"]
    epochs = math.ceil(budget["steps"] / steps_an_epoch)
    small = {name: budget[name] for name in ("batch_size", "base_channels")}
    recipe = Recipe(epochs=epochs, seed=seed, **small, **changed)
    labels = torch.from_numpy(np.searchsorted(classes, data.labels))
    code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return dcgan.fit(
        data,
        recipe=recipe,
        checkpoint=folder / "training",
        settings={"data": prepared.checksum(dcgan.SIZE), "code": code},
        trainer=functools.partial(Trainer, labels=labels),
    )


def run(prepared, model: nn.Module, size, budget: dict, folder: Path) -> dict:
    """{variant: its measures, a dictionary a seed}, and the floor as the last entry."""
    data = prepared.subset("train", dcgan.SIZE, [LABEL])
    order = np.random.default_rng(0).permutation(data.rows)
    count = len(order) // 2
    real = data.images[np.sort(order[:count])]
    sides, facts = {"floor": data.images[np.sort(order[-count:])]}, {}
    for name, changed in VARIANTS.items():
        for seed in budget["seeds"]:
            result = train(prepared, changed, seed, budget, folder)
            z = dcgan.noise(count, seed=1)  # of several classes the first is drawn
            sides[name, seed] = dcgan.sample(result.generator, z)
            facts[name, seed] = {
                "images": count,
                "steps": len(result.history),
                "seconds": result.seconds,
            }

    def embed(pixels: np.ndarray) -> Tensor:
        return models.extract_features(model, images.from_array(pixels), size=size)[0]

    found = gan_metrics.scores(embed, real, sides)
    floor = {"floor": found.pop("floor")["frechet"]}
    results = {name: [] for name in VARIANTS}
    for name, seed in found:
        results[name].append(found[name, seed] | floor | facts[name, seed])
    return results


def report(results: dict, budget: dict) -> None:
    """Write benchmarks/results/gan_recipes.json."""
    frechet = {
        name: [each["frechet"] for each in runs] for name, runs in results.items()
    }
    rows = [measuring.row(name, values, "Frechet") for name, values in frechet.items()]
    floor = results["the best"][0]["floor"]
    rows.append(measuring.row("floor: real against real", [floor], "Frechet"))
    gain = np.mean(frechet["the paper's recipe"]) / np.mean(frechet["the best"])
    ratios = {"gan_best_vs_plain": round(float(gain), 2)}
    budget = budget | {"class": LABEL, "best": VARIANTS["the best"]}
    measuring.save("gan_recipes", rows, ratios, budget=budget, variants=results)


def main() -> None:
    if "--dry-run" in sys.argv[1:]:
        budget = {"steps": 2, "batch_size": 8, "base_channels": 2, "seeds": [0]}
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            source = synthetic.draw(folder / "catalogue", products=150)
            arrays = prepare.prepare(source, folder / "data", sizes=[dcgan.SIZE])
            model = models.build("resnet10")
            results = run(images.load(arrays), model, dcgan.SIZE, budget, folder)
        print(f"a dry run at toy size: {len(results)} variants trained, nothing kept")
        return
    if not (real := real_data_folder()):
        sys.exit(
            "gan_recipes: the real catalogue is needed; FASHION_REAL_DATA must name "
            "the folder with its zips (or try --dry-run)"
        )
    budget = {"steps": 700, "batch_size": 64, "base_channels": 64, "seeds": [0, 1]}
    folder = runtime.build_root() / "experiments" / "gan_recipes"
    source = real / "fashion-product-images-small.zip"
    prepared = images.load(prepare.prepare(source, folder / "data", sizes=[dcgan.SIZE]))
    classifier = artifacts.require("small", "classifier.safetensors").parent
    model, settings = models.load(classifier)
    report(run(prepared, model, settings["size"], budget, folder), budget)


if __name__ == "__main__":
    main()
