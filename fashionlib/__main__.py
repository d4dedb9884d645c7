"""The command line: classify a photo, or train without the notebook.

    python -m fashionlib predict photo.jpg --run small
    python -m fashionlib fit --profile full
    accelerate launch -m fashionlib fit --profile full             # on all GPUs
    torchrun --nproc-per-node 4 -m fashionlib fit --profile full   # the same

Chapter 2 takes the trained network over from the checkpoint that `fit` leaves.
"""

import argparse
import sys

from fashionlib import artifacts, images, models, parameters, runtime, training
from fashionlib.runtime import InputError


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what the user can put right is one line on stderr, status 1."""
    parser = argparse.ArgumentParser("python -m fashionlib")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("predict", help="the class of a photo of your own")
    command.add_argument("photo")
    command.add_argument("--run", default="sample", help="whose network")
    command.set_defaults(function=predict)
    command = commands.add_parser("fit", help="chapter 2's training")
    command.add_argument("--profile", default="sample", help="of chapters 1 and 2")
    command.set_defaults(function=fit)
    options = vars(parser.parse_args(arguments))
    try:
        options.pop("function")(**options)
    except InputError as error:
        sys.exit(f"error: {error}")


def predict(photo: str, run: str) -> None:
    """Print the probability of each class for one image file, by a run's network."""
    path = artifacts.require(run, "classifier.safetensors")
    model, settings = models.load(path.parent)
    for name, probability in models.classify(model, settings, photo).items():
        print(f"{name:18} {100 * probability:5.1f} %")


def fit(profile: str) -> None:
    """Train as chapter 2 does with the parameters of a profile."""
    chosen = parameters.for_profile("02_resnet152", profile)
    prepared = images.load(artifacts.require(profile, "prepared"))
    recipe = training.Recipe.from_parameters(chosen)
    names = ("architecture", "weights", "stem", "size", "enlarge")
    options = {name: chosen[name] for name in ("probe_first", "precision", "compiled")}
    options["network"] = {name: chosen[name] for name in names}
    folder = artifacts.folder(profile)
    _, history = training.train_classifier(prepared, folder, recipe, **options)
    if runtime.rank_and_world_size()[0] == 0:
        print(f"validation accuracy {history[-1]['validation_accuracy']:.4f}")


if __name__ == "__main__":
    main()
