"""The catalogue: where it lies, its rows, labels, duplicate groups and the split, on tables worked out by hand."""

import csv
import io
import stat
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import csv_line, solid, write_catalogue
from hypothesis import given, settings
from hypothesis import strategies as st

from fashionlib import catalogue
from fashionlib.runtime import InputError

HEADER = ",".join(catalogue.COLUMNS)


def read(tmp_path, content: bytes | str):
    """Parse a styles.csv with exactly this content."""
    folder = tmp_path / "catalogue"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "1.jpg").write_bytes(b"")
    (folder / "styles.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    return catalogue.read_styles(catalogue.open_source(folder))


# --- the parser -------------------------------------------------------------------------------------------------------


def test_unquoted_commas_belong_to_the_name(tmp_path):
    lines = [HEADER, csv_line(1, name="Tie, Cufflink and Square"), csv_line(2, name="a,b,c"), csv_line(3, name="plain")]
    table, malformed = read(tmp_path, "\n".join(lines) + "\n")
    assert table["productDisplayName"].tolist() == ["Tie, Cufflink and Square", "a,b,c", "plain"]
    assert malformed == 2
    assert table["id"].tolist() == [1, 2, 3]
    assert table["year"].tolist() == [2011, 2011, 2011]
    assert tuple(table.columns) == catalogue.COLUMNS


@pytest.mark.parametrize(
    ("written", "name", "malformed"),
    [
        ('Tempo 3.5" Short', 'Tempo 3.5" Short', 0),  # as in the real file
        ('"Tie, Cufflink"', "Tie, Cufflink", 0),  # as a spreadsheet saves it
        ('"3.5"" Short, blue"', '3.5" Short, blue', 0),
        ('Short, 3.5"', 'Short, 3.5"', 1),
        ("two\u2028lines\x85here", "two\u2028lines\x85here", 0),  # splitlines() would cut here
        ('"', '"', 0),
    ],
)
def test_quotes(tmp_path, written, name, malformed):
    table, count = read(tmp_path, f"{HEADER}\n{csv_line(1, name=written)}\n")
    assert (table["productDisplayName"][0], count) == (name, malformed)


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    text = "\r\n".join([HEADER, csv_line(7, name="one"), "", csv_line(8, name="two"), ""])
    table, malformed = read(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert table["id"].tolist() == [7, 8]
    assert table["productDisplayName"].tolist() == ["one", "two"]
    assert malformed == 0


def test_unusual_years_are_missing_not_an_error(tmp_path):
    lines = [csv_line(i).replace("2011", year) for i, year in enumerate(["", "NA", "2012.0", "99999", "20.5"], start=1)]
    table, _ = read(tmp_path, "\n".join([HEADER, *lines]))
    assert table["year"].isna().tolist() == [True, True, False, True, True]
    assert table["year"][2] == 2012


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found none"),
        (HEADER.replace(",year", "") + "\n", "found id, gender"),
        (f"{HEADER}\n1,Men,Apparel,Topwear\n", r"expected 10 fields.*'1,Men,Apparel,Topwear'"),
        (f"{HEADER}\n{csv_line('x7')}\n", "begin with a number.*x7"),
        (f"{HEADER}\n{csv_line(4)}\n{csv_line(5)}\n{csv_line(4)}\n", "id 4 comes twice"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, content)
    assert "styles.csv" in str(error.value)
    assert "\n" not in str(error.value)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@settings(max_examples=60, deadline=None)
@given(names=st.lists(st.lists(NAMES, min_size=1, max_size=4).map(",".join), min_size=1, max_size=5))
def test_any_unquoted_name_comes_back(tmp_path_factory, names):
    names = [name for name in names if not (len(name) > 1 and name[0] == name[-1] == '"')]
    text = "\n".join([HEADER, *(csv_line(i, name=name) for i, name in enumerate(names))])
    table, malformed = read(tmp_path_factory.mktemp("names"), text)
    assert table["productDisplayName"].tolist() == names
    assert malformed == sum("," in name for name in names)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=5))
def test_any_properly_written_name_comes_back(tmp_path_factory, names):
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(catalogue.COLUMNS)
    writer.writerows([*csv_line(i).split(",")[:9], name] for i, name in enumerate(names))
    table, malformed = read(tmp_path_factory.mktemp("names"), stream.getvalue())
    assert table["productDisplayName"].tolist() == names
    assert malformed == 0


# --- labels, duplicates -----------------------------------------------------------------------------------------------


def test_labels_by_hand():
    rows = [
        *(("Men", "Accessories", 0), ("Women", "Accessories", 1), ("Men", "Apparel", 2), ("Women", "Apparel", 3)),
        *(("Men", "Footwear", 4), ("Women", "Personal Care", 5), ("Women", "Free Items", 5)),
        *(("Boys", "Apparel", -1), ("Unisex", "Accessories", -1), ("", "Apparel", -1)),
    ]
    table = pd.DataFrame(rows, columns=["gender", "masterCategory", "expected"])
    assert catalogue.labels(table).tolist() == table["expected"].tolist()
    names = [f"{gender}/{category}" for category in ("Accessories", "Apparel", "Other") for gender in ("Men", "Women")]
    assert list(catalogue.CLASS_NAMES) == names


