"""The catalogue as a tidy table: where it lies, its rows, the six classes, duplicates, and the split.

    source = catalogue.open_source("fashion-product-images-small.zip")   # or a folder; a zip is read in place
    table, malformed = catalogue.read_styles(source)
    table["label"] = catalogue.labels(table)

`styles.csv` is not valid CSV: product names carry unquoted commas. pandas' `on_bad_lines="skip"` would lose 22
products of the real catalogue; splitting each line on its first nine commas loses none.
"""

from __future__ import annotations

import functools
import hashlib
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from fashionlib import runtime
from fashionlib.runtime import InputError

COLUMNS = (
    *("id", "gender", "masterCategory", "subCategory", "articleType"),
    *("baseColour", "season", "year", "usage", "productDisplayName"),
)
GENDERS = ("Men", "Women")
CATEGORIES = ("Accessories", "Apparel", "Other")  # "Other": every remaining masterCategory
CLASS_NAMES = tuple(f"{gender}/{category}" for category in CATEGORIES for gender in GENDERS)
SPLITS = {"train": 0.75, "validation": 0.10, "test": 0.15}
KAGGLE = {
    "kaggle-small": "paramaggarwal/fashion-product-images-small",
    "kaggle-full": "paramaggarwal/fashion-product-images-dataset",
}


@dataclass(frozen=True)
class Source:
    """A catalogue in a folder or in a zip: `read(name)` gives the bytes of a member, relative to the root.

    Taught in: chapter 1.
    """

    path: Path
    root: str  # the shallowest folder that holds styles.csv and images/, "" or ending in "/"
    sizes: dict[str, int] = field(repr=False)  # member below the root: bytes
    ignored_copies: int  # nested identical catalogues, as Kaggle's archives have them

    def read(self, name: str) -> bytes:
        """Bytes of a member. Raises OSError where it cannot be read, a damaged or encrypted zip entry included."""
        if self.path.is_dir():
            return (self.path / self.root / name).read_bytes()
        try:
            return _archive(self.path).read(self.root + name)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
            raise OSError(f"damaged entry in {self.path.name}: {error}") from error

    def members(self, folder: str, suffix: str) -> dict[int, str]:
        """Product id -> member, for `<folder>/<id><suffix>`."""
        paths = (PurePosixPath(name) for name in self.sizes)
        found = (path for path in paths if path.suffix.lower() == suffix and str(path.parent) == folder)
        return {int(path.stem): str(path) for path in found if path.stem.isdecimal()}

    def fingerprint(self) -> str:
        """SHA-256 over styles.csv and the names, sizes and times of all members: changes with the source."""
        digest = hashlib.sha256(self.read("styles.csv"))
        if self.path.is_dir():
            base = self.path / self.root
            stamps = {name: (base / name).stat().st_mtime_ns for name in self.sizes}
        else:
            stamps = {name: _archive(self.path).getinfo(self.root + name).CRC for name in self.sizes}
        digest.update(repr(sorted((name, size, stamps[name]) for name, size in self.sizes.items())).encode())
        return digest.hexdigest()


def _archive(path: Path) -> zipfile.ZipFile:
    """One open archive per process: its directory of 90,000 entries is parsed once; reading is thread-safe."""
    status = path.stat()
    return _open_archive(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _open_archive(path: Path, changed: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)  # `changed` and `size` are the key: a zip that was replaced is opened again


def open_source(source: str | Path) -> Source:
    """Find the catalogue at `source`: a folder, Kaggle's zip, `kaggle-small` or `kaggle-full` (downloaded into data/).

    Raises InputError where there is none, for a corrupt zip, and for an entry that points outside of its zip.
    Taught in: chapter 1.
    """
    path = _download(source) if source in KAGGLE else Path(source).expanduser().resolve()
    if path.is_dir():
        sizes = {str(p.relative_to(path).as_posix()): p.stat().st_size for p in path.rglob("*") if p.is_file()}
    elif path.is_file():
        sizes = _zip_members(path)
    else:
        raise InputError(
            f"source {str(source)!r} does not exist: give a folder or zip with styles.csv and images/, or one of "
            f"synthetic, {', '.join(KAGGLE)}."
        )
    return _locate(path, sizes)


def _zip_members(path: Path) -> dict[str, int]:
    """Members and sizes of a zip; refuses entries that would leave it (nothing is ever unpacked, all the same)."""
    try:
        entries = _archive(path).infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"source {path} is not a readable zip ({error}): download or copy it again.") from error
    for entry in entries:
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or stat.S_ISLNK(entry.external_attr >> 16):
            raise InputError(
                f"source {path} has an entry that points outside of it: {entry.filename!r}. Do not use it."
            )
    return {entry.filename: entry.file_size for entry in entries if not entry.is_dir()}


def _locate(path: Path, sizes: dict[str, int]) -> Source:
    """The shallowest folder with styles.csv and images/; deeper ones are copies, ignored and counted."""
    folders = {name.rsplit("images/", 1)[0] for name in sizes if "images/" in name}
    tables = {name[: -len("styles.csv")] for name in sizes if PurePosixPath(name).name == "styles.csv"}
    roots = sorted(folders & tables, key=lambda root: (root.count("/"), root))
    if not roots:
        raise InputError(
            f"source {path} is no catalogue: expected styles.csv beside a folder images/, found neither pair."
        )
    root = roots[0]
    inside = {name[len(root) :]: size for name, size in sizes.items() if name.startswith(root)}
    own = {name: size for name, size in inside.items() if name.split("/")[0] in ("styles.csv", "images", "masks")}
    return Source(path, root, own, ignored_copies=len(roots) - 1)


