"""Where a catalogue lies: folders, zips with their traps, and the downloader, driven against a local server."""

import http.server
import io
import pickle
import shutil
import stat
import tempfile
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from conftest import csv_line, ordinary_user, solid, write_catalogue

from fashionlib import artifacts, catalogue
from fashionlib.data import sources
from fashionlib.runtime import InputError

HEADER = ",".join(catalogue.COLUMNS)


def write_zip(path, members: dict[str, bytes | str]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members_of(root: str = "") -> dict[str, bytes | str]:
    """A catalogue with one product, as members below `root`."""
    return {
        f"{root}styles.csv": f"{HEADER}\n{csv_line(1)}\n",
        f"{root}images/1.jpg": solid("red"),
    }


def test_folder_and_zip_are_read_alike(tmp_path):
    folder = write_catalogue(tmp_path / "folder", [csv_line(1)], {1: solid("red")})
    packed = write_zip(tmp_path / "catalogue.zip", members_of())
    for path in (folder, packed):
        source = sources.open_source(path)
        assert source.members("images", ".jpg") == {1: "images/1.jpg"}
        assert source.read("images/1.jpg") == solid("red")
        assert source.ignored_copies == 0
        assert len(catalogue.read_styles(source)[0]) == 1


def test_of_several_catalogues_none_is_taken(tmp_path):
    members = {
        name: data
        for root in ("full/", "small/", "full/again/")
        for name, data in members_of(root).items()
    }
    with pytest.raises(
        InputError,
        match=r"several catalogues, in 'full/', 'small/': give the path of one",
    ):
        sources.open_source(write_zip(tmp_path / "both.zip", members))


@pytest.mark.parametrize(
    ("roots", "expected"),
    [
        (["", "myntradataset/"], ""),  # the small edition
        (
            ["fashion-dataset/", "fashion-dataset/fashion-dataset/"],
            "fashion-dataset/",
        ),  # the large one
    ],
)
def test_nested_copies_are_ignored_and_counted(tmp_path, roots, expected):
    members = {name: data for root in roots for name, data in members_of(root).items()}
    packed = sources.open_source(write_zip(tmp_path / "kaggle.zip", members))
    with zipfile.ZipFile(tmp_path / "kaggle.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked = sources.open_source(tmp_path / "unpacked")
    for source in (packed, unpacked):
        assert (source.root, source.ignored_copies) == (expected, 1)
        assert sorted(source.files) == ["images/1.jpg", "styles.csv"]
        assert source.read("images/1.jpg") == solid("red")


def test_members_are_named_by_id(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: b"a", 20: b"b"})
    (folder / "images" / "3.JPG").write_bytes(b"c")
    (folder / "images" / "cover.jpg").write_bytes(b"d")
    (folder / "images" / "01.jpg").write_bytes(b"g")  # an id has no leading zeros
    (folder / "images" / "4.txt").write_bytes(b"e")
    (folder / "images" / "old").mkdir()
    (folder / "images" / "old" / "5.jpg").write_bytes(b"f")
    found = sources.open_source(folder).members("images", ".jpg")
    assert found == {1: "images/1.jpg", 20: "images/20.jpg", 3: "images/3.JPG"}


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "/etc/passwd", "images/../../x.jpg", "..\\outside.jpg"]
)
def test_a_zip_that_points_outside_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "evil.zip", {**members_of(), name: b"x"})
    with pytest.raises(
        InputError, match=r"points outside of it: .*(outside\.jpg|passwd|x\.jpg)"
    ):
        sources.open_source(path)


