"""Parameters of the chapters: their defaults, their profiles, and the check of both.

    parameters.for_profile("02_resnet152", "small")   # defaults, changed by a profile
    parameters.check("02_resnet152", globals())       # first cell of a chapter

The notebook's cell tagged `parameters` is the only list of names, types and defaults.
make, papermill, JupyterLab and the command line all pass through the same check.
"""

from __future__ import annotations

import ast
import difflib
import json
from typing import Any

from fashionlib import runtime
from fashionlib.runtime import InputError


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
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if "parameters" in cell["metadata"].get("tags", []):
            statements = ast.parse("".join(cell["source"])).body
            return {
                each.targets[0].id: ast.literal_eval(each.value) for each in statements
            }
    raise InputError(f"{path} has no cell tagged `parameters`.")


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
    path = runtime.project_root() / "profiles" / profile / f"{chapter}.yml"
    if not path.exists():
        return defaults | {"run": profile}
    where = f"profiles/{profile}/{chapter}.yml"
    try:
        chosen = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{where} is not valid YAML: {reason}") from error
    if not isinstance(chosen, dict):
        found = type(chosen).__name__
        raise InputError(f"{where} must hold lines `name: value`, found {found}.")
    for name in chosen.keys() - defaults.keys():
        near = difflib.get_close_matches(str(name), defaults, n=1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"known: {', '.join(defaults)}."
        )
        raise InputError(f"{where}: the notebook has no parameter {name!r}; {hint}")
    check(chapter, chosen, where)
    return defaults | chosen


def check(chapter: str, values: dict[str, Any], where: str = "") -> None:
    """Compare the types of a chapter's parameters with those of its defaults.

    values: the notebook's `globals()`, or the lines of a profile. What can be converted
    without doubt is, in place: 2 for a float, 2.0 for an int, "1e-3" for a number.
    Raises InputError for every other type.
    Taught in: chapter 1
    """
    for name, default in notebook_defaults(chapter).items():
        if name in values:
            try:
                values[name] = _converted(values[name], default)
            except (TypeError, ValueError, OverflowError):  # infinity is no int
                raise InputError(
                    f"{where or chapter}: {name} must be of type "
                    f"{type(default).__name__} like {default!r}, "
                    f"found {values[name]!r:.100}."
                ) from None


def _converted(value: Any, default: Any) -> Any:
    """The value as the default's type; an error where that is a guess."""
    kind = type(default)
    if type(value) is kind:
        return value
    if isinstance(value, bool) or kind not in (int, float):
        raise TypeError
    number = float(value)
    if kind is int and number != int(number):
        raise ValueError
    return kind(number)


def check_ranges(recipe: object, **ranges: tuple[float, float]) -> None:
    """Compare numbers of a recipe with their ranges, from `low` to below `high`.

    ranges: (low, high) of each attribute; where `low` is an int, the number must be.
    Raises InputError for the first one that is out of range or of another type.
    Taught in: chapter 2
    """
    for name, (low, high) in ranges.items():
        value, kind = getattr(recipe, name), type(low)
        if type(value) not in (int, kind) or not low <= value < high:
            limits = f"{kind.__name__} from {low} to below {high}"
            raise InputError(f"{name} must be of type {limits}; found {value!r}.")
