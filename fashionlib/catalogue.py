"""The catalogue as a tidy table: its rows, the six classes, and the split.

    source = sources.open_source("fashion-product-images-small.zip")   # or a folder; a zip is read in place
    table, malformed = catalogue.read_styles(source)
    table["label"] = catalogue.labels(table)

`styles.csv` is not valid CSV: product names carry unquoted commas. pandas' `on_bad_lines="skip"` would lose 22
products of the real catalogue; splitting each line on its first nine commas loses none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fashionlib.runtime import InputError

if TYPE_CHECKING:
    from fashionlib.data.sources import Source

COLUMNS = (
    *("id", "gender", "masterCategory", "subCategory", "articleType"),
    *("baseColour", "season", "year", "usage", "productDisplayName"),
)
GENDERS = ("Men", "Women")
CATEGORIES = (
    "Accessories",
    "Apparel",
    "Other",
)  # "Other": every remaining masterCategory
CLASS_NAMES = tuple(
    f"{gender}/{category}" for category in CATEGORIES for gender in GENDERS
)
SPLITS = {"train": 0.75, "validation": 0.10, "test": 0.15}
ASIDE = "set_aside"  # the part of a new product that links old ones of different parts


def read_styles(source: Source) -> tuple[pd.DataFrame, int]:
    """The rows of styles.csv, one per product, and how many of them carry unquoted commas in the product name.

    Columns are COLUMNS: `id` int64, `year` Int16 (missing allowed), the others strings.
    A name in proper CSV quotes, as a spreadsheet writes it, is unquoted and not malformed.
    Raises InputError for a file that cannot be read, for missing columns, for a row of fewer than ten fields, and for
    an id that comes twice. Taught in: chapter 1.
    """
    where = f"styles.csv of {source.path}"
    try:
        text = source.read("styles.csv").decode("utf-8-sig", errors="replace")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where} cannot be read ({error}): download or copy it again."
        ) from error
    lines = text.replace("\r\n", "\n").split(
        "\n"
    )  # splitlines() would also cut a name at U+2028 or U+0085
    header = lines[0].split(",")
    if tuple(header) != COLUMNS:
        raise InputError(
            f"{where}: expected the columns {', '.join(COLUMNS)}; found {', '.join(header) or 'none'}."
        )
    rows = [line.split(",", len(COLUMNS) - 1) for line in lines[1:] if line.strip()]
    short = next(
        (
            row
            for row in rows
            if len(row) < len(COLUMNS) or not re.fullmatch(r"\d{1,18}", row[0])
        ),
        None,
    )
    if short is not None:
        raise InputError(
            f"{where}: expected {len(COLUMNS)} fields that begin with a number, found {','.join(short)!r}."
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"id": "int64"})
    table["year"] = pd.to_numeric(
        table["year"].where(table["year"].str.fullmatch(r"\d{4}(\.0+)?"))
    ).astype("Int16")
    if table["id"].duplicated().any():
        raise InputError(
            f"{where}: id {table.loc[table['id'].duplicated(), 'id'].iloc[0]} comes twice; ids must be unique."
        )
    quoted = table["productDisplayName"].str.fullmatch(r'"(?:[^"]|"")*"')
    malformed = int((table["productDisplayName"].str.contains(",") & ~quoted).sum())
    table.loc[quoted, "productDisplayName"] = (
        table["productDisplayName"].str[1:-1].str.replace('""', '"')
    )
    return table, malformed


def labels(table: pd.DataFrame) -> pd.Series:
    """Class 0-5 of each row (order of CLASS_NAMES), -1 for other genders. Taught in: chapter 1."""
    gender = table["gender"].map({name: i for i, name in enumerate(GENDERS)})
    category = table["masterCategory"].map({"Accessories": 0, "Apparel": 1}).fillna(2)
    return (2 * category + gender).fillna(-1).astype("int8")


def split(
    label: pd.Series,
    group: pd.Series,
    *,
    seed: int = 0,
    previous: pd.Series | None = None,
) -> pd.Series:
    """`train`, `validation` or `test` for each product, 75 : 10 : 15 within each class, groups kept together.

    label: class of each product; group: `duplicates.groups`. A group counts for the class of its first member.
    previous: the part that a product has had in an earlier split, missing for new ones. Old products keep their
    part and draw the new members of their group to it; the other new groups fill up the parts.
    Within a class the larger groups are placed first, each at random in proportion to what the parts still lack;
    products without a twin then fill the parts exactly. Taught in: chapter 1.
    """
    generator = np.random.default_rng(seed)
    old = (
        pd.Series(pd.NA, index=label.index, dtype="string")
        if previous is None
        else previous.astype("string")
    )
    table = pd.DataFrame({"group": group, "label": label, "part": old})
    members = table.groupby("group").agg(
        label=("label", "first"), size=("label", "size"), part=("part", "first")
    )
    for _, groups in members.groupby("label"):
        targets = np.floor(np.array(list(SPLITS.values())) * groups["size"].sum() + 0.5)
        targets[0] += (
            groups["size"].sum() - targets.sum()
        )  # rounding goes to the largest part
        targets -= (
            groups.groupby("part")["size"]
            .sum()
            .reindex(list(SPLITS), fill_value=0)
            .to_numpy(float)
        )
        fresh = groups[groups["part"].isna()]
        shuffled = fresh.iloc[generator.permutation(len(fresh))].sort_values(
            "size", ascending=False, kind="stable"
        )
        members.loc[shuffled.index, "part"] = _fill(
            shuffled["size"].to_numpy(), targets, generator
        )
    return old.fillna(group.map(members["part"])).astype(str)


def _fill(
    sizes: np.ndarray, targets: np.ndarray, generator: np.random.Generator
) -> list[str]:
    """A part for each group, `sizes` descending: at random, in proportion to what each part still lacks."""
    names, chosen = list(SPLITS), []
    for size in sizes:
        lacking = np.where(targets >= size, targets, 0)
        weights = lacking if lacking.any() else np.maximum(targets, 0) + 1e-9
        part = generator.choice(len(names), p=weights / weights.sum())
        targets[part] -= size
        chosen.append(names[part])
    return chosen
