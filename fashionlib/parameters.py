"""Parameters of the chapters: their defaults, their profiles, and the check of both.

    parameters.for_profile("02_resnet152", "small")   # defaults, changed by a profile
    parameters.check("02_resnet152", globals())       # first cell of a chapter

The notebook's cell tagged `parameters` is the only list of names and defaults, and
parameters.toml says which values are allowed. make, papermill, JupyterLab, the command
line and both recipes pass through the same check.
"""

from __future__ import annotations

import ast
import difflib
import functools
import json
import math
import tomllib
from pathlib import Path
from typing import Any

from fashionlib import runtime
from fashionlib.runtime import InputError

REPEATED = ("size", "epochs")  # lists that may hold a value twice
OPTIONAL = ("weights", "extractor_weights", "frozen_until")  # None stands for "none"


@functools.cache
def allowed() -> dict[str, str]:
    """What each parameter may be, as in parameters.toml. Taught in: chapter 1"""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def profiles() -> list[str]:
    """Names of the profiles: `sample`, the notebooks' defaults, and the folders.

    Taught in: chapter 1
    """
    folders = (runtime.project_root() / "profiles").iterdir()
    return sorted({"sample", *(path.name for path in folders if path.is_dir())})


def chapters() -> list[str]:
    """Names of the notebooks, in order. Taught in: chapter 1"""
    notebooks = (runtime.project_root() / "notebooks").glob("[0-9]*.ipynb")
    return sorted(path.stem for path in notebooks)


def notebook_defaults(chapter: str) -> dict[str, Any]:
    """Names and default values in the notebook's cell tagged `parameters`.

    Taught in: chapter 1
    """
    path = runtime.project_root() / "notebooks" / f"{chapter}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [x for x in cells if "parameters" in x["metadata"].get("tags", [])]
    try:
        lines = ast.parse("".join(tagged[0]["source"])).body
        return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}
    except (AttributeError, IndexError, SyntaxError, ValueError) as error:
        expected = "a cell tagged `parameters`, of lines `name = value`"
        raise InputError(f"{path} must have {expected}; found {error}.") from error


def for_profile(chapter: str, profile: str) -> dict[str, Any]:
    """A chapter's parameters: the notebook's defaults, and what a profile changes.

    Raises InputError for an unknown profile, a file that is no list of `name: value`,
    and as `check`.
    Taught in: chapter 2
    """
    import yaml

    if profile not in profiles():
        names = ", ".join(profiles())
        raise InputError(f"PROFILE must be one of {names}; found {profile!r}.")
    defaults = notebook_defaults(chapter)
    where = f"profiles/{profile}/{chapter}.yml"
    path = runtime.project_root() / where
    try:
        # a link to nowhere is an error, not the defaults
        there = path.exists() or path.is_symlink()
        chosen = yaml.safe_load(path.read_bytes()) if there else None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as YAML: {error}") from error
    if not isinstance(chosen or {}, dict):
        raise InputError(f"{where} must hold lines `name: value`; found {chosen!r}.")
    chosen = {"run": profile} | (chosen or {})
    _check_names(chosen, defaults, where)
    check(chapter, chosen, where)
    if chosen["run"] != profile:
        raise InputError(f"{where}: run must be {profile}; found {chosen['run']}.")
    return defaults | chosen


def check(chapter: str, values: dict[str, Any], where: str = "") -> None:
    """Compare a chapter's parameters with what is allowed: names, types and ranges.

    values: the notebook's `globals()`, or the lines of a profile. What can be converted
    without doubt is, in place: 2 for a float, 2.0 for a whole number, text that stands
    for a value ("1e-3", "[64, 64]", "false"), digits for text, None for "none".
    Raises InputError for every other value, and for a name that papermill was given
    and the chapter does not have.
    Taught in: chapter 1
    """
    where, defaults, known = where or chapter, notebook_defaults(chapter), {}
    for executed in values.get("In", []):  # the cells that a kernel has run
        if executed.startswith("# Parameters\n"):  # papermill's own
            names = [each.targets[0].id for each in ast.parse(executed).body]
            _check_names(names, defaults, where)
    for name, default in defaults.items():
        key = f"{chapter}.{name}" if f"{chapter}.{name}" in allowed() else name
        value = values.get(name, default)
        known[name] = _checked(f"{where}: {name}", key, value, default, known)
    runtime.check_run(known.get("run", "sample"))
    fractions = known.get("label_fractions", [])
    if fractions and len(fractions) != len(known["epochs"]):
        raise InputError(f"{where}: epochs must be as many as label_fractions.")
    values.update({name: known[name] for name in known.keys() & values.keys()})