def test_duplicate_groups_and_conflicts_by_hand():
    index = pd.DataFrame({"id": [12, 5, 9, 3, 7], "digest": ["a", "b", "a", "c", "b"], "label": [0, 2, 1, 4, 2]})
    index["group"] = catalogue.duplicate_groups(index["id"], index["digest"])
    assert index["group"].tolist() == [9, 5, 9, 3, 5]
    assert catalogue.label_conflicts(index) == 1  # group 9 is both 0 and 1, group 5 is twice 2


# --- the split --------------------------------------------------------------------------------------------------------


def table_of_groups(groups: list[tuple[int, int]]) -> tuple[pd.Series, pd.Series]:
    """Labels and groups of products, from (label, number of products) of each group."""
    label = np.repeat([label for label, _ in groups], [size for _, size in groups])
    group = np.repeat(np.arange(len(groups)), [size for _, size in groups])
    return pd.Series(label), pd.Series(group)


GROUPS = st.lists(st.tuples(st.integers(0, 5), st.sampled_from([1, 1, 1, 1, 2, 3, 6])), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 2**31))
def test_split_properties(groups, seed):
    label, group = table_of_groups(groups)
    parts = catalogue.split(label, group, seed=seed)
    assert parts.isin(list(catalogue.SPLITS)).all()  # every product is assigned
    assert (parts.groupby(group).nunique() == 1).all()  # every group lies on one side
    assert parts.equals(catalogue.split(label, group, seed=seed))  # the same seed, the same split
    for number in label.unique():
        largest = group[label == number].value_counts().max()
        for name, share in catalogue.SPLITS.items():
            wanted, found = share * (label == number).sum(), (parts[label == number] == name).sum()
            assert abs(found - wanted) <= (
                1 if largest == 1 else 2 * largest
            )  # no group is torn for the sake of a share


def test_split_is_exact_where_products_without_a_twin_can_fill_up():
    label, group = table_of_groups([(0, 3)] * 4 + [(0, 2)] * 14 + [(0, 1)] * 360 + [(3, 1)] * 80)
    parts = catalogue.split(label, group, seed=1)
    assert parts[label == 0].value_counts().to_dict() == {"train": 300, "test": 60, "validation": 40}
    assert parts[label == 3].value_counts().to_dict() == {"train": 60, "test": 12, "validation": 8}


def test_another_seed_gives_another_split():
    label, group = table_of_groups([(0, 1)] * 100)
    assert not catalogue.split(label, group, seed=0).equals(catalogue.split(label, group, seed=1))


def test_groups_reach_every_part():
    label, group = table_of_groups([(0, 2)] * 60 + [(0, 1)] * 280)
    in_pairs = group.map(group.value_counts()) == 2
    shares = catalogue.split(label, group, seed=0)[in_pairs].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.75, abs=0.2)
    assert set(shares.index) == set(catalogue.SPLITS)


# --- where the catalogue lies -----------------------------------------------------------------------------------------


