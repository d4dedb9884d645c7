"""The catalogue as a tidy table: its rows, the six classes, and the split.

    source = sources.open_source("fashion-product-images-small.zip")
    table, malformed = catalogue.read_styles(source)
    table["label"] = catalogue.labels(table)

`styles.csv` is not valid CSV: product names carry unquoted commas. pandas'
`on_bad_lines="skip"` would lose 22 products of the real catalogue; splitting each line
on its first nine commas loses none.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from fashionlib.runtime import InputError

COLUMNS = (
    *("id", "gender", "masterCategory", "subCategory", "articleType"),
    *("baseColour", "season", "year", "usage", "productDisplayName"),
)
GENDERS = ("Men", "Women")
CATEGORIES = ("Accessories", "Apparel", "Other")  # Other: every remaining category
CLASS_NAMES = tuple(f"{gender}/{name}" for name in CATEGORIES for gender in GENDERS)
SPLITS = {"train": 0.75, "validation": 0.10, "test": 0.15}


def read_styles(source) -> tuple[pd.DataFrame, int]:
    """The rows of styles.csv, and how many carry unquoted commas in the product name.

    source: a `data.sources.Source`. Columns are COLUMNS: `id` int64, `year` Int16
    (missing allowed), the others strings. A name in proper CSV quotes, as a spreadsheet
    writes it, is unquoted and not malformed.
    Raises InputError for a file that cannot be read, for missing columns, for a row of
    fewer than ten fields, and for an id that comes twice.
    Taught in: chapter 1
    """
    where = f"styles.csv of {source.path}"
    try:
        text = source.read("styles.csv").decode("utf-8-sig", errors="replace")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where} cannot be read ({error}): download or copy it again."
        ) from error
    # splitlines() would also cut a name at U+2028 or U+0085
    lines = text.replace("\r\n", "\n").split("\n")
    header = tuple(lines[0].split(","))
    if header != COLUMNS:
        raise InputError(
            f"{where}: expected the columns {', '.join(COLUMNS)}; "
            f"found {', '.join(header) or 'none'}."
        )
    rows = [line.split(",", len(COLUMNS) - 1) for line in lines[1:] if line.strip()]
    for row in rows:
        if len(row) < len(COLUMNS) or not re.fullmatch(r"\d{1,18}", row[0]):
            raise InputError(
                f"{where}: expected {len(COLUMNS)} fields that begin with a number, "
                f"found {','.join(row)!r:.200}."
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"id": "int64"})
    if table["id"].duplicated().any():
        twice = table.loc[table["id"].duplicated(), "id"].iloc[0]
        raise InputError(f"{where}: id {twice} comes twice; ids must be unique.")
    is_year = table["year"].str.fullmatch(r"\d{4}(\.0+)?")
    table["year"] = pd.to_numeric(table["year"].where(is_year)).astype("Int16")
    name = table["productDisplayName"]
    quoted = name.str.fullmatch(r'"(?:[^"]|"")*"')
    malformed = int((name.str.contains(",") & ~quoted).sum())
    unquoted = name.str[1:-1].str.replace('""', '"')
    table["productDisplayName"] = name.where(~quoted, unquoted)
    return table, malformed


def labels(table: pd.DataFrame) -> pd.Series:
    """Class 0 to 5 of each row (order of CLASS_NAMES), -1 for other genders: int8.

    Taught in: chapter 1
    """
    gender = table["gender"].map({name: i for i, name in enumerate(GENDERS)})
    category = table["masterCategory"].map({"Accessories": 0, "Apparel": 1}).fillna(2)
    return (2 * category + gender).fillna(-1).astype("int8")


def split(label: pd.Series, group: pd.Series, *, seed: int = 0) -> pd.Series:
    """`train`, `validation` or `test` for each product, 75 : 10 : 15 in each class.

    label: class of each product; group: `duplicates.groups`, whose members stay
    together; a group counts for the class of its first member. Within a class the
    larger groups are placed first, each at random in proportion to what the sets still
    lack; products without a twin then fill the sets exactly.
    Taught in: chapter 1
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"group": group, "label": label})
    members = table.groupby("group")["label"].agg(label="first", size="size")
    members["split"] = ""
    for _, groups in members.groupby("label"):
        count = groups["size"].sum()
        targets = np.floor(np.array(list(SPLITS.values())) * count + 0.5)
        targets[0] += count - targets.sum()  # rounding goes to the largest set
        shuffled = groups.iloc[rng.permutation(len(groups))]
        shuffled = shuffled.sort_values("size", ascending=False, kind="stable")
        chosen = _fill(shuffled["size"].to_numpy(), targets, rng)
        members.loc[shuffled.index, "split"] = chosen
    return group.map(members["split"]).astype(str)


def _fill(
    sizes: np.ndarray, targets: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """A set for each group, `sizes` descending, in proportion to what each lacks."""
    names, chosen = list(SPLITS), []
    for size in sizes:
        lacking = np.where(targets >= size, targets, 0)
        weights = lacking if lacking.any() else np.maximum(targets, 0) + 1e-9
        index = rng.choice(len(names), p=weights / weights.sum())
        targets[index] -= size
        chosen.append(names[index])
    return chosen
