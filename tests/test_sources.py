"""Folders, zips with their traps, and the downloader against a local server."""

import contextlib
import http.server
import os
import pickle
import shutil
import stat
import tempfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import csv_line, ordinary_user, solid, write_catalogue

from fashionlib import catalogue
from fashionlib.data import sources
from fashionlib.runtime import InputError

HEADER = ",".join(catalogue.COLUMNS)


def write_zip(path, members: dict[str, bytes | str]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members_of(*roots: str) -> dict[str, bytes | str]:
    """A catalogue with one product below each root."""
    members = {}
    for root in roots:
        members[f"{root}styles.csv"] = f"{HEADER}\n{csv_line(1)}\n"
        members[f"{root}images/1.jpg"] = solid("red")
    return members


def test_folder_and_zip_are_read_alike(tmp_path):
    folder = write_catalogue(tmp_path / "folder", [csv_line(1)], {1: solid("red")})
    packed = write_zip(tmp_path / "catalogue.zip", members_of(""))
    for path in (folder, packed):
        source = sources.open_source(path)
        assert source.members("images", ".jpg") == {1: "images/1.jpg"}
        assert source.read("images/1.jpg") == solid("red")
        assert source.ignored_copies == 0
        assert len(catalogue.read_styles(source)[0]) == 1


def test_of_several_catalogues_none_is_taken(tmp_path):
    members = members_of("full/", "small/", "full/again/")
    with pytest.raises(InputError, match="'full/', 'small/'"):
        sources.open_source(write_zip(tmp_path / "both.zip", members))


@pytest.mark.parametrize(
    "roots",
    [
        ("", "myntradataset/"),  # Kaggle's small edition
        ("fashion-dataset/", "fashion-dataset/fashion-dataset/"),  # the full one
    ],
)
def test_nested_copies_are_ignored_and_counted(tmp_path, roots):
    packed = write_zip(tmp_path / "kaggle.zip", members_of(*roots))
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    for path in (packed, tmp_path / "unpacked"):
        source = sources.open_source(path)
        assert (source.root, source.ignored_copies) == (roots[0], 1)
        assert sorted(source.files) == ["images/1.jpg", "styles.csv"]
        assert source.read("images/1.jpg") == solid("red")


def test_members_are_named_by_id(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: b"a", 20: b"b"})
    (folder / "images" / "old").mkdir()
    for name in ("3.JPG", "cover.jpg", "01.jpg", "4.txt", "old/5.jpg", "٣.jpg"):
        (folder / "images" / name).write_bytes(b"c")
    found = sources.open_source(folder).members("images", ".jpg")
    assert found == {1: "images/1.jpg", 20: "images/20.jpg", 3: "images/3.JPG"}


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "/etc/passwd", "images/../../x.jpg", "..\\outside.jpg"]
)
def test_a_zip_that_points_outside_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "evil.zip", {**members_of(""), name: b"x"})
    with pytest.raises(InputError, match="outside"):
        sources.open_source(path)


def test_a_zip_with_a_symbolic_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("images/2.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "evil.zip", members_of(""))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="outside"):
        sources.open_source(path)


def set_flag(path: Path, bit: int, offset: int) -> Path:
    """Set a bit in the headers of all members: 8 of 0 says that they are encrypted."""
    content = bytearray(path.read_bytes())
    for start, field in ((b"PK\3\4", offset - 2), (b"PK\1\2", offset)):
        at = content.find(start)
        while at >= 0:
            content[at + field] |= bit
            at = content.find(start, at + 4)
    path.write_bytes(content)
    return path


def test_an_encrypted_zip_is_not_to_be_downloaded_again(tmp_path):
    path = set_flag(write_zip(tmp_path / "c.zip", members_of("")), 1, 8)
    with pytest.raises(InputError, match="encrypted, so give the unpacked folder"):
        sources.open_source(path)


def test_an_unknown_way_of_packing_is_one_line(tmp_path):
    path = set_flag(write_zip(tmp_path / "c.zip", members_of("")), 99, 10)
    source = sources.open_source(path)
    with pytest.raises(ValueError, match="compression method"):
        source.read("images/1.jpg")
    with pytest.raises(InputError, match="compression method"):
        catalogue.read_styles(source)


def test_zip64(tmp_path):
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        for name, data in members_of("").items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data if isinstance(data, bytes) else data.encode())
    source = sources.open_source(tmp_path / "c.zip")
    assert source.read("images/1.jpg") == solid("red")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["styles.csv", "images/1.jpg"])