def test_a_zip_with_a_symbolic_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("images/2.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "evil.zip", members_of())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match=r"points outside.*images/2\.jpg"):
        sources.open_source(path)


def test_sources_that_cannot_be_used(tmp_path):
    corrupt = tmp_path / "corrupt.zip"
    corrupt.write_bytes(
        write_zip(tmp_path / "whole.zip", members_of()).read_bytes()[:-40]
    )
    with pytest.raises(InputError, match="not a readable zip"):
        sources.open_source(corrupt)
    with pytest.raises(
        InputError, match=r"no catalogue: expected styles\.csv beside a folder images/"
    ):
        sources.open_source(
            write_zip(
                tmp_path / "other.zip", {"styles.csv": "x", "pictures/1.jpg": "x"}
            )
        )
    with pytest.raises(InputError, match="no catalogue"):
        sources.open_source(tmp_path)
    with pytest.raises(
        InputError, match=r"does not exist: give a folder or zip.*kaggle-small"
    ):
        sources.open_source(tmp_path / "missing.zip")


def damage(path, data: bytes):
    """Overwrite the middle of a stored member, so that its checksum no longer fits."""
    content = bytearray(path.read_bytes())
    start = content.index(data) + len(data) // 2
    content[start : start + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(content)
    return path


def test_a_damaged_entry_is_a_valueerror_and_a_damaged_table_a_sentence(tmp_path):
    picture = damage(write_zip(tmp_path / "picture.zip", members_of()), solid("red"))
    with pytest.raises(ValueError, match=r"damaged entry in picture\.zip"):
        sources.open_source(picture).read("images/1.jpg")
    table = damage(write_zip(tmp_path / "table.zip", members_of()), HEADER.encode())
    with pytest.raises(InputError, match=r"styles\.csv of .* cannot be read"):
        catalogue.read_styles(sources.open_source(table))


def test_a_replaced_zip_is_read_again(tmp_path):
    path = write_zip(tmp_path / "c.zip", members_of())
    before = sources.open_source(path)
    first = before.fingerprint()
    assert sources.open_source(path).fingerprint() == first
    write_zip(
        path,
        {
            **members_of(),
            "images/1.jpg": solid("blue", (30, 40)),
            "images/2.jpg": solid("green"),
        },
    )
    after = sources.open_source(path)
    assert after.read("images/1.jpg") == solid("blue", (30, 40))
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


def test_check_source(tmp_path, monkeypatch):
    assert artifacts.check_source("synthetic") == ("synthetic", "")
    assert artifacts.check_source("kaggle-full") == (
        "kaggle-full",
        "",
    )  # not downloaded yet
    write_zip(tmp_path / "c.zip", members_of())
    monkeypatch.chdir(tmp_path)
    path, note = artifacts.check_source("c.zip")
    assert path == str(tmp_path / "c.zip")
    assert note == f"# source: {sources.open_source('c.zip').fingerprint()}\n"
    (tmp_path / "c" / "images").mkdir(parents=True)
    (tmp_path / "c" / "images" / "1.jpg").write_bytes(b"")
    (tmp_path / "c" / "styles.csv").write_text("id,name\n")
    with pytest.raises(InputError, match="expected the columns"):
        artifacts.check_source("c")


def test_an_entry_of_absurd_size_is_refused(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members_of().items():
            archive.writestr(name, data)
        with archive.open("images/2.jpg", "w") as entry:
            for _ in range(257):
                entry.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(
        InputError, match=r"entry of 269,484,032 bytes: 'images/2\.jpg'"
    ):
        sources.open_source(path)


def test_an_entry_that_lies_about_its_size_is_a_valueerror(tmp_path):
    path = write_zip(tmp_path / "liar.zip", members_of())
    content = path.read_bytes()
    size = len(solid("red")).to_bytes(4, "little")
    path.write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"liar\.zip"):
        sources.open_source(path).read("images/1.jpg")


def test_a_compressed_entry_that_lies_costs_no_more_than_it_claims(tmp_path):
    """A quarter of a gigabyte that claims to be ten bytes."""
    path = tmp_path / "liar.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("styles.csv", f"{HEADER}\n{csv_line(1)}\n")
        archive.writestr("images/1.jpg", bytes(2**28))
    content = path.read_bytes()
    path.write_bytes(
        content.replace((2**28).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    source = sources.open_source(path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"liar\.zip"):
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
    base = Path(
        tempfile.mkdtemp(dir="/var/tmp")
    )  # pytest's own folders are closed to other users
    try:
        base.chmod(0o755)
        folder = write_catalogue(base / "c", [csv_line(1)], {1: solid("red")})
        (folder / "images").chmod(0)
        with (
            ordinary_user(),
            pytest.raises(
                InputError,
                match=r"cannot be read \(.*Permission denied.*yours to read\.$",
            ),
        ):
            sources.open_source(folder)
        (folder / "images").chmod(0o755)
        (folder / "styles.csv").chmod(0)
        with ordinary_user(), pytest.raises(InputError, match="cannot be read"):
            sources.open_source(folder).fingerprint()
    finally:
        shutil.rmtree(base)


def test_a_reader_is_light_and_reads_the_same(tmp_path):
    source = sources.open_source(write_zip(tmp_path / "c.zip", members_of("deep/")))
    reader = pickle.loads(pickle.dumps(source.reader()))
    assert reader.read("images/1.jpg") == source.read("images/1.jpg")
    assert reader.files == {}


# --- Kaggle -----------------------------------------------------------------------------------------------------------


class Kaggle(http.server.BaseHTTPRequestHandler):
    """Answers kagglehub's own client as Kaggle does: the archive for the right token, 401 for another one."""

    def do_POST(self):
        self.server.requests.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        allowed = self.headers.get("Authorization") == "Bearer right"
        body = (
            self.server.archive
            if allowed
            else b'{"code": 401, "message": "Unauthenticated"}'
        )
        self.send_response(200 if allowed else 401)
        self.send_header(
            "Content-Type", "application/zip" if allowed else "application/json"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        """Quiet."""


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A server on this machine in the place of Kaggle's; kagglehub and its client are the real ones."""
    from kagglesdk import kaggle_env

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for root in ("", "myntradataset/"):
            for name, data in members_of(root).items():
                packed.writestr(name, data)
    server = http.server.ThreadingHTTPServer(("localhost", 0), Kaggle)
    server.archive, server.requests = archive.getvalue(), []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://localhost:{server.server_address[1]}"
    monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.TEST, address)
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


def test_a_wrong_token_and_no_network_are_one_line_each(kaggle, monkeypatch):
    by_hand = r"by hand and pass the zip: SOURCE=path/to/archive\.zip$"
    monkeypatch.setenv("KAGGLE_API_TOKEN", "wrong")
    with pytest.raises(
        InputError,
        match=rf"kaggle-full could.*answers 401; put a valid token.*{by_hand}",
    ) as error:
        sources.open_source("kaggle-full")
    assert "\n" not in str(error.value)
    assert (
        "kaggle.com/datasets/paramaggarwal/fashion-product-images-dataset by hand"
        in str(error.value)
    )
    kaggle.shutdown()
    kaggle.server_close()
    with pytest.raises(
        InputError,
        match=rf"kaggle-small could.*cannot be reached; check the network.*{by_hand}",
    ):
        sources.open_source("kaggle-small")


def test_a_download_that_breaks_off_is_one_line(kaggle):
    kaggle.archive = kaggle.archive[:200]
    with pytest.raises(
        InputError, match=r"kaggle-small could not be downloaded: [^\n]+$"
    ):
        sources.open_source("kaggle-small")