def check_recipe(recipe: object, chapter: str = "") -> None:
    """Compare a recipe's values with what is allowed for parameters of their names.

    chapter: whose own limits count first. Nothing is converted. Raises InputError for
    the first one that is not allowed.
    Taught in: chapter 2
    """
    known = vars(recipe)
    for name in filter(allowed().get, known):
        key = f"{chapter}.{name}" if f"{chapter}.{name}" in allowed() else name
        value, found = known[name], _checked(name, key, known[name], None, known)
        kinds = type(value), type(found)
        if len(set(kinds)) > 1 and kinds != (int, float):
            raise InputError(f"{name} must be like {found!r}; found {value!r}.")


def _check_names(names, defaults: dict, where: str) -> None:
    """Refuse a name that the chapter does not have, with the one that is meant."""
    for name in names:
        if name not in defaults:
            near = difflib.get_close_matches(str(name), defaults, n=1) or defaults
            missing = f"the notebook has no parameter {name!r}"
            raise InputError(f"{where}: {missing}; it has {', '.join(near)}.")


def _checked(label: str, name: str, value: Any, default: Any, known: dict) -> Any:
    """The value as its type where it is allowed, else one line."""
    try:
        return _converted(name, value, default, known)
    except (TypeError, ValueError, OverflowError, RecursionError):
        kind = f"of type {allowed().get(name, type(default).__name__)}"
        if isinstance(default, list):
            once = "" if name in REPEATED else ", none twice"
            kind = f"a list like {default}{once}, each {kind}"
        raise InputError(f"{label} must be {kind}; found {value!r:.100}.") from None


def _converted(name: str, value: Any, default: Any, known: dict) -> Any:
    """The value as its type; an error where that is a guess, or out of its range."""
    kind, _, limits = allowed().get(name, type(default).__name__).partition(" in ")
    if isinstance(value, str) and (kind != "str" or isinstance(default, list)):
        value = json.loads(value.lower().replace("'", '"'))
    if isinstance(default, list):
        return _converted_list(name, value, default, known)
    if kind == "str" and value is None and name in OPTIONAL:
        value = "none"
    elif kind == "str" and type(value) is int:
        value = str(value)
    elif kind in ("int", "float") and type(value) is not bool:
        given, value = value, int(value) if kind == "int" else float(value)
        if value != given or not math.isfinite(value):
            raise ValueError
    empty = isinstance(value, str) and not value.strip()
    if type(value).__name__ != kind or empty or not _is_within(value, limits, known):
        raise TypeError
    return value


def _converted_list(name: str, values: Any, default: list, known: dict) -> list:
    """Each of the values as its type; a size is a pair, one of sizes may be."""
    if not isinstance(values, list | tuple) or not values:
        raise TypeError
    made = []
    for value in values:
        is_pair = name == "sizes" and isinstance(value, list | tuple)
        key, like = ("size", [0, 0]) if is_pair else (name, default[0])
        made.append(_converted(key, value, like, known))
    twice = any(made.count(value) > 1 for value in made)
    if (twice and name not in REPEATED) or (name == "size" and len(made) != 2):
        raise ValueError
    return made


def _is_within(value: Any, limits: str, known: dict) -> bool:
    """Whether a text is one of `a|b`, or a number within `[low, high)`."""
    if not limits or "|" in limits:
        return not limits or value in limits.split("|")
    low, high = limits[1:-1].split(", ")
    # `inf`, or a parameter that a recipe may not have
    high = known.get(high, math.inf) if high.isidentifier() else float(high)
    high, low = min(high) if isinstance(high, list) else high, float(low)
    above = low < value or (low == value and limits[0] == "[")
    return above and (value < high or (value == high and limits[-1] == "]"))
