"""Where a catalogue lies: a folder, a zip that is read in place, or Kaggle's editions, downloaded into data/.

    source = sources.open_source("fashion-product-images-small.zip")   # or a folder, "kaggle-small", "kaggle-full"
    source.read("images/1163.jpg")                                     # bytes of a member

Nothing is ever unpacked. A zip is refused as a whole where an entry points outside of it or claims an absurd size.
"""

from __future__ import annotations

import functools
import hashlib
import lzma
import os
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from fashionlib import runtime
from fashionlib.runtime import InputError

KAGGLE = {  # with the version: what is on disk is then found without a network
    "kaggle-small": "paramaggarwal/fashion-product-images-small/versions/1",
    "kaggle-full": "paramaggarwal/fashion-product-images-dataset/versions/1",
}
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,
    RuntimeError,
    OverflowError,
)  # encrypted: RuntimeError
MAX_MEMBER = 2**28  # bytes: a member of a zip that claims more is no product picture


@dataclass(frozen=True)
class Source:
    """A catalogue in a folder or in a zip: `read(name)` gives the bytes of a member, relative to the root.

    Taught in: chapter 1.
    """

    path: Path
    root: str  # the shallowest folder that holds styles.csv and images/, "" or ending in "/"
    files: dict[str, tuple[int, int]] = field(
        repr=False
    )  # member below the root: bytes, and time or CRC
    ignored_copies: int  # nested identical catalogues, as Kaggle's archives have them

    def read(self, name: str) -> bytes:
        """Bytes of a member.

        Raises ValueError for a member that is at fault itself (a damaged or encrypted zip entry, an absurd size), and
        OSError where the source cannot be read.
        """
        if self.path.is_dir():
            path = self.path / self.root / name
            if (size := path.stat().st_size) > MAX_MEMBER:
                raise ValueError(
                    f"{name} has {size:,} bytes; no product picture has more than {MAX_MEMBER:,}"
                )
            return path.read_bytes()
        try:
            archive = _archive(self.path)
            entry = archive.getinfo(self.root + name)
            with archive.open(entry) as file:
                return file.read(
                    entry.file_size
                )  # no more than it claims, whatever is inside
        except DAMAGED as error:
            raise ValueError(f"damaged entry in {self.path.name}: {error}") from error
        except OSError as error:
            if error.errno is None:  # bz2's word for damaged data
                raise ValueError(
                    f"damaged entry in {self.path.name}: {error}"
                ) from error
            raise

    def reader(self) -> Source:
        """The same source without its table of members: light enough to travel to a worker with every task."""
        return replace(self, files={})

    def members(self, folder: str, suffix: str) -> dict[int, str]:
        """Product id -> member, for `<folder>/<id><suffix>`; an id has no leading zeros."""
        pattern = re.compile(
            rf"{re.escape(folder)}/(0|[1-9][0-9]{{0,17}})(?i:{re.escape(suffix)})"
        )
        found = map(pattern.fullmatch, sorted(self.files))
        return {int(match[1]): match[0] for match in found if match}

    def fingerprint(self) -> str:
        """SHA-256 over styles.csv and the names, sizes and times of all members: changes with the source.

        Raises InputError where the source cannot be read.
        """
        try:
            digest = hashlib.sha256(self.read("styles.csv"))
        except (OSError, ValueError) as error:
            raise unreadable(self.path, error) from error
        digest.update(repr(sorted(self.files.items())).encode())
        return digest.hexdigest()


def unreadable(path: Path, error: Exception) -> InputError:
    """The error for a source that cannot be read, or no longer.

    Taught in: chapter 1.
    """
    return InputError(
        f"source {path} cannot be read ({error}): check that it is there, whole, and yours to read."
    )


