"""The catalogue: its rows, labels and the split, on tables worked out by hand."""

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
from conftest import csv_line
from hypothesis import given, settings
from hypothesis import strategies as st

from fashionlib import catalogue
from fashionlib.data import sources
from fashionlib.runtime import InputError

HEADER = ",".join(catalogue.COLUMNS)


def read(tmp_path, content: bytes | str):
    """Parse a styles.csv with exactly this content."""
    folder = tmp_path / "catalogue"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "1.jpg").write_bytes(b"")
    (folder / "styles.csv").write_bytes(
        content.encode() if isinstance(content, str) else content
    )
    return catalogue.read_styles(sources.open_source(folder))


# --- the parser -----------------------------------------------------------------------


def test_unquoted_commas_belong_to_the_name(tmp_path):
    lines = [
        HEADER,
        csv_line(1, name="Tie, Cufflink and Square"),
        csv_line(2, name="a,b,c"),
        csv_line(3, name="plain"),
    ]
    table, malformed = read(tmp_path, "\n".join(lines) + "\n")
    assert table["productDisplayName"].tolist() == [
        "Tie, Cufflink and Square",
        "a,b,c",
        "plain",
    ]
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
        (
            "two\u2028lines\x85here",
            "two\u2028lines\x85here",
            0,
        ),  # splitlines() would cut here
        ('"', '"', 0),
    ],
)
def test_quotes(tmp_path, written, name, malformed):
    table, count = read(tmp_path, f"{HEADER}\n{csv_line(1, name=written)}\n")
    assert (table["productDisplayName"][0], count) == (name, malformed)


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    text = "\r\n".join(
        [HEADER, csv_line(7, name="one"), "", csv_line(8, name="two"), ""]
    )
    table, malformed = read(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert table["id"].tolist() == [7, 8]
    assert table["productDisplayName"].tolist() == ["one", "two"]
    assert malformed == 0


def test_unusual_years_are_missing_not_an_error(tmp_path):
    lines = [
        csv_line(i).replace("2011", year)
        for i, year in enumerate(["", "NA", "2012.0", "99999", "20.5"], start=1)
    ]
    table, _ = read(tmp_path, "\n".join([HEADER, *lines]))
    assert table["year"].isna().tolist() == [True, True, False, True, True]
    assert table["year"][2] == 2012


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found none"),
        (HEADER.replace(",year", "") + "\n", "found id, gender"),
        (
            f"{HEADER}\n1,Men,Apparel,Topwear\n",
            r"expected 10 fields.*'1,Men,Apparel,Topwear'",
        ),
        (f"{HEADER}\n{csv_line('x7')}\n", "begin with a number.*x7"),
        (
            f"{HEADER}\n{csv_line(4)}\n{csv_line(5)}\n{csv_line(4)}\n",
            "id 4 comes twice",
        ),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, content)
    assert "styles.csv" in str(error.value)
    assert "\n" not in str(error.value)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"))


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.lists(NAMES, min_size=1, max_size=4).map(",".join), min_size=1, max_size=5
    )
)
def test_any_unquoted_name_comes_back(tmp_path_factory, names):
    names = [
        name for name in names if not re.fullmatch(r'"([^"]|"")*"', name)
    ]  # that would be a quoted one
    text = "\n".join(
        [HEADER, *(csv_line(i, name=name) for i, name in enumerate(names))]
    )
    table, malformed = read(tmp_path_factory.mktemp("names"), text)
    assert table["productDisplayName"].tolist() == names
    assert malformed == sum("," in name for name in names)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=5))
def test_any_properly_written_name_comes_back(tmp_path_factory, names):
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(catalogue.COLUMNS)
    writer.writerows(
        [*csv_line(i).split(",")[:9], name] for i, name in enumerate(names)
    )
    table, malformed = read(tmp_path_factory.mktemp("names"), stream.getvalue())
    assert table["productDisplayName"].tolist() == names
    assert malformed == 0


