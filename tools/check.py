"""The check before a run: a mistake costs a second, not an hour.

    python -m tools.check --profile small --source catalogue.zip

Looks at the profile, at the names and types of its parameters and at the source, and
writes what papermill passes to each chapter into `build/<profile>/parameters/`. A file
there changes only with its content: make compares times.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from fashionlib import artifacts, parameters, runtime
from fashionlib.data import prepare, sources
from fashionlib.runtime import InputError


def check(profile: str, source: str = "", seed: str = "") -> Path:
    """Check the parameters of all chapters and write them; returns their folder.

    source, seed: take the place of the profile's own, where given.
    Raises InputError with the first mistake: an unknown profile or parameter, a value
    of another type than the default, a source that is no catalogue; and where the
    build folder cannot be written.
    """
    chapters = parameters.chapters()
    given, texts = {"seed": seed} if seed else {}, {}
    if seed:
        parameters.check(chapters[0], given, "SEED")
        given["seeds"] = [given["seed"]]
        print(f"SEED: {given['seed']} in every chapter")
    for chapter in chapters:
        defaults = parameters.notebook_defaults(chapter)
        values, note = parameters.for_profile(chapter, profile), ""
        if "source" in values:
            values["source"], note = check_source(source or values["source"])
        values |= {name: given[name] for name in given.keys() & values.keys()}
        passed = {name: each for name, each in values.items() if each != defaults[name]}
        texts[chapter] = note + yaml.safe_dump({"run": profile} | passed)
    files = [f"{chapter}.yml" for chapter in chapters]
    # .yaml and .YML, too, which nobody would read
    for path in (runtime.project_root() / "profiles" / profile).glob("*.[yY]*[mM][lL]"):
        if path.name not in files:
            raise InputError(
                f"profiles/{profile}/{path.name} belongs to no notebook; known: "
                f"{', '.join(files)}."
            )
    folder = runtime.build_root() / profile / "parameters"
    with artifacts.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for chapter, text in texts.items():
            path = folder / f"{chapter}.yml"
            if not path.is_file() or path.read_bytes() != text.encode():
                artifacts.write_text(path, text)
    return folder


def check_source(source: str) -> tuple[str, str]:
    """The source as an absolute path (a name stays), and a comment: its fingerprint.

    Raises InputError for a source that is no catalogue; Kaggle's are not downloaded.
    """
    if source == "synthetic" or source in sources.KAGGLE:
        return source, ""
    if source.encode(errors="replace").decode() != source:
        raise InputError(f"a name in UTF-8 is expected: rename source {source!a}.")
    opened = sources.open_source(source)
    prepare.find_products(opened)
    return str(opened.path), f"# source: {opened.fingerprint()}\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The check before a run.")
    parser.add_argument("--profile", required=True)
    parser.add_argument("--source", default="", help="a catalogue, or a name of one")
    parser.add_argument("--seed", default="", help="of every chapter that has one")
    options = parser.parse_args(arguments)
    try:
        check(options.profile, options.source, options.seed)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
