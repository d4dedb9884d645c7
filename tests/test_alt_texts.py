"""Figures in words: what is drawn comes out as names and numbers."""

import numpy as np
import pytest
import seaborn as sns

from fashionlib import plots
from fashionlib.alt_texts import in_words
from fashionlib.evaluation import Estimate

GREY = np.zeros((8, 8, 3), np.uint8)


def test_bars_have_their_names_and_heights():
    bars = {"training": [0.1, 0.2, 0.3, 0.4, 0.5, 0.123456], "found": [0] * 6}
    text = in_words(plots.class_bars(bars))
    begin = "fraction of images: training Men/Accessories 0.1, Women/Accessories 0.2,"
    assert text.startswith(begin)
    assert "Women/Other 0.123; found Men/Accessories 0," in text


OWN = {  # a figure of the reader's own, and its words
    "names": (lambda ax: ax.bar(["a", "b"], [1, 2], label="n"), "n a 1, b 2."),
    "sideways": (lambda ax: ax.barh(["a", "b"], [1, 2], label="n"), "n a 1, b 2."),
    "places": (lambda ax: ax.bar([1, 3], [1, 2], 1, label="n"), "n 0.5 1, 2.5 2."),
    "bins": (lambda ax: ax.hist([1, 1, 3], 2), " 1 2, 2 1."),
}


@pytest.mark.parametrize("name", OWN)
def test_bars_without_the_six_classes_have_their_names_or_places(name):
    draw, words = OWN[name]
    with plots.axes() as (figure, ax):
        draw(ax)
    assert in_words(figure).endswith(words)


def test_lines_have_their_two_known_ends():
    epochs, nan = [1, 2], float("nan")
    loss = {"train": (epochs, [1.2, 0.7])}
    accuracy = {"train": (epochs, [0.4, 0.8]), "validation": (epochs, [nan, 0.7])}
    figure = plots.panels({"loss": loss, "accuracy": accuracy}, "epoch")
    assert in_words(figure) == (
        "loss: train begins at 1.2, ends at 0.7. accuracy against epoch: train begins "
        "at 0.4, ends at 0.8; validation begins at 0.7, ends at 0.7."
    )


def test_points_with_intervals_have_the_name_of_their_row():
    gradient = Estimate(0.1, [0.0, 0.2])
    guided = Estimate(0.5, [0.4, 0.6])
    series = {
        "all": {"guided": guided},
        "few": {"gradient": gradient, "guided": guided},
    }
    text = in_words(plots.estimates(series, "rank correlation"))
    assert text == "rank correlation: all guided 0.5; few gradient 0.1, guided 0.5."
    alone = in_words(plots.estimates({"": {"guided": guided}}, "density", 1))
    assert alone == "density: guided 0.5."


def test_a_table_is_read_row_by_row():
    with plots.axes() as (figure, ax):
        counts = np.arange(36).reshape(6, 6)
        counts[5, 5] = 1234
        sns.heatmap(counts, annot=True, fmt="d", cbar=False, ax=ax)
        ax.set_xticks(np.arange(6) + 0.5, plots.NAMES)
        ax.set_yticks(np.arange(6) + 0.5, plots.NAMES)
        ax.set(xlabel="predicted class", ylabel="true class")
    text = in_words(figure)
    rows = "Men/Accessories 0 1 2 3 4 5; Women/Accessories 6 7 8 9 10 11; Men/Apparel"
    assert text.startswith(f"true class against predicted class: {rows}")
    assert text.endswith("Women/Other 30 31 32 33 34 1234.")


def test_names_along_both_axes_are_no_table_without_a_number_in_each_cell():
    with plots.axes() as (figure, ax):
        ax.scatter([0, 1], [0, 1], label="2 sizes")
        ax.set_xticks([0, 1], ["a", "b"])
        ax.set_yticks([0, 1], ["c", "d"])
    assert in_words(figure) == "2 sizes."


def test_images_have_their_labels_and_clouds_their_size():
    grid = plots.image_grid([GREY] * 3, ["Men/Other", "a bag", "Men/Other"])
    assert in_words(grid) == "Images: Men/Other, a bag."
    assert in_words(plots.image_rows({"new\nshoes": [GREY]})) == "Images: new shoes."
    assert in_words(plots.text_figure("no face")) == "no face."
    with plots.axes() as (figure, ax):
        ax.scatter([60, 80], [80, 100], label="2 sizes")
        ax.axline((0, 0), slope=1, label="square")
        ax.set(xlabel="width", ylabel="height")
    assert in_words(figure) == "height against width: 2 sizes."


def test_the_text_form_of_a_figure_is_its_words():
    figure = plots.image_grid([GREY], ["a shoe"])
    assert repr(figure) == in_words(figure) == "Images: a shoe."


def test_long_words_are_cut_at_700_characters_between_words():
    titles = [f"number {i}" for i in range(200)]
    text = in_words(plots.image_grid([GREY] * 200, titles))
    assert 650 < len(text) <= 700
    assert text.endswith(" and more.")