def test_quotes_within_a_name_are_part_of_it(tmp_path):
    text = "\n".join(
        [
            HEADER,
            csv_line(1, name='"Lee" men "Slim"'),
            csv_line(2, name='"A", "B"'),
            csv_line(3, name='"C, ""D"""'),
        ]
    )
    table, malformed = read(tmp_path, text)
    assert table["productDisplayName"].tolist() == [
        '"Lee" men "Slim"',
        '"A", "B"',
        'C, "D"',
    ]
    assert malformed == 1


# --- labels ---------------------------------------------------------------------------


def test_labels_by_hand():
    rows = [
        *(
            ("Men", "Accessories", 0),
            ("Women", "Accessories", 1),
            ("Men", "Apparel", 2),
            ("Women", "Apparel", 3),
        ),
        *(
            ("Men", "Footwear", 4),
            ("Women", "Personal Care", 5),
            ("Women", "Free Items", 5),
        ),
        *(("Boys", "Apparel", -1), ("Unisex", "Accessories", -1), ("", "Apparel", -1)),
    ]
    table = pd.DataFrame(rows, columns=["gender", "masterCategory", "expected"])
    assert catalogue.labels(table).tolist() == table["expected"].tolist()
    names = [
        f"{gender}/{category}"
        for category in ("Accessories", "Apparel", "Other")
        for gender in ("Men", "Women")
    ]
    assert list(catalogue.CLASS_NAMES) == names


# --- the split ------------------------------------------------------------------------


def table_of_groups(groups: list[tuple[int, int]]) -> tuple[pd.Series, pd.Series]:
    """Labels and groups of products, from (label, number of products) of each group."""
    label = np.repeat([label for label, _ in groups], [size for _, size in groups])
    group = np.repeat(np.arange(len(groups)), [size for _, size in groups])
    return pd.Series(label), pd.Series(group)


GROUPS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from([1, 1, 1, 1, 2, 3, 6])),
    min_size=1,
    max_size=120,
)


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 2**31))
def test_split_properties(groups, seed):
    label, group = table_of_groups(groups)
    parts = catalogue.split(label, group, seed=seed)
    assert parts.isin(list(catalogue.SPLITS)).all()  # every product is assigned
    assert (parts.groupby(group).nunique() == 1).all()  # every group lies on one side
    assert parts.equals(
        catalogue.split(label, group, seed=seed)
    )  # the same seed, the same split
    for number in label.unique():
        largest = group[label == number].value_counts().max()
        for name, share in catalogue.SPLITS.items():
            wanted, found = (
                share * (label == number).sum(),
                (parts[label == number] == name).sum(),
            )
            assert abs(found - wanted) <= (
                1 if largest == 1 else 2 * largest
            )  # no group is torn for the sake of a share


def test_split_is_exact_where_products_without_a_twin_can_fill_up():
    label, group = table_of_groups(
        [(0, 3)] * 4 + [(0, 2)] * 14 + [(0, 1)] * 360 + [(3, 1)] * 80
    )
    parts = catalogue.split(label, group, seed=1)
    assert parts[label == 0].value_counts().to_dict() == {
        "train": 300,
        "test": 60,
        "validation": 40,
    }
    assert parts[label == 3].value_counts().to_dict() == {
        "train": 60,
        "test": 12,
        "validation": 8,
    }


def test_another_seed_gives_another_split():
    label, group = table_of_groups([(0, 1)] * 100)
    assert not catalogue.split(label, group, seed=0).equals(
        catalogue.split(label, group, seed=1)
    )


def test_groups_reach_every_part():
    label, group = table_of_groups([(0, 2)] * 60 + [(0, 1)] * 280)
    in_pairs = group.map(group.value_counts()) == 2
    shares = catalogue.split(label, group, seed=0)[in_pairs].value_counts(
        normalize=True
    )
    assert shares["train"] == pytest.approx(0.75, abs=0.2)
    assert set(shares.index) == set(catalogue.SPLITS)