def test_of_two_entries_of_one_name_none_is_taken(tmp_path, again):
    path = write_zip(tmp_path / "c.zip", members_of(""))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(again, b"other")
    with pytest.raises(InputError, match="comes twice"):
        sources.open_source(path)


def test_of_two_files_of_one_id_none_is_taken(tmp_path):
    members = members_of("") | {"images/1.JPG": b"other"}
    source = sources.open_source(write_zip(tmp_path / "c.zip", members))
    with pytest.raises(InputError, match="two files of one id"):
        source.members("images", ".jpg")


def test_no_damage_to_a_zip_is_more_than_one_line(tmp_path):
    """400 zips with some bytes changed, most of them in their directory at the end."""
    whole = write_zip(tmp_path / "c.zip", members_of("")).read_bytes()
    rng = np.random.default_rng(0)
    for number in range(400):
        content = bytearray(whole)
        for place in rng.integers(0, 200, rng.integers(1, 5)):
            content[-1 - place] = rng.integers(256)
        path = tmp_path / f"{number}.zip"
        path.write_bytes(content[: len(whole) - number % 9])
        with contextlib.suppress(InputError, ValueError):
            source = sources.open_source(path)
            source.fingerprint()
            for name in source.files:
                source.read(name)


def test_sources_that_cannot_be_used(tmp_path):
    whole = write_zip(tmp_path / "whole.zip", members_of("")).read_bytes()
    (tmp_path / "corrupt.zip").write_bytes(whole[:-40])
    write_zip(tmp_path / "other.zip", {"styles.csv": "x", "pictures/1.jpg": "x"})
    (tmp_path / "empty").mkdir()
    write_zip(tmp_path / "nothing.zip", {})
    write_zip(tmp_path / "zip.zip", {"whole.zip": whole})
    (tmp_path / "zero.zip").write_bytes(b"")
    for name, word in {
        "nothing.zip": "no catalogue",
        "zip.zip": "no catalogue",
        "zero.zip": "readable",
        "corrupt.zip": "readable",
        "other.zip": "no catalogue",
        "empty": "no catalogue",
        "missing.zip": "exist",
    }.items():
        with pytest.raises(InputError, match=word):
            sources.open_source(tmp_path / name)


def damage(path, data: bytes):
    """Overwrite the middle of a stored member: its checksum no longer fits."""
    content = bytearray(path.read_bytes())
    start = content.index(data) + len(data) // 2
    content[start : start + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(content)
    return path


def test_a_damaged_entry_is_a_valueerror_and_a_damaged_table_a_sentence(tmp_path):
    image = damage(write_zip(tmp_path / "image.zip", members_of("")), solid("red"))
    with pytest.raises(ValueError, match="damaged"):
        sources.open_source(image).read("images/1.jpg")
    table = damage(write_zip(tmp_path / "table.zip", members_of("")), HEADER.encode())
    with pytest.raises(InputError, match="cannot be read"):
        catalogue.read_styles(sources.open_source(table))


def test_a_replaced_zip_is_read_again(tmp_path):
    path = write_zip(tmp_path / "c.zip", members_of(""))
    first = sources.open_source(path).fingerprint()
    assert sources.open_source(path).fingerprint() == first
    other = solid("blue", (30, 40))
    write_zip(path, {**members_of(""), "images/1.jpg": other, "images/2.jpg": other})
    after = sources.open_source(path)
    assert after.read("images/1.jpg") == other
    assert sorted(after.members("images", ".jpg")) == [1, 2]
    assert after.fingerprint() != first


def test_the_fingerprint_of_a_folder_changes_with_its_files(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: solid("red")})
    first = sources.open_source(folder).fingerprint()
    assert sources.open_source(folder).fingerprint() == first
    (folder / "images" / "1.jpg").write_bytes(solid("blue", (61, 80)))
    second = sources.open_source(folder).fingerprint()
    (folder / "styles.csv").write_text(f"{HEADER}\n{csv_line(1, name='new')}\n")
    assert len({first, second, sources.open_source(folder).fingerprint()}) == 3


