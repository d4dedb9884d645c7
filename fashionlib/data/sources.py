"""Where a catalogue lies: a folder, a zip read in place, or Kaggle's editions.

    source = sources.open_source("fashion-product-images-small.zip")
    source.read("images/1163.jpg")      # bytes of a member, below the catalogue's root
    source.members("images", ".jpg")    # {1163: "images/1163.jpg", ...}

`open_source` also takes a folder, or `kaggle-small` and `kaggle-full`, which are
downloaded into data/. Nothing is ever unpacked. A zip is refused as a whole where an
entry points outside of it, is encrypted, comes twice or claims an absurd size.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import lzma
import os
import re
import stat
import struct
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
MAX_BYTES = 2**28  # of one member; what claims more is no product image
DEPTH = 5  # folders below a source that are searched; Kaggle's nest three
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError)
# RuntimeError: an encrypted entry, an unknown way of packing
DAMAGED += (RuntimeError, OverflowError, struct.error)
Members = dict[str, tuple[int, int]]  # name: bytes, and time (folder) or CRC (zip)


@dataclass(frozen=True)
class Source:
    """A catalogue in a folder or a zip; `read(name)` gives the bytes of a member.

    Taught in: chapter 1
    """

    path: Path
    root: str  # where styles.csv and images/ are: "", or a folder with "/" at its end
    files: Members = field(repr=False)  # named from the root
    ignored_copies: int  # nested identical catalogues, as Kaggle's archives have them

    def read(self, name: str) -> bytes:
        """Bytes of a member.

        Raises ValueError for a member that is at fault itself (a damaged zip entry, a
        link to nowhere, a pipe, an absurd size), InputError where the source cannot be
        read.
        """
        try:
            if self.path.is_dir():
                return read_file(self.path / self.root / name)
            archive = _archive(self.path)
            entry = archive.getinfo(self.root + name)
            with archive.open(entry) as file:
                return file.read(entry.file_size)  # whatever is inside, no more than it
        except (*DAMAGED, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(self.path, error) from error
            # an OSError without a number is bz2's word for damaged data
            message = f"damaged entry in {self.path.name}: {error}"
            raise ValueError(message) from error

    def reader(self) -> Source:
        """The same source without its table of members: light enough for a message."""
        return replace(self, files={})

    def members(self, folder: str, suffix: str) -> dict[int, str]:
        """Product id -> member, for `<folder>/<id><suffix>`, id without leading zeros.

        The case of the suffix does not matter. Raises InputError for two of one id.
        """
        named = rf"{re.escape(folder)}/(0|[1-9]\d{{0,17}})(?i:{re.escape(suffix)})"
        pattern = re.compile(named, re.ASCII)
        found = [*filter(None, map(pattern.fullmatch, sorted(self.files)))]
        members = {int(match[1]): match[0] for match in found}
        if len(members) < len(found):
            raise InputError(
                f"source {self.path} has two files of one id in {folder}/, like 7.jpg "
                "and 7.JPG: keep one."
            )
        return members

    def fingerprint(self) -> str:
        """SHA-256 of styles.csv and of the names, sizes and times of all members.

        Raises InputError where the source cannot be read.
        """
        try:
            digest = hashlib.sha256(self.read("styles.csv"))
        except ValueError as error:
            raise unreadable(self.path, error) from error
        digest.update(repr(sorted(self.files.items())).encode())
        return digest.hexdigest()


def unreadable(path: str | Path, error: Exception) -> InputError:
    """The error for a source that cannot be read, or no longer.

    Taught in: chapter 1
    """
    return InputError(
        f"source {path!s:.300} cannot be read ({error!s:.300}): "
        "check that it is there, whole, and yours to read."
    )


def open_source(source: str | Path) -> Source:
    """Find the catalogue at `source`: a folder, a zip, `kaggle-small`, `kaggle-full`.

    Raises InputError where there is none or several, and for a zip that is corrupt or
    has an entry to keep away from.
    Taught in: chapter 1
    """
    try:
        path = _download(source) if source in tuple(KAGGLE) else _place(source)
        files = _zip_members(path) if path.is_file() else _folder_members(path)
    except OSError as error:
        raise unreadable(source, error) from error
    return _locate(path, files)


def _place(source: str | Path) -> Path:
    """A folder or an ordinary file: to open a pipe or a device would never end."""
    there = False
    with contextlib.suppress(TypeError, ValueError, RuntimeError):  # None, \0, ~nobody
        path = Path(source).expanduser().resolve()
        there = str(source).strip() and (path.is_dir() or path.is_file())
    if there:
        return path
    raise InputError(
        f"source {str(source)!r:.300} does not exist: give a folder or zip with "
        f"styles.csv and images/, or one of synthetic, {', '.join(KAGGLE)}."
    )


def _locate(path: Path, files: Members) -> Source:
    """The shallowest folder with styles.csv and images/; deeper ones are copies."""
    found = filter(None, map(re.compile("(.*/)?images/").match, files))
    folders = {match[1] or "" for match in found}
    with_table = [root for root in folders if f"{root}styles.csv" in files]
    roots = sorted(with_table, key=lambda root: (root.count("/"), root))
    if not roots:
        raise InputError(
            f"source {path} is no catalogue: expected styles.csv beside a folder "
            "images/, found neither pair."
        )
    root = roots[0]
    others = [other for other in roots if not other.startswith(root)]
    if others:
        found = ", ".join(repr(each or ".") for each in [root, *others])
        raise InputError(
            f"source {path} holds several catalogues, in {found}: give the path of one."
        )
    own = re.compile(re.escape(root) + "(styles.csv$|images/|masks/)")
    inside = {name[len(root) :]: files[name] for name in files if own.match(name)}
    return Source(path, root, inside, ignored_copies=len(roots) - 1)


# --- folders --------------------------------------------------------------------------


def _folder_members(folder: Path, prefix: str = "", above: tuple = ()) -> Members:
    """Files of a folder; what is closed to us below it is an error, not empty.

    above: the folders that it lies in; a link back to one of them is not followed.
    """
    status = folder.stat()
    here, members = (status.st_dev, status.st_ino), {}
    if here in above or len(above) > DEPTH:
        return members
    for path in folder.iterdir():
        # a link to nowhere is a member, too: to read it will say so
        status = path.stat() if path.exists() else path.lstat()
        if stat.S_ISDIR(status.st_mode):
            members |= _folder_members(path, f"{prefix}{path.name}/", (*above, here))
        else:
            members[prefix + path.name] = (status.st_size, status.st_mtime_ns)
    return members


def read_file(path: Path) -> bytes:
    """Bytes of a file; a pipe or a device would never end.

    Raises ValueError for one of these and for an absurd size, OSError as the system.
    Taught in: chapter 1
    """
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path.name} is no ordinary file, or a link to nowhere")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(
            f"{path.name} has {size:,} bytes; no product image has over {MAX_BYTES:,}"
        )
    return path.read_bytes()


# --- zips -----------------------------------------------------------------------------


def _archive(path: Path) -> zipfile.ZipFile:
    """One open archive per process: to read its 90,000 entries takes a second."""
    status = path.stat()
    return _open_archive(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _open_archive(path: Path, changed: int, size: int) -> zipfile.ZipFile:
    """`changed` and `size` are the key: a zip that was replaced is opened again."""
    return zipfile.ZipFile(path)  # reading from it is thread-safe


def _zip_members(path: Path) -> Members:
    """Files of a zip; one with an entry that would leave it is refused."""
    try:
        entries = _archive(path).infolist()
    except (*DAMAGED, ValueError) as error:
        raise InputError(
            f"source {path} is not a readable zip ({error}): download or copy it again."
        ) from error
    members = {}
    for entry in entries:
        fault = _fault(entry)
        if entry.filename in members:
            fault = "comes twice: which one counts, nobody knows"
        if fault:
            raise InputError(
                f"source {path} has an entry that {fault}: {entry.filename!r:.200}."
            )
        if not entry.is_dir():
            members[entry.filename] = (entry.file_size, entry.CRC)
    return members


def _fault(entry: zipfile.ZipInfo) -> str | None:
    """What makes a zip with this entry one to keep away from."""
    if entry.file_size > MAX_BYTES:
        return f"claims {entry.file_size:,} bytes, where {MAX_BYTES:,} are many"
    if entry.flag_bits & 1:
        return "is encrypted, so give the unpacked folder instead"
    place = PurePosixPath(entry.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(entry.external_attr >> 16)
    if place.is_absolute() or ".." in place.parts or is_link:
        return "points outside of it, so do not use it"
    return None


# --- Kaggle ---------------------------------------------------------------------------


def _download(name: str) -> Path:
    """Kaggle's edition in data/ (or where KAGGLEHUB_CACHE says), downloaded once."""
    import kagglehub

    os.environ.setdefault("KAGGLEHUB_CACHE", str(runtime.project_root() / "data"))
    try:
        return Path(kagglehub.dataset_download(KAGGLE[name]))
    except Exception as error:  # of requests, of Kaggle's client, of zipfile
        page = KAGGLE[name].removesuffix("/versions/1")
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(
            f"{name} could not be downloaded ({type(error).__name__}: {reason:.200}): "
            "check the network, and the token in ~/.kaggle/access_token (kaggle.com, "
            f"Settings, API). Or download https://www.kaggle.com/datasets/{page} by "
            "hand and pass the zip: SOURCE=path/to/archive.zip"
        ) from error
