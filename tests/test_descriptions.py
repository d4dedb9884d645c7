"""Figures in words: what is drawn comes out as names and numbers."""

import numpy as np

from fashionlib import plots

GREY = np.zeros((8, 8, 3), np.uint8)


def test_bars_have_their_names_and_heights():
    text = repr(
        plots.class_bars(
            {"training": [0.1, 0.2, 0.3, 0.4, 0.5, 0.123456], "found": [0] * 6}
        )
    )
    assert text.startswith(
        "share of images: training Men/Accessories 0.1, Women/Accessories 0.2, Men/Apparel 0.3,"
    )
    assert "Women/Other 0.123; found Men/Accessories 0," in text


def test_lines_have_their_ends_and_leave_out_what_is_not_there():
    first = {"epoch": 1, "train_loss": 1.2, "train_accuracy": 0.4}
    last = {
        "epoch": 2,
        "train_loss": 0.7,
        "train_accuracy": 0.8,
        "validation_accuracy": 0.7,
    }
    assert repr(plots.learning_curves([first, last])) == (
        "loss against epoch: train from 1.2 to 0.7. "
        "accuracy against epoch: train from 0.4 to 0.8; validation from 0.7 to 0.7."
    )


def test_points_with_intervals_stand_in_the_row_of_their_name():
    series = {
        "all": {"guided": (0.9, [0.8, 1.0])},
        "part": {"gradient": (0.1, [0.0, 0.2]), "guided": (0.5, [0.4, 0.6])},
    }
    assert repr(plots.scores(series, "rank correlation")) == (
        "rank correlation: all guided 0.9; part gradient 0.1, guided 0.5."
    )
    points = {"small": {"cost": 1.0, "accuracy": 0.5, "low": 0.4, "high": 0.6}}
    assert repr(plots.cost_and_accuracy(points, "seconds")).endswith(
        "against seconds: small 0.5."
    )
    stages = plots.cascade(
        ["head", "all"], {"Spearman": {"guided": [(0.9, [0.8, 1]), (0.1, [0, 0.2])]}}
    )
    assert repr(stages).endswith("from the head down to: guided head 0.9, all 0.1.")


def test_a_table_is_read_row_by_row():
    text = repr(plots.confusion(np.arange(36).reshape(6, 6)))
    assert text.startswith(
        "true class against predicted class: Men/Accessories 0 1 2 3 4 5; Women/Accessories 6 7 8"
    )


def test_pictures_are_named_by_their_labels_and_scattered_points_counted():
    assert (
        repr(plots.image_grid([GREY] * 3, ["a shoe", "a bag", "a shoe"]))
        == "Pictures: a shoe, a bag."
    )
    assert (
        repr(plots.picture_strips({"made\nhere": GREY[None]})) == "Pictures: made here."
    )
    assert repr(plots.not_measured("no face")) == "not measured here: no face."
    assert repr(plots.picture_sizes([60, 80], [80, 100])).endswith(
        "2 points, across 60 to 80, up 80 to 100."
    )
    assert (
        repr(plots.animation({1: GREY[None], 4: GREY[None]}))
        == "2 moments: epochs 1, 4."
    )


def test_long_descriptions_are_cut_between_words():
    text = repr(plots.image_grid([GREY] * 100, [f"number {i}" for i in range(100)]))
    assert len(text) < 720
    assert text.endswith(" and more.")