def _download(name: str) -> Path:
    """Kaggle's edition below data/, downloaded once with kagglehub."""
    import kagglehub

    target = runtime.project_root() / "data" / name
    if (target / ".complete").exists():
        return target
    try:
        kagglehub.dataset_download(KAGGLE[name], output_dir=str(target), force_download=True)
    except Exception as error:  # kagglehub passes on errors of requests, of its client and of zipfile
        raise InputError(
            f"{name} could not be downloaded ({type(error).__name__}). Check the network and ~/.kaggle/access_token, "
            f"or download https://www.kaggle.com/datasets/{KAGGLE[name]} by hand and pass the zip: SOURCE=path/to.zip"
        ) from error
    (target / ".complete").touch()
    return target


def check_source(source: str) -> tuple[str, str]:
    """The source as an absolute path (a name stays a name), and a comment with its fingerprint for make's stamp.

    Raises InputError as `open_source` and `read_styles` do; a Kaggle name is not downloaded yet.
    """
    if source == "synthetic" or source in KAGGLE:
        return source, ""
    opened = open_source(source)
    read_styles(opened)
    return str(opened.path), f"# source: {opened.fingerprint()}\n"


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
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error}): download or copy it again.") from error
    lines = text.replace("\r\n", "\n").split("\n")  # splitlines() would also cut a name at U+2028 or U+0085
    header = lines[0].split(",")
    if tuple(header) != COLUMNS:
        raise InputError(f"{where}: expected the columns {', '.join(COLUMNS)}; found {', '.join(header) or 'none'}.")
    rows = [line.split(",", len(COLUMNS) - 1) for line in lines[1:] if line.strip()]
    short = next((row for row in rows if len(row) < len(COLUMNS) or not row[0].isdecimal()), None)
    if short is not None:
        raise InputError(
            f"{where}: expected {len(COLUMNS)} fields that begin with a number, found {','.join(short)!r}."
        )
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"id": "int64"})
    table["year"] = pd.to_numeric(table["year"].where(table["year"].str.fullmatch(r"\d{4}(\.0+)?"))).astype("Int16")
    if table["id"].duplicated().any():
        raise InputError(
            f"{where}: id {table.loc[table['id'].duplicated(), 'id'].iloc[0]} comes twice; ids must be unique."
        )
    quoted = table["productDisplayName"].str.fullmatch(r'".*"', flags=re.DOTALL)
    malformed = int((table["productDisplayName"].str.contains(",") & ~quoted).sum())
    table.loc[quoted, "productDisplayName"] = table["productDisplayName"].str[1:-1].str.replace('""', '"')
    return table, malformed


def labels(table: pd.DataFrame) -> pd.Series:
    """Class 0-5 of each row (order of CLASS_NAMES), -1 for other genders. Taught in: chapter 1."""
    gender = table["gender"].map({name: i for i, name in enumerate(GENDERS)})
    category = table["masterCategory"].map({"Accessories": 0, "Apparel": 1}).fillna(2)
    return (2 * category + gender).fillna(-1).astype("int8")


def duplicate_groups(ids: pd.Series, digests: pd.Series) -> pd.Series:
    """For each product the smallest id with the same pixels (its own where it has no twin). Taught in: chapter 1."""
    return ids.groupby(digests.to_numpy()).transform("min")


def label_conflicts(index: pd.DataFrame) -> int:
    """How many duplicate groups carry more than one class: a floor for any error rate.

    Taught in: chapter 1.
    """
    return int((index.groupby("group")["label"].nunique() > 1).sum())


def split(label: pd.Series, group: pd.Series, *, seed: int = 0) -> pd.Series:
    """`train`, `validation` or `test` for each product, 75 : 10 : 15 within each class, groups kept together.

    label: class of each product; group: `duplicate_groups`. A group counts for the class of its first member.
    Within a class the larger groups are placed first, each where most products are missing; products without a twin
    then fill the parts exactly. Taught in: chapter 1.
    """
    generator = np.random.default_rng(seed)
    members = pd.DataFrame({"group": group, "label": label}).groupby("group")["label"].agg(["first", "size"])
    parts = pd.Series("", index=members.index)
    for _, groups in members.groupby("first"):
        shuffled = groups.iloc[generator.permutation(len(groups))].sort_values("size", ascending=False, kind="stable")
        parts[shuffled.index] = _fill(shuffled["size"].to_numpy(), generator)
    return group.map(parts)


def _fill(sizes: np.ndarray, generator: np.random.Generator) -> list[str]:
    """A part for each group, `sizes` descending: at random, in proportion to what each part still lacks."""
    names, shares = list(SPLITS), np.array(list(SPLITS.values()))
    targets = np.floor(shares * sizes.sum() + 0.5)
    targets[0] += sizes.sum() - targets.sum()  # rounding goes to the largest part
    chosen = []
    for size in sizes:
        lacking = np.where(targets >= size, targets, 0)
        weights = lacking if lacking.any() else np.maximum(targets, 0) + 1e-9
        part = generator.choice(len(names), p=weights / weights.sum())
        targets[part] -= size
        chosen.append(names[part])
    return chosen
