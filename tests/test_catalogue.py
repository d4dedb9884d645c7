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


@pytest.mark.parametrize("end", ["\r\n", "\r", "\r\r\n", "\n"])
@pytest.mark.parametrize("last", ["\r", "\n"])
def test_byte_order_mark_and_line_ends_of_any_system(tmp_path, end, last):
    text = end.join(
        [HEADER, csv_line(7, name="one"), "", "  ", csv_line(8, name="two")]
    )
    text += f"{last}{csv_line(9, name='three')}{end}"  # pasted on another system
    table, malformed = read(tmp_path, b"\xef\xbb\xbf" + text.encode())
    assert table["id"].tolist() == [7, 8, 9]
    assert table["productDisplayName"].tolist() == ["one", "two", "three"]
    assert malformed == 0


def test_unusual_years_are_missing_not_an_error(tmp_path):
    lines = [
        csv_line(i).replace("2011", year)
        for i, year in enumerate(["", "NA", "2012.0", "99999", "20.5"], start=1)
    ]
    table, _ = read(tmp_path, "\n".join([HEADER, *lines]))
    assert table["year"].isna().tolist() == [True, True, False, True, True]
    assert table["year"][2] == 2012


def changed(**fields: str) -> str:
    """A table of one row in which some fields are written in another way."""
    row = dict(zip(catalogue.COLUMNS, csv_line(1).split(","), strict=True))
    return f"{HEADER}\n{','.join((row | fields).values())}\n"


@pytest.mark.parametrize("text", ["Top, wear", 'Top ""wear""', ", ,", ""])
def test_a_quoted_comma_in_any_column_shifts_none(tmp_path, text):
    table, malformed = read(tmp_path, changed(subCategory=f'"{text}"'))
    assert table["subCategory"][0] == text.replace('""', '"')
    assert (table["articleType"][0], table["year"][0], malformed) == ("Shirts", 2011, 0)


def test_a_table_in_which_everything_is_quoted(tmp_path):
    lines = [HEADER, csv_line(1, name="one"), csv_line(2, name="two")]
    quoted = "\n".join('"' + line.replace(",", '","') + '"' for line in lines)
    table, malformed = read(tmp_path, quoted)
    plain, _ = read(tmp_path / "plain", "\n".join(lines))
    pd.testing.assert_frame_equal(table, plain)
    assert malformed == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("gender", b"men"),
        ("gender", b" Men"),
        ("gender", b"WOMEN"),
        ("gender", "\uff2d\uff45\uff4e".encode()),  # wide letters
        ("gender", "Men\u200b".encode()),  # a space of no width
        ("gender", b"M\xe9n"),
        ("gender", b"Woman"),
        ("gender", b"Men's"),
        ("masterCategory", b"Accessory"),
        ("masterCategory", b"Accesories"),
        ("masterCategory", "Apparel\u00c2".encode()),
        ("masterCategory", b"accessories"),
        ("masterCategory", b"Apparel "),
        ("masterCategory", "\u00a0Apparel".encode()),
        ("masterCategory", b"App\xffarel"),
    ],
)
def test_our_words_in_other_letters_are_refused_not_read_as_others(
    tmp_path, column, value
):
    content = changed(**{column: "HERE"}).encode().replace(b"HERE", value)
    with pytest.raises(InputError, match=column) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("gender", ["Boys", "Girls", "Unisex"])
@pytest.mark.parametrize(
    "category", ["Footwear", "Personal Care", "Free Items", "Sporting Goods", "Home"]
)
def test_other_words_stay_what_they_are(tmp_path, gender, category):
    table, _ = read(tmp_path, changed(gender=gender, masterCategory=category))
    assert catalogue.labels(table).tolist() == [-1]


def test_what_is_not_utf8_costs_no_row(tmp_path):
    content = changed(productDisplayName="Caf_").encode().replace(b"_", b"\xe9")
    table, _ = read(tmp_path, content)
    assert table["productDisplayName"].tolist() == ["Caf\N{REPLACEMENT CHARACTER}"]


def test_digits_of_other_scripts_are_no_year(tmp_path):
    table, _ = read(tmp_path, changed(year="\u0662\u0660\u0661\u0661"))
    assert table["year"].isna().all()


@pytest.mark.parametrize("line", ["x" * 10**6, '"' * 10**5, '"x' * 10**5, '"a"",' * 9])
@pytest.mark.parametrize("before", ["", HEADER + "\n", HEADER + "\n1,Men,"])
def test_a_huge_line_is_not_quoted_whole(tmp_path, before, line):
    with pytest.raises(InputError) as error:
        read(tmp_path, before + line)
    assert len(str(error.value)) <= 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found none"),
        (changed(id="\u0661"), "begin with a number"),
        (changed(id="0" * 19), "begin with a number"),
        (changed(subCategory='"Topwear'), "expected 10 fields"),
        (changed(subCategory="Top, wear"), "id 1 has a comma in one of its first"),
        (changed(subCategory="Top, wear", season=""), "id 1 has a comma in one of"),
        (changed(baseColour="Red, blue", season="NA"), "id 1 has a comma in one of"),
        (HEADER + ",\n", "found id, gender"),
        (",".join(catalogue.COLUMNS[::-1]), "found productDisplayName"),
        ((HEADER + "\n").encode("utf-16"), "expected the columns"),
        (f"{HEADER}\n{',' * 9}\n", "begin with a number"),
        (f"{HEADER}\n{csv_line(7)}\n{csv_line('007')}\n", "id 7 comes twice"),
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
