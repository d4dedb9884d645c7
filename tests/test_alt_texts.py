"""Figures in words: what is drawn comes out as names and numbers."""

import numpy as np

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


def test_lines_have_their_two_known_ends():
    first = {"epoch": 1, "train_loss": 1.2, "train_accuracy": 0.4}
    last = {"epoch": 2, "train_loss": 0.7, "train_accuracy": 0.8}
    last["validation_accuracy"] = 0.7
    assert in_words(plots.learning_curves([first, last])) == (
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
    points = in_words(plots.cost_and_accuracy({"small": (1.0, guided)}, "seconds"))
    assert points.endswith("against seconds: small 0.5.")


def test_a_table_is_read_row_by_row():
    text = in_words(plots.confusion_matrix(np.arange(36).reshape(6, 6)))
    rows = "Men/Accessories 0 1 2 3 4 5; Women/Accessories 6 7 8 9 10 11; Men/Apparel"
    assert text.startswith(f"true class against predicted class: {rows}")


def test_images_have_their_labels_and_clouds_their_size():
    grid = plots.image_grid([GREY] * 3, ["Men/Other", "a bag", "Men/Other"])
    assert in_words(grid) == "Images: Men/Other, a bag."
    assert in_words(plots.image_strips({"new\nshoes": [GREY]})) == "Images: new shoes."
    assert in_words(plots.text_figure("no face")) == "no face."
    sizes = in_words(plots.file_sizes([60, 80, 80], [80, 100, 100]))
    assert sizes.endswith("2 sizes, 60 to 80 pixels wide.")


def test_the_text_form_of_a_figure_is_its_words():
    figure = plots.image_row([GREY], ["a shoe"])
    assert repr(figure) == in_words(figure) == "Images: a shoe."


def test_long_words_are_cut_at_700_characters_between_words():
    titles = [f"number {i}" for i in range(200)]
    text = in_words(plots.image_grid([GREY] * 200, titles))
    assert 650 < len(text) <= 700
    assert text.endswith(" and more.")