def test_an_entry_of_absurd_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 2**16)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members_of("").items():
            archive.writestr(name, data)
        archive.writestr("images/2.jpg", bytes(2**16 + 1))
    assert path.stat().st_size < 2**16
    with pytest.raises(InputError, match="65,537 bytes"):
        sources.open_source(path)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_entry_that_lies_costs_no_more_than_it_claims(tmp_path, kind):
    """64 MiB, when they are unpacked, that claim to be ten bytes."""
    size = 2**26 if kind == zipfile.ZIP_DEFLATED else 2**10
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("styles.csv", f"{HEADER}\n{csv_line(1)}\n")
        archive.writestr("images/1.jpg", bytes(size))
    truth, lie = (number.to_bytes(4, "little") for number in (size, 10))
    path.write_bytes(path.read_bytes().replace(truth, lie))
    source = sources.open_source(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match="liar"):
        source.read("images/1.jpg")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_file_of_absurd_size_is_not_read(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: b""})
    with (folder / "images" / "1.jpg").open("wb") as file:
        file.truncate(2**28 + 1)  # a hole, which takes no space
    with pytest.raises(ValueError, match="268,435,457 bytes"):
        sources.open_source(folder).read("images/1.jpg")


def test_a_folder_that_is_closed_to_us_is_one_line():
    base = Path(tempfile.mkdtemp(dir="/var/tmp"))  # pytest's own are closed to others
    try:
        base.chmod(0o755)
        folder = write_catalogue(base / "c", [csv_line(1)], {1: solid("red")})
        (folder / "images").chmod(0)
        with ordinary_user(), pytest.raises(InputError, match="Permission denied"):
            sources.open_source(folder)
        (folder / "images").chmod(0o755)
        (folder / "styles.csv").chmod(0)
        with ordinary_user(), pytest.raises(InputError, match="cannot be read"):
            sources.open_source(folder).fingerprint()
        folder.chmod(0)
        with ordinary_user(), pytest.raises(InputError, match="Permission denied"):
            sources.open_source(folder / "images")
    finally:
        shutil.rmtree(base)