def _archive(path: Path) -> zipfile.ZipFile:
    """One open archive per process: its directory of 90,000 entries is parsed once; reading is thread-safe."""
    status = path.stat()
    return _open_archive(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _open_archive(path: Path, changed: int, size: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(
        path
    )  # `changed` and `size` are the key: a zip that was replaced is opened again


def open_source(source: str | Path) -> Source:
    """Find the catalogue at `source`: a folder, Kaggle's zip, `kaggle-small` or `kaggle-full` (downloaded into data/).

    Raises InputError where there is none, for a corrupt zip, and for an entry that points outside of its zip.
    Taught in: chapter 1.
    """
    path = (
        _download(source) if source in KAGGLE else Path(source).expanduser().resolve()
    )
    try:
        if not path.exists():
            raise InputError(
                f"source {str(source)!r} does not exist: give a folder or zip with styles.csv and images/, or one of "
                f"synthetic, {', '.join(KAGGLE)}."
            )
        return _locate(
            path, _folder_members(path) if path.is_dir() else _zip_members(path)
        )
    except OSError as error:
        raise unreadable(path, error) from error


def _folder_members(path: Path, prefix: str = "") -> dict[str, tuple[int, int]]:
    """Files of a folder, with sizes and times; a part of it that is closed to us is an error, not an empty part."""
    members = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                members |= _folder_members(entry.path, f"{prefix}{entry.name}/")
            elif stat.S_ISREG(
                (status := entry.stat()).st_mode
            ):  # a link to nowhere is an error, too
                members[prefix + entry.name] = (status.st_size, status.st_mtime_ns)
    return members


def _zip_members(path: Path) -> dict[str, tuple[int, int]]:
    """Members of a zip, with sizes and checksums. Refuses entries that would leave it, though nothing is unpacked."""
    try:
        entries = _archive(path).infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise InputError(
            f"source {path} is not a readable zip ({error}): download or copy it again."
        ) from error
    for entry in entries:
        if entry.file_size > MAX_MEMBER:
            raise InputError(
                f"source {path} has an entry of {entry.file_size:,} bytes: {entry.filename!r}. No product picture is "
                f"larger than {MAX_MEMBER:,}. Do not use it."
            )
        parts = PurePosixPath(entry.filename.replace("\\", "/"))
        if (
            parts.is_absolute()
            or ".." in parts.parts
            or stat.S_ISLNK(entry.external_attr >> 16)
        ):
            raise InputError(
                f"source {path} has an entry that points outside of it: {entry.filename!r}. Do not use it."
            )
    return {
        entry.filename: (entry.file_size, entry.CRC)
        for entry in entries
        if not entry.is_dir()
    }


def _locate(path: Path, files: dict[str, tuple[int, int]]) -> Source:
    """The shallowest folder with styles.csv and images/; deeper ones are copies, ignored and counted."""
    folders = {name.rsplit("images/", 1)[0] for name in files if "images/" in name}
    tables = {
        name[: -len("styles.csv")]
        for name in files
        if name.rpartition("/")[2] == "styles.csv"
    }
    roots = sorted(folders & tables, key=lambda root: (root.count("/"), root))
    if not roots:
        raise InputError(
            f"source {path} is no catalogue: expected styles.csv beside a folder images/, found neither pair."
        )
    root = roots[0]
    if others := [other for other in roots if not other.startswith(root)]:
        found = ", ".join(repr(each or ".") for each in [root, *others])
        raise InputError(
            f"source {path} holds several catalogues, in {found}: give the path of one."
        )
    inside = {
        name[len(root) :]: facts
        for name, facts in files.items()
        if name.startswith(root)
    }
    own = {
        name: facts
        for name, facts in inside.items()
        if name.split("/")[0] in ("styles.csv", "images", "masks")
    }
    return Source(path, root, own, ignored_copies=len(roots) - 1)


def _download(name: str) -> Path:
    """Kaggle's edition below data/ (or where KAGGLEHUB_CACHE says), downloaded once; kagglehub resumes and unpacks."""
    import kagglehub

    os.environ.setdefault("KAGGLEHUB_CACHE", str(runtime.project_root() / "data"))
    try:
        return Path(kagglehub.dataset_download(KAGGLE[name]))
    except (
        Exception
    ) as error:  # kagglehub passes on errors of requests, of its client and of zipfile
        page = f"https://www.kaggle.com/datasets/{KAGGLE[name].removesuffix('/versions/1')}"
        raise InputError(
            f"{name} could not be downloaded: {_reason(error)}. "
            f"Or download {page} by hand and pass the zip: SOURCE=path/to/archive.zip"
        ) from error


def _reason(error: Exception) -> str:
    """What went wrong with a download and what to do, in a few words."""
    import requests

    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"Kaggle answers {status}; put a valid token (kaggle.com, Settings, API) into ~/.kaggle/access_token"
    if isinstance(error, requests.ConnectionError | requests.Timeout):
        return "Kaggle cannot be reached; check the network"
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
