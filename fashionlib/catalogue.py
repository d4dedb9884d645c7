"""The catalogue as a tidy table: its rows, the six classes, and the split.

    source = sources.open_source("fashion-product-images-small.zip")
    table, malformed = catalogue.read_styles(source)
    table["label"] = catalogue.labels(table)

`styles.csv` is not valid CSV: product names carry unquoted commas. pandas'
`on_bad_lines="skip"` would lose 22 products of the real catalogue; splitting each line
on its first nine commas loses none.
"""

from __future__ import annotations

import difflib
import re
import unicodedata

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
QUOTED = r'"(?:[^"]|"")*"'  # a field as a spreadsheet writes it
FIELD = rf'((?:[^",][^,]*)?|{QUOTED})'
ROW = re.compile(",".join([FIELD] * (len(COLUMNS) - 1) + ["(.*)"]), re.DOTALL)
YEAR = r"[0-9]{4}(\.0+)?"
SPLITS = {"train": 0.75, "validation": 0.10, "test": 0.15}


def read_lines(source) -> list[str]:
    """The lines of styles.csv: its header, then one for each row; blank ones left out.

    source: a `data.sources.Source`. Lines may end as on any system; what is not UTF-8
    becomes the character U+FFFD.
    Raises InputError for a file that cannot be read.
    Taught in: chapter 1
    """
    try:
        text = source.read("styles.csv").decode("utf-8-sig", errors="replace")
    except ValueError as error:
        raise InputError(
            f"styles.csv of {source.path} cannot be read ({error}): download, copy or "
            "pack it again."
        ) from error
    # splitlines() would also cut a name at U+2028 or U+0085
    return [line for line in re.split(r"[\r\n]", text) if line.strip()]


def read_styles(source) -> tuple[pd.DataFrame, int]:
    """The rows of styles.csv, and how many carry unquoted commas in the product name.

    source: a `data.sources.Source`. Columns are COLUMNS: `id` int64, `year` Int16
    (missing allowed), the others strings. A field in proper CSV quotes, as a
    spreadsheet writes it, is unquoted and not malformed.
    Raises InputError for a file that cannot be read, for other columns, for a row of
    fewer than ten fields or with an unquoted comma before the year, for an id that
    comes twice, and for a gender or category that differs from ours in its spelling
    only: it would silently count as another one. A comma in `usage` looks like one in
    the name and counts as that.
    Taught in: chapter 1
    """
    where = f"styles.csv of {source.path}"
    first, *others = read_lines(source) or [""]
    expected, header = ", ".join(COLUMNS), ", ".join(map(_unquoted, _fields(first)))
    if header != expected:
        found = header or "none"
        raise InputError(f"{where}: expected the columns {expected}; found {found}.")
    rows = [_fields(line) for line in others]
    for line, row in zip(others, rows, strict=True):
        if len(row) < len(COLUMNS) or not re.fullmatch(r"[0-9]{1,18}", row[0]):
            raise InputError(
                f"{where}: expected 10 fields that begin with a number: {line!r:.200}."
            )
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"id": "int64"})
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise InputError(f"{where}: id {twice.iloc[0]} comes twice: give each its own.")
    _check_spelling(where, table["gender"], GENDERS)
    _check_spelling(where, table["masterCategory"], CATEGORIES[:2])
    name, year = table["productDisplayName"], table["year"]
    is_year = year.str.fullmatch(YEAR)
    has_commas = name.str.contains(",") & ~name.str.fullmatch(QUOTED)
    has_year = is_year | (year.isin(["", "NA"]) & ~table["usage"].str.fullmatch(YEAR))
    shifted = table["id"][has_commas & ~has_year]
    if len(shifted):
        raise InputError(
            f"{where}: the row of id {shifted.iloc[0]} has a comma in one of its first "
            "nine fields: put that field in quotes."
        )
    table["year"] = pd.to_numeric(year.where(is_year)).astype("Int16")
    table["productDisplayName"] = name.map(_unquoted)
    return table, int(has_commas.sum())


def _fields(line: str) -> list[str]:
    """A line cut at its first nine commas, but not at those within quotes.

    The first nine fields are unquoted. Fewer than ten where a quote is never closed.
    """
    if '"' not in line:
        return line.split(",", len(COLUMNS) - 1)
    row = ROW.fullmatch(line)
    return [*map(_unquoted, row.groups()[:-1]), row[len(COLUMNS)]] if row else [line]


def _unquoted(field: str) -> str:
    quoted = re.fullmatch(QUOTED, field)
    return field[1:-1].replace('""', '"') if quoted else field


def _check_spelling(where: str, column: pd.Series, words: tuple[str, ...]) -> None:
    """Refuse `men`, ` Men` or `Mens` for Men, and what is not UTF-8."""
    meant = {word.casefold(): word for word in words}
    for value in column.unique():
        letters = re.sub(r"\W", "", unicodedata.normalize("NFKC", value)).casefold()
        near = difflib.get_close_matches(letters, meant, n=1, cutoff=0.8)
        if (near and meant[near[0]] != value) or "\N{REPLACEMENT CHARACTER}" in value:
            raise InputError(
                f"{where}: {column.name} {value!r:.60} is neither exactly one of "
                f"{', '.join(words)} nor clearly another one: correct it, in UTF-8."
            )


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