def test_what_is_no_file_is_a_member_that_cannot_be_read_not_a_missing_one(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: solid("red")})
    (folder / "images" / "2.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "images" / "3.jpg").symlink_to("3.jpg")
    (folder / "images" / "4.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "images" / "5.jpg")  # to read it would wait for ever
    source = sources.open_source(folder)
    assert list(source.members("images", ".jpg")) == [1, 2, 3, 4, 5]
    for number in (2, 3, 4, 5):
        with pytest.raises(ValueError, match="no ordinary file, or a link to nowhere"):
            source.read(f"images/{number}.jpg")
    assert source.read("images/1.jpg") == solid("red")


def test_what_lies_beside_the_images_does_not_matter(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: solid("red")})
    expected = sources.open_source(folder).members("images", ".jpg")
    (folder / "images" / "2.jpg").mkdir()
    (folder / "nowhere").symlink_to("missing")
    for name in ("loop", "images/loop", "images/2.jpg/loop"):
        (folder / name).symlink_to(folder)
    os.mkfifo(folder / "pipe")
    (folder / "mystyles.csv").write_text("")
    (folder / "myimages").mkdir()
    (folder / "myimages" / "1.jpg").write_bytes(b"")
    source = sources.open_source(folder)
    assert source.members("images", ".jpg") == expected
    assert (source.root, source.ignored_copies) == ("", 0)


@pytest.mark.parametrize(
    "source",
    [
        *(
            "",
            "   ",
            "\n",
            None,
            5,
            b"x",
            ["small.zip"],
            "a\0b",
            "~nobody/x",
            "x" * 9999,
        ),
        *("/dev/zero", "/dev/null", Path("/dev/zero")),
    ],
    ids=lambda source: repr(source)[:20],
)
def test_what_is_no_source_at_all(source, monkeypatch, tmp_path):
    """Nor is "" the working directory, although a catalogue lies there."""
    write_catalogue(tmp_path / "c", [csv_line(1)], {1: solid("red")})
    monkeypatch.chdir(tmp_path / "c")
    assert sources.open_source(".").members("images", ".jpg")
    with pytest.raises(InputError, match=r"does not exist|cannot be read") as error:
        sources.open_source(source)
    assert len(str(error.value)) <= 1000
    assert "\n" not in str(error.value)


def test_a_pipe_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(InputError, match="does not exist"):
        sources.open_source(tmp_path / "pipe.zip")


@pytest.mark.parametrize(
    "name", ["a$HOME b", "it's", 'say "x"', "<b>&amp;", "\u0661", "~"]
)
def test_any_name_is_a_name(tmp_path, name, monkeypatch):
    packed = write_zip(tmp_path / f"{name}.zip", members_of(""))
    assert sources.open_source(packed).read("images/1.jpg") == solid("red")
    assert sources.open_source(str(packed)).path == packed
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.open_source(f"~/{name}.zip").path == packed


def test_a_reader_is_light_and_reads_the_same(tmp_path):
    source = sources.open_source(write_zip(tmp_path / "c.zip", members_of("deep/")))
    reader = pickle.loads(pickle.dumps(source.reader()))
    assert reader.read("images/1.jpg") == source.read("images/1.jpg")
    assert reader.files == {}


# --- Kaggle ---------------------------------------------------------------------------


class Kaggle(http.server.BaseHTTPRequestHandler):
    """Answers as Kaggle does: the archive for the right token, 401 for another."""

    def do_POST(self):
        self.server.requests.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") == "Bearer right":
            status, kind, body = 200, "application/zip", self.server.archive
        else:
            body = b'{"code": 401, "message": "Unauthenticated"}'
            status, kind = 401, "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Quiet."""


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A local server in the place of Kaggle's; kagglehub and its client are real."""
    from kagglesdk import kaggle_env

    server = http.server.ThreadingHTTPServer(("localhost", 0), Kaggle)
    archive = write_zip(tmp_path / "k.zip", members_of("", "myntradataset/"))
    server.archive, server.requests = archive.read_bytes(), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://localhost:{server.server_address[1]}"
    test = kaggle_env.KaggleEnv.TEST
    monkeypatch.setitem(kaggle_env._env_to_endpoint, test, address)
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "data"))
    monkeypatch.setenv("KAGGLE_API_TOKEN", "right")
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_is_read_and_kept(kaggle):
    for _ in range(2):
        source = sources.open_source("kaggle-small")
        assert (source.root, source.ignored_copies) == ("", 1)
        assert source.read("images/1.jpg") == solid("red")
    assert len(kaggle.requests) == 1  # the second time it lies in data/
    kaggle.shutdown()
    kaggle.server_close()
    sources.open_source("kaggle-small")  # nor does it need a network


def one_line(name: str) -> str:
    with pytest.raises(InputError, match=f"{name} could not be downloaded") as error:
        sources.open_source(name)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith("SOURCE=path/to/archive.zip")
    return message


def test_downloads_that_fail_are_one_line_each(kaggle, monkeypatch):
    monkeypatch.setenv("KAGGLE_API_TOKEN", "wrong")
    message = one_line("kaggle-full")
    assert "token" in message
    page = "kaggle.com/datasets/paramaggarwal/fashion-product-images-dataset by hand"
    assert page in message
    monkeypatch.setenv("KAGGLE_API_TOKEN", "right")
    kaggle.archive = kaggle.archive[:200]  # the download breaks off
    one_line("kaggle-small")
    kaggle.shutdown()
    kaggle.server_close()
    assert "network" in one_line("kaggle-small")