def write_zip(path, members: dict[str, bytes | str]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def members_of(root: str = "") -> dict[str, bytes | str]:
    """A catalogue with one product, as members below `root`."""
    return {f"{root}styles.csv": f"{HEADER}\n{csv_line(1)}\n", f"{root}images/1.jpg": solid("red")}


def test_folder_and_zip_are_read_alike(tmp_path):
    folder = write_catalogue(tmp_path / "folder", [csv_line(1)], {1: solid("red")})
    packed = write_zip(tmp_path / "catalogue.zip", members_of())
    for path in (folder, packed):
        source = catalogue.open_source(path)
        assert source.members("images", ".jpg") == {1: "images/1.jpg"}
        assert source.read("images/1.jpg") == solid("red")
        assert source.ignored_copies == 0
        assert len(catalogue.read_styles(source)[0]) == 1


@pytest.mark.parametrize(
    ("roots", "expected"),
    [
        (["", "myntradataset/"], ""),  # the small edition
        (["fashion-dataset/", "fashion-dataset/fashion-dataset/"], "fashion-dataset/"),  # the large one
    ],
)
def test_nested_copies_are_ignored_and_counted(tmp_path, roots, expected):
    members = {name: data for root in roots for name, data in members_of(root).items()}
    packed = catalogue.open_source(write_zip(tmp_path / "kaggle.zip", members))
    with zipfile.ZipFile(tmp_path / "kaggle.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    unpacked = catalogue.open_source(tmp_path / "unpacked")
    for source in (packed, unpacked):
        assert (source.root, source.ignored_copies) == (expected, 1)
        assert sorted(source.sizes) == ["images/1.jpg", "styles.csv"]
        assert source.read("images/1.jpg") == solid("red")


def test_members_are_named_by_id(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: b"a", 20: b"b"})
    (folder / "images" / "3.JPG").write_bytes(b"c")
    (folder / "images" / "cover.jpg").write_bytes(b"d")
    (folder / "images" / "4.txt").write_bytes(b"e")
    (folder / "images" / "old").mkdir()
    (folder / "images" / "old" / "5.jpg").write_bytes(b"f")
    found = catalogue.open_source(folder).members("images", ".jpg")
    assert found == {1: "images/1.jpg", 20: "images/20.jpg", 3: "images/3.JPG"}


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/passwd", "images/../../x.jpg", "..\\outside.jpg"])
def test_a_zip_that_points_outside_is_refused(tmp_path, name):
    path = write_zip(tmp_path / "evil.zip", {**members_of(), name: b"x"})
    with pytest.raises(InputError, match=r"points outside of it: .*(outside\.jpg|passwd|x\.jpg)"):
        catalogue.open_source(path)


def test_a_zip_with_a_symbolic_link_is_refused(tmp_path):
    link = zipfile.ZipInfo("images/2.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip(tmp_path / "evil.zip", members_of())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match=r"points outside.*images/2\.jpg"):
        catalogue.open_source(path)


def test_sources_that_cannot_be_used(tmp_path):
    corrupt = tmp_path / "corrupt.zip"
    corrupt.write_bytes(write_zip(tmp_path / "whole.zip", members_of()).read_bytes()[:-40])
    with pytest.raises(InputError, match="not a readable zip"):
        catalogue.open_source(corrupt)
    with pytest.raises(InputError, match=r"no catalogue: expected styles\.csv beside a folder images/"):
        catalogue.open_source(write_zip(tmp_path / "other.zip", {"styles.csv": "x", "pictures/1.jpg": "x"}))
    with pytest.raises(InputError, match="no catalogue"):
        catalogue.open_source(tmp_path)
    with pytest.raises(InputError, match=r"does not exist: give a folder or zip.*kaggle-small"):
        catalogue.open_source(tmp_path / "missing.zip")


def damage(path, data: bytes):
    """Overwrite the middle of a stored member, so that its checksum no longer fits."""
    content = bytearray(path.read_bytes())
    start = content.index(data) + len(data) // 2
    content[start : start + 4] = b"\xff\x00\xff\x00"
    path.write_bytes(content)
    return path


def test_a_damaged_entry_is_an_oserror_and_a_damaged_table_a_sentence(tmp_path):
    picture = damage(write_zip(tmp_path / "picture.zip", members_of()), solid("red"))
    with pytest.raises(OSError, match=r"damaged entry in picture\.zip"):
        catalogue.open_source(picture).read("images/1.jpg")
    table = damage(write_zip(tmp_path / "table.zip", members_of()), HEADER.encode())
    with pytest.raises(InputError, match=r"styles\.csv of .* cannot be read"):
        catalogue.read_styles(catalogue.open_source(table))


def test_a_replaced_zip_is_read_again(tmp_path):
    path = write_zip(tmp_path / "c.zip", members_of())
    before = catalogue.open_source(path)
    first = before.fingerprint()
    assert catalogue.open_source(path).fingerprint() == first
    write_zip(path, {**members_of(), "images/1.jpg": solid("blue", (30, 40)), "images/2.jpg": solid("green")})
    after = catalogue.open_source(path)
    assert after.read("images/1.jpg") == solid("blue", (30, 40))
    assert sorted(after.members("images", ".jpg")) == [1, 2]
    assert after.fingerprint() != first


def test_the_fingerprint_of_a_folder_changes_with_its_files(tmp_path):
    folder = write_catalogue(tmp_path / "c", [csv_line(1)], {1: solid("red")})
    first = catalogue.open_source(folder).fingerprint()
    assert catalogue.open_source(folder).fingerprint() == first
    (folder / "images" / "1.jpg").write_bytes(solid("blue", (61, 80)))
    second = catalogue.open_source(folder).fingerprint()
    (folder / "styles.csv").write_text(f"{HEADER}\n{csv_line(1, name='new')}\n")
    assert len({first, second, catalogue.open_source(folder).fingerprint()}) == 3


def test_check_source(tmp_path, monkeypatch):
    assert catalogue.check_source("synthetic") == ("synthetic", "")
    assert catalogue.check_source("kaggle-full") == ("kaggle-full", "")  # not downloaded yet
    write_zip(tmp_path / "c.zip", members_of())
    monkeypatch.chdir(tmp_path)
    path, note = catalogue.check_source("c.zip")
    assert path == str(tmp_path / "c.zip")
    assert note == f"# source: {catalogue.open_source('c.zip').fingerprint()}\n"
    (tmp_path / "c" / "images").mkdir(parents=True)
    (tmp_path / "c" / "images" / "1.jpg").write_bytes(b"")
    (tmp_path / "c" / "styles.csv").write_text("id,name\n")
    with pytest.raises(InputError, match="expected the columns"):
        catalogue.check_source("c")
