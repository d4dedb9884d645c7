"""The study's claims: from numbers to verdicts, on made-up runs of known answers."""

import copy
import functools
import json
import math
import re

import numpy as np
import pytest
from bs4 import BeautifulSoup
from conftest import from_chapter
from hypothesis import given
from hypothesis import strategies as st

from fashionlib import artifacts, claims, runtime
from fashionlib.evaluation import Estimate, no_estimate

chapter_3b = from_chapter("03b_methods")

KEPT = {
    "resolution": {
        "variants": {
            "64x64, imagenet stem": {"against_224": {"class": [-0.02, [-0.03, -0.01]]}}
        }
    },
    "transfer": {
        "not_measured": {"imagenet": "no network"},
        "starts": {
            "catalogue": {
                "fine-tuning": {
                    part: {
                        "gain": 0.05,
                        "gain_ci95": [0.02, 0.08],
                        "gain_products_ci95": [0.04, 0.06],
                    }
                    for part in ("0.01", "0.1", "1")
                }
            }
        },
    },
}


@pytest.fixture
def metrics() -> dict:
    """A run of ResNet152 from ImageNet on photographs in which claims hold, if any can.

    Of each class 90 images of 100 are correct, and 2 are taken for each other class.
    """
    guided = {
        "edge_minus_floor": (0.3, [0.2, 0.4]),
        "outline_density_ratio": (1.5, [1.2, 1.8]),
        "trained_minus_random_edge_similarity": (0.2, [0.1, 0.3]),
        "face_saliency_share": (0.6, [0.55, 0.65]),
        "face_trained_minus_random_share": (0.1, [0.05, 0.15]),
        "face_blurred_minus_elsewhere": (0.1, [0.02, 0.18]),
    }
    density = {key: (2.0, [1.5, 2.5]) for key in ("guided", "edges", "random_network")}
    counts = {"train": 30_000, "validation": 4_000, "test": 6_000}
    return {
        "data": {
            "synthetic": False,
            "rows": 44_446,
            "images": 44_441,
            "split_counts": counts,
        },
        "classifier": {
            "architecture": "resnet152",
            "weights": "imagenet",
            "accuracy": {"test": 0.9175},
            "test_accuracy_ci95": [0.91, 0.925],
            "minus_study_ci95": [-0.01, 0.01],
            "confusion": [[90 if k == j else 2 for j in range(6)] for k in range(6)],
            "least_top1_error": "resnet152",
            "least_top5_error": "resnet152",
        },
        "guided_backprop": stored(guided)
        | {"face_reason": "", "face_density": stored(density)},
        "dcgan": {"1": gan(), "2": gan()},
    }


def stored(estimates: dict) -> dict:
    """As metrics.json has them: the number, and its interval under `<key>_ci95`."""
    found = {}
    for key, (value, interval) in estimates.items():
        found |= {key: value, f"{key}_ci95": interval}
    return found


def gan(distance=0.1, ratio=1.1, recall=0.6, accepted=0.9) -> dict:
    """One class; as it is, nothing fails."""
    return {
        "frechet_distance": distance,
        "real_real_distance": 0.1,
        "baseline_frechet_distance": 20.0,
        "recall": recall,
        "accepted_fraction": accepted,
        "nearest_neighbour_ratio": ratio,
    }


def verdicts(metrics: dict) -> dict[str, claims.Verdict]:
    return {found.claim: found for found in claims.verdicts(metrics, KEPT)}


# --- intervals and readings -----------------------------------------------------------


def test_the_side_of_an_interval():
    assert claims.side([0.1, 0.2]) == "above"
    assert claims.side([-0.2, -0.1]) == "below"
    assert claims.side([-0.1, 0.1]) == claims.side([0.0, 0.1]) == "undecided"
    assert claims.side([0.1, 0.2], 1) == "below"


@pytest.mark.parametrize(
    "bounds",
    [
        None,
        [math.nan] * 2,
        [1, math.inf],
        [math.inf] * 2,
        [None, None],
        [1, None],
        [2, 1],
        [1],
        [],
        [1, 2, 3],
        5,
    ],
)
def test_an_interval_that_is_missing_or_not_finite_decides_nothing(bounds):
    assert not claims.is_interval(bounds)
    assert claims.side(bounds) == claims.side(bounds, 1) == "undecided"


def test_two_networks_are_told_apart_where_one_interval_lies_above_the_other():
    low, high, wide = Estimate(1, [0, 2]), Estimate(4, [3, 5]), Estimate(2, [0, 4])
    assert chapter_3b.tells_apart(high, low) is True
    assert chapter_3b.tells_apart(low, high) is False
    assert chapter_3b.tells_apart(wide, low) is False
    assert chapter_3b.tells_apart(high, no_estimate(1)) is None
    assert chapter_3b.tells_apart(no_estimate(1), low) is None


@pytest.mark.parametrize("seed", range(12))
def test_images_without_a_head_make_no_method_blind(seed):
    """Two of six drawings show no head: with six seeds of twelve they stopped 3b."""
    from fashionlib import faithfulness

    rng = np.random.default_rng(seed)
    area = np.array([0.2, 0.3, 0.2, 0.25, 0, 0])
    where = {"head": area * rng.uniform(2.5, 3, 6), "garment": area * 0.9}
    of = {
        name: faithfulness.density_ratio(x, area, seed=seed)
        for name, x in where.items()
    }
    assert chapter_3b.tells_apart(of["head"], of["garment"]) is True
    nothing = faithfulness.density_ratio(np.zeros(6), np.zeros(6), seed=seed)
    assert chapter_3b.tells_apart(nothing, of["garment"]) is None


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(-1, 1))
def test_a_mirrored_interval_lies_on_the_other_side(low, width, reference):
    mirrored = claims.side([-low - width, -low], -reference)
    other = {"above": "below", "below": "above", "undecided": "undecided"}
    assert claims.side([low, low + width], reference) == other[mirrored]


@pytest.fixture
def shown(monkeypatch) -> list:
    """What a cell of a notebook displays: (Markdown, metadata)."""
    from IPython.core.displaypub import CapturingDisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setattr(InteractiveShell, "_instance", None)
    config = Config({"HistoryManager": {"enabled": False}})
    shell = InteractiveShell.instance(config=config)
    publisher = CapturingDisplayPublisher(parent=shell, shell=shell)
    monkeypatch.setattr(shell, "display_pub", publisher)
    yield publisher.outputs
    InteractiveShell.clear_instance()


def test_a_reading_says_in_its_metadata_whether_it_holds(shown):
    claims.reading(2 > 1, "It **helps**.", "It does not.")
    claims.reading(None, "It **helps**.", "It does not: 0.")
    texts = [output["data"]["text/markdown"] for output in shown]
    assert texts == ["It **helps**.", "It does not: 0."]
    assert [output["metadata"] for output in shown] == [
        {"reading": True},
        {"reading": False},
    ]


# --- sentences ------------------------------------------------------------------------


def test_a_sentence_by_hand():
    values = stored({"deletion_minus_random_foreground": (0.0555, [0.0349, 0.0761])})
    values["insertion_minus_random_foreground"] = Estimate(-0.1, [-0.2, 0.1])
    first, second = re.findall(r"\? (.*?)\.(?= |$)", claims.tell("faithful", values))
    assert first.endswith(", +0.056 (+0.035 to +0.076)")
    assert second == "Undecided, -0.100 (-0.200 to +0.100)"


def test_a_result_worse_than_chance_is_said():
    """The kept run `small`: both tests of faithfulness speak against the maps."""
    deletion, insertion = (0.056, [0.035, 0.076]), (-0.065, [-0.091, -0.039])
    keys = "deletion_minus_random_foreground", "insertion_minus_random_foreground"
    values = stored(dict(zip(keys, (deletion, insertion), strict=True)))
    assert (
        claims.tell("faithful", values).count("? No, they are worse than chance,") == 2
    )
    values = stored(dict(zip(keys, (insertion, deletion), strict=True)))
    assert claims.tell("faithful", values).count("? Yes,") == 2
    values = stored(dict.fromkeys(keys, (0.01, [-0.1, 0.1])))
    assert claims.tell("faithful", values).count("? Undecided,") == 2
    assert claims.tell("faithful", {}).count("? Undecided: ") == 2
    kept = artifacts.measured("small-cpu")["guided_backprop"]
    assert claims.tell("faithful", kept).count("worse than chance,") == 2


TOPICS = ("outline", "sanity", "faithful", "face", "face_controls", "useless_head")
TOPICS += ("resizing", "transfer_gain", "transfer_minus_imagenet")


@pytest.mark.parametrize("topic", TOPICS)
def test_every_question_has_three_answers_and_a_fourth_without_an_interval(topic):
    for key, question in claims.texts()[topic].items():
        reference, answers = question["reference"], set()
        for low, high in ((1, 2), (-2, -1), (-1, 1)):
            values = stored({key: (reference, [reference + low, reference + high])})
            told = claims.tell(topic, values).split("?")
            place = list(claims.texts()[topic]).index(key) + 1
            answers.add(re.match(r" (Yes|No|Undecided)\b", told[place]).group(1))
        assert answers == {"Yes", "No", "Undecided"}


@pytest.mark.parametrize("value", [0.3, None, Estimate(0.3, [math.nan, math.inf])])
def test_a_number_without_an_interval_is_undecided(value):
    sentence = claims.tell("sanity", {"randomization_minus_floor": value})
    assert "? Undecided: there is no interval." in sentence
    assert claims.tell("sanity", {}) == sentence
    values = {
        "randomization_minus_floor": value,
        "randomization_minus_floor_reason": "{x}",
    }
    assert "? Undecided: {x}." in claims.tell("sanity", values)


def test_a_number_that_is_none_is_not_told_whatever_its_interval():
    for value in (None, math.nan, math.inf):
        values = stored({"randomization_minus_floor": (value, [0.1, 0.2])})
        assert "? Undecided: " in claims.tell("sanity", values)


def test_methods_that_tell_two_networks_apart():
    apart = {"guided_grad_cam": True, "smoothgrad": None, "gradient": False}
    methods = {name: {"tells_networks_apart": value} for name, value in apart.items()}
    sentence = claims.known_networks({"methods": methods | {"occlusion": {}}})
    told, undecided = sentence.removesuffix(".").split(";")
    assert told.startswith("1 of 4")
    assert told.endswith(": guided Grad-CAM")
    assert undecided.endswith(": SmoothGrad, occlusion")
    methods = {"gradient": {"tells_networks_apart": False}}
    assert claims.known_networks({"methods": methods}).count(": none") == 2


@pytest.mark.parametrize("run", ["small-cpu", "small-224-cpu"])
def test_a_kept_answer_is_that_of_its_intervals(run):
    for found in artifacts.measured(run)["guided_backprop"]["methods"].values():
        pair = []
        for place in ("head", "garment"):
            key = f"head_density_{place}"
            pair.append(Estimate(found[key], found[f"{key}_ci95"]))
        assert found["tells_networks_apart"] == chapter_3b.tells_apart(*pair)


@pytest.mark.parametrize(
    "guided",
    [
        {},
        {"methods": None},
        {"methods": {"gradient": {}}},
        {"methods": {"gradient": {"tells_networks_apart": None}}},
    ],
)
def test_an_appendix_that_has_not_run_is_no_answer(guided):
    assert "not measured here" in claims.known_networks(guided)


def test_every_question_has_its_answer_and_its_number():
    for topic in TOPICS:
        for question in claims.texts()[topic].values():
            text = question["say"].format(answer="Yes", found=Estimate(2, [1, 3]))
            assert "? Yes" in text
            assert " to " in text
            assert question["reference"] in (0, 0.5, 1)


# --- the nine claims ------------------------------------------------------------------


def test_a_run_in_which_every_claim_holds(metrics):
    found = verdicts(metrics)
    assert list(found) == [f"C{number}" for number in range(1, 10)]
    for claim in ("C2", "C5", "C6", "C7", "C8"):
        assert found[claim].verdict.startswith("holds"), claim
    accuracy = "91.75% (91.00% to 92.50%)"
    assert found["C3"].measured == f"{accuracy} by resnet152, first weights imagenet"
    assert found["C5"].measured == claims.tell("outline", metrics["guided_backprop"])
    assert found["C4"].verdict.startswith("undecided: ")
    assert found["C9"].verdict == "Women/Accessories: holds; Men/Apparel: holds"
    assert all(isinstance(text, str) for row in found.values() for text in row)


@pytest.mark.parametrize(
    ("interval", "word"),
    [([0.01, 0.03], "above"), ([-0.03, -0.01], "below"), ([-0.01, 0.01], "not to be")],
)
def test_the_accuracy_is_decided_by_resnet152_from_imagenet(metrics, interval, word):
    network = metrics["classifier"]
    network["minus_study_ci95"] = interval
    assert claims.accuracy(metrics)[1].startswith(word)
    network["architecture"] = "resnet18"
    measured, verdict = claims.accuracy(metrics)
    assert "resnet18" in measured
    assert verdict.startswith("by another network")
    assert word in verdict
    assert "not measured here" in verdict
    network |= {"architecture": "resnet152", "weights": "my/weights.pth"}
    assert claims.accuracy(metrics)[1].startswith("by another network")


def test_the_counts_are_judged_on_kaggles_catalogue_only(metrics):
    assert claims.data(metrics)[1].startswith("does not hold")
    metrics["data"]["rows"] = 1268
    assert claims.data(metrics)[1].startswith("not measured here")
    assert "78 : 8 : 14" in claims.data(metrics)[1]
    reported = [31_395, 3_240, 5_600]  # by the study
    assert [round(100 * count / sum(reported)) for count in reported] == [78, 8, 14]


def test_bias_is_two_questions_with_a_test_each(metrics):
    """Neither the fractions nor the recalls need move for the other to do so."""
    network = metrics["classifier"]
    measured, verdict = claims.bias(metrics)
    assert "+0.00% (-2.01% to +2.01%), for Men/Accessories" in measured
    assert measured.count("90.0% (82.6% to 94.5%)") == 2
    words = "fractions not shown to be unequal (p = 1), recalls not shown to be unequal"
    assert verdict == f"undecided: {words} (p = 1)"
    # 40 watches of each gender are taken for the other: no fraction is shifted.
    network["confusion"][0][:2], network["confusion"][1][:2] = [50, 42], [42, 50]
    measured, verdict = claims.bias(metrics)
    assert "+0.00%" in measured
    assert "between 50.0%" in measured
    assert "and 90.0%" in measured
    assert verdict.startswith(
        "the answers differ: fractions not shown to be unequal (p"
    )
    assert "recalls unequal" in verdict
    # Of each class 20 are taken for the next: of the last, for none.
    network["confusion"] = [[80 * (k == j) for j in range(6)] for k in range(6)]
    for k in range(5):
        network["confusion"][k][k + 1] = 20
    network["confusion"][5][4] = 20
    measured, verdict = claims.bias(metrics)
    assert measured.startswith("fraction predicted minus true: at most -3.33%")
    assert "for Men/Accessories; recall between 80.0%" in measured
    assert verdict.startswith("the answers differ: fractions unequal (p = ")
    network["confusion"][0][:2] = [50, 50]
    assert claims.bias(metrics)[1].startswith("does not hold: fractions unequal (p = ")


def test_bias_is_asked_of_the_classes_that_occur(metrics):
    network = metrics["classifier"]
    network["confusion"] = [[0] * 6 for _ in range(6)]
    network["confusion"][3] = [0, 0, 4, 6, 0, 0]
    measured, verdict = claims.bias(metrics)
    assert "40.00%" in measured
    assert (
        "recall between 60.0% (31.3% to 83.2%) for Women/Apparel and 60.0%" in measured
    )
    assert verdict.startswith("the answers differ: fractions unequal (p = 0.046)")


@pytest.mark.parametrize("run", ["small-cpu", "small-224-cpu"])
def test_a_kept_run_answers_both_questions_of_bias(run):
    measured, verdict = claims.bias(artifacts.measured(run))
    assert re.search(r"at most -\d.\d\d% \(-.*\), for Women/Other; recall", measured)
    assert re.search(r": fractions .* \(p = .*\), recalls unequal \(p = .*\)$", verdict)


def test_the_parts_of_a_claim_may_differ(metrics):
    guided = metrics["guided_backprop"]
    guided["outline_density_ratio_ci95"] = [0.8, 0.9]
    assert claims.outline(metrics)[1] == "the answers differ"
    guided["edge_minus_floor_ci95"] = [-0.2, -0.1]
    guided["trained_minus_random_edge_similarity_ci95"] = [-0.2, -0.1]
    assert claims.outline(metrics)[1] == "does not hold"
    assert claims.outline(metrics)[0].count("No, the opposite") == 3


@pytest.mark.parametrize("bounds", [None, [math.nan] * 2, [0.4, 0.2], [0.2]])
def test_a_part_without_an_interval_leaves_the_claim_undecided(metrics, bounds):
    metrics["guided_backprop"]["edge_minus_floor_ci95"] = bounds
    measured, verdict = claims.outline(metrics)
    assert verdict == "undecided"
    assert measured.count("? Undecided: ") == 1
    assert measured.count("? Yes, ") == 2


def test_a_null_gives_its_reason(metrics):
    guided = metrics["guided_backprop"]
    guided |= {"edge_minus_floor": None, "edge_minus_floor_ci95": None}
    guided["edge_minus_floor_reason"] = "too few values for an interval: 1"
    measured, verdict = claims.outline(metrics)
    assert "? Undecided: too few values for an interval: 1." in measured
    assert verdict == "undecided"


def test_an_outline_without_intervals_is_undecided(metrics):
    guided = metrics["guided_backprop"]
    metrics["guided_backprop"] = {
        key: value for key, value in guided.items() if not key.endswith("_ci95")
    }
    assert claims.outline(metrics)[1] == "undecided"


def test_faces_that_cannot_be_found_are_not_measured(metrics):
    metrics["guided_backprop"] = {"face_reason": "images of 80x60 are too small"}
    measured, verdict = claims.face(metrics)
    assert measured == "nothing"
    assert verdict.startswith("not measured here: images of 80x60 are too small")


def test_the_face_needs_more_than_a_dense_map(metrics):
    guided = metrics["guided_backprop"]
    guided["face_saliency_share_ci95"] = [0.17, 0.19]
    guided["face_blurred_minus_elsewhere_ci95"] = [-0.01, 0.01]
    measured, verdict = claims.face(metrics)
    answers = re.findall(r"\? (Yes|No|Undecided)", measured)
    assert answers == ["Yes", "No", "Yes", "Undecided", "Yes", "Yes"]
    assert verdict == "the answers differ"


def test_resizing_loses_what_is_lower_at_64():
    assert "Yes, by +2.0 (+1.0 to +3.0) points" in claims.resizing(KEPT)[0]
    kept = copy.deepcopy(KEPT["resolution"])
    variant = kept["variants"]["64x64, imagenet stem"]
    variant["against_224"]["class"] = [0.02, [0.01, 0.03]]
    assert claims.resizing({"resolution": kept})[1].startswith("does not hold")


def test_transfer_takes_the_wider_of_two_intervals():
    kept = copy.deepcopy(KEPT)
    gains = kept["transfer"]["starts"]["catalogue"]["fine-tuning"]
    gains["1"]["gain_products_ci95"] = [-0.01, 0.06]
    measured, verdict = claims.transfer(kept)
    assert "+5.0 (+2.0 to +8.0)" in measured
    assert "Undecided, +5.0 (-1.0 to +8.0)" in measured
    assert verdict.startswith("the answers differ against random first weights")
    assert "not measured here: against ImageNet's weights" in verdict


def test_transfer_is_judged_against_imagenet_where_it_was_a_start():
    """Clothes win with few labels, a tenth leaves it open, ImageNet wins with all."""
    kept = copy.deepcopy(KEPT)
    kept["transfer"] |= {"not_measured": {}}
    starts = kept["transfer"]["starts"]
    starts["imagenet"] = {"fine-tuning": {}}
    found = {  # over seeds, over images: the wider of both decides
        "0.01": (0.04, [0.01, 0.07], [0.03, 0.05]),
        "0.1": (0.01, [0.005, 0.015], [-0.002, 0.022]),
        "1": (-0.02, [-0.03, -0.01], [-0.025, -0.015]),
    }
    for part, (gain, seeds, products) in found.items():
        values = dict(minus_imagenet=gain, minus_imagenet_ci95=seeds)
        values["minus_imagenet_products_ci95"] = products
        starts["catalogue"]["fine-tuning"][part] |= values
    measured, verdict = claims.transfer(kept)
    few, some, every = measured.split("? ")[1:]
    assert few.startswith("Yes, +4.0 (+1.0 to +7.0) points.")
    assert some.startswith("Undecided, +1.0 (-0.2 to +2.2) points.")
    assert every == "No, the opposite, -2.0 (-3.0 to -1.0) points."
    assert verdict.startswith("the answers differ against ImageNet's weights")
    assert "not measured" not in verdict
    tuned = starts["catalogue"]["fine-tuning"]
    tuned |= {"0.01": tuned["1"], "0.1": tuned["1"]}
    assert claims.transfer(kept)[1].startswith("does not hold against ImageNet")
    del tuned["1"]["minus_imagenet_ci95"]
    text = claims.verdicts({}, kept)[7].verdict
    assert text.startswith("not measured here: metrics.json lacks 'minus_imagenet_ci95")


FAILS = {
    "copies of training images": {"ratio": 0.5},
    "no nearer to real images than mean plus noise": {"distance": 20.0},
    "farther from real images than these": {"distance": 0.11},
    "most of the variety of real images is missing": {"recall": 0.5},
    "most are not taken for their class": {"accepted": 0.5},
}


@pytest.mark.parametrize("words", FAILS)
def test_generated_images_are_judged_class_by_class(metrics, words):
    metrics["dcgan"]["2"] = gan(**FAILS[words])
    measured, verdict = claims.gan(metrics)
    assert measured.startswith(
        "Women/Accessories: distance to real images 0.10, of real"
    )
    for figure in ("of mean plus noise 20.00; recall 60%; accepted 90%", "ratio 1.10"):
        assert figure in measured
    first, second = verdict.split("; ")
    assert first == "Women/Accessories: holds"
    assert second.startswith("Men/Apparel: fails: ")
    assert words in second
    assert second.count(", ") == (words.startswith("no nearer"))  # farther as well


def test_a_class_without_a_generator_is_left_out_with_its_reason(metrics):
    metrics["dcgan"]["1"] = {"images": 3, "reason": "3 training images"}
    measured, verdict = claims.gan(metrics)
    first, second = measured.split("; ", 1)
    assert first == "Women/Accessories: 3 training images"
    assert second.startswith("Men/Apparel: distance")
    assert verdict == "Men/Apparel: holds"
    del metrics["dcgan"]["2"]
    assert claims.gan(metrics)[0] == first
    assert claims.gan(metrics)[1].startswith("not measured here")
    metrics["dcgan"] = {}
    assert claims.gan(metrics)[1].startswith("not measured here")


def test_the_kept_generators_fail_where_they_do():
    """Far from the floor, and about one real image of a hundred has a neighbour."""
    for run in ("small-cpu", "small-224-cpu"):
        verdict = claims.gan(artifacts.measured(run))[1]
        assert verdict.count(": fails: farther from real images") == 2
        assert verdict.count("most of the variety of real images is missing") == 2


# --- what is missing decides nothing --------------------------------------------------


def leaves(values: dict, path: tuple = ()) -> list[tuple]:
    """Paths of all entries of nested dictionaries, those that hold others too."""
    paths = []
    for key, value in values.items():
        paths.append((*path, key))
        if isinstance(value, dict):
            paths += leaves(value, (*path, key))
    return paths


GONE = {
    "null": None,
    "nan": math.nan,
    "inf": math.inf,
    "interval of null": [None, None],
    "interval of nan": [math.nan, math.nan],
    "absent": "delete",
}


@pytest.mark.parametrize("gone", GONE)
def test_a_claim_that_lacks_a_number_is_not_decided(metrics, gone):
    """Every key by turns: what it changes is not measured, or undecided."""
    everything = metrics | KEPT
    plain = claims.verdicts(everything)
    no_part = (*claims.texts()["face_controls"], "imagenet")  # of the verdicts
    changed = set()
    for path in leaves(everything):
        interval = path[-1].endswith("_ci95")
        of_class = path[0] == "dcgan" and len(path) == 2  # each is judged by its name
        if of_class or (isinstance(GONE[gone], list) and not interval):
            continue
        broken = copy.deepcopy(everything)
        place = functools.reduce(lambda values, key: values[key], path[:-1], broken)
        place[path[-1]] = GONE[gone]
        if gone == "absent":
            del place[path[-1]]
        for was, row in zip(plain, claims.verdicts(broken), strict=True):
            assert all(isinstance(text, str) for text in row)
            assert not re.search(r"\bnan\b|\binf\b|None", " ".join(row)), path
            if row != was and path[-1].removesuffix("_ci95") not in no_part:
                assert re.match("not measured here|undecided", row.verdict), path
                changed.add(row.claim)
    intervals = {"C3", "C5", "C7", "C8"}
    assert changed >= (intervals if isinstance(GONE[gone], list) else set(studies()))


def studies() -> list[str]:
    return list(claims.texts()["study"])


def test_a_verdict_depends_on_its_numbers_alone(metrics, monkeypatch):
    """No file, no clock: words are read once, and the metrics stay as they are."""
    import builtins
    import time

    before, expected = copy.deepcopy(metrics), claims.verdicts(metrics, KEPT)
    for module, name in ((builtins, "open"), (time, "time"), (artifacts, "measured")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("not pure"))
    assert claims.verdicts(metrics, KEPT) == expected
    assert metrics == before
    found = {row.claim: row for row in claims.verdicts(metrics)}
    for claim in ("C6", "C8"):
        assert found[claim].verdict.startswith("not measured here")


def test_photographs_or_not_has_to_be_known(metrics):
    del metrics["data"]["synthetic"]
    found = verdicts(metrics)
    for claim in ("C3", "C4", "C5", "C7", "C9"):
        assert found[claim].verdict.startswith("not measured here"), claim
        assert "synthetic" in found[claim].verdict
    assert len(claims.verdicts({})) == 9


# --- kept runs ------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["small-cpu", "small-224-cpu"])
def test_a_mark_names_a_number_a_reason_and_what_it_affects(run):
    kept = artifacts.measured(run)
    subjects = {*claims.texts()["study"], "sanity", "faithful", "known_networks"}
    for mark in kept.get("superseded", []):
        place = kept
        for key in mark["key"].split("."):
            place = place[key]
        assert mark["reason"] in claims.texts()["superseded"]
        assert set(mark["affects"]) <= subjects


def test_a_mark_stands_beside_the_figure_until_the_run_is_made_again(metrics):
    reasons = claims.texts()["superseded"]
    plain = verdicts(metrics)
    key = {"key": "dcgan.2.recall", "reason": "first_images", "affects": ["C9"]}
    metrics["superseded"] = [key, key, key | {"reason": "new here", "affects": ["C5"]}]
    marked = verdicts(metrics)
    assert marked["C9"].measured.startswith(plain["C9"].measured)
    assert marked["C9"].measured.count(reasons["first_images"]) == 1
    assert "new here" in marked["C5"].measured
    for claim in ("C1", "C2", "C3", "C4", "C6", "C7", "C8"):
        assert marked[claim] == plain[claim]
    assert claims.mark(metrics, "sanity") == ""


@pytest.mark.parametrize("run", ["small-cpu", "small-224-cpu"])
def test_a_kept_run_stores_no_sentence(run):
    """Names and reasons only: chapter 6 makes its sentences from numbers."""

    def strings(value, key=""):
        if isinstance(value, dict):
            for name, item in value.items():
                yield from strings(item, name)
        elif isinstance(value, list):
            for item in value:
                yield from strings(item, key)
        elif isinstance(value, str) and not key.endswith("reason"):
            yield value

    for text in strings(
        {k: v for k, v in artifacts.measured(run).items() if k != "run"}
    ):
        assert len(text.split()) <= 4, text


def test_a_verdict_on_synthetic_images_says_so(metrics):
    metrics["data"]["synthetic"] = True
    found = verdicts(metrics)
    assert found["C3"].verdict.startswith("not measured here")
    for claim in ("C4", "C5", "C7", "C9"):
        assert "synthetic images" in found[claim].verdict, claim
    for claim in ("C2", "C6", "C8"):
        assert "synthetic images" not in found[claim].verdict, claim


@pytest.mark.parametrize(
    ("entry", "claim"),
    [("dcgan", "C9"), ("guided_backprop", "C5"), ("classifier", "C3"), ("data", "C1")],
)
def test_a_chapter_that_has_not_run_costs_its_verdicts_only(metrics, entry, claim):
    del metrics[entry]
    found = verdicts(metrics)
    assert len(found) == 9
    assert found[claim].measured == "nothing"
    assert found[claim].verdict.startswith("not measured here")
    assert entry in found[claim].verdict
    assert found["C6"].verdict.startswith("holds")


DAMAGED = {
    "data": (["C1", "C4"], [[], "x", 3, True]),
    "classifier": (["C2", "C3", "C4"], [[], "x", {"confusion": [[0] * 6] * 6}]),
    "guided_backprop": (["C5", "C7"], [[], 3]),
    "dcgan": (["C9"], ["x", {"7": gan()}]),
}


@pytest.mark.parametrize("entry", DAMAGED)
def test_an_entry_that_no_chapter_writes_costs_its_verdicts_only(metrics, entry):
    lost, values = DAMAGED[entry]
    for value in values:
        found = verdicts(metrics | {entry: value, "superseded": None})
        for claim in lost:
            assert found[claim].verdict.startswith("not measured here"), (value, claim)
        assert found["C6"].verdict.startswith("holds")
        assert found["C8"].verdict.startswith("holds")


def test_accuracies_of_one_image_are_above_nothing(shown):
    """Chapter 8 with a test set of one image: no interval, and no claim of a gain."""
    path = runtime.project_root() / "notebooks" / "08_transfer.ipynb"
    cells = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    (code,) = (cell for cell in cells if cell.startswith("best = "))
    word = Estimate(50.0, [10.0, 90.0])
    for best, holds in ((no_estimate(1), True), (word, True)):
        known = {"by_word": {"by the word alone": word}, "claims": claims}
        exec(code, known | {"accuracy": {"nothing": {"100 %": best}}})
        assert shown[-1]["metadata"] == {"reading": holds}


def test_the_commands_name_profiles_that_exist(metrics):
    metrics["data"] |= {"synthetic": True, "rows": 7}
    metrics["guided_backprop"]["face_reason"] = "no faces"
    text = " ".join(found.verdict for found in verdicts(metrics).values())
    commands = re.findall(r"make report PROFILE=([\w-]+) SOURCE=path/to\.zip", text)
    assert {"small", "small-224", "full"} <= set(commands)
    for profile in commands:
        assert (runtime.project_root() / "profiles" / profile).is_dir()


def test_the_table_shows_every_verdict_and_escapes_names(metrics):
    metrics["classifier"]["weights"] = "<b>$a$</b>.pth"
    rows = claims.verdicts(metrics, KEPT)
    page = BeautifulSoup(claims.verdict_table(rows).to_html(), "html.parser")
    lines = [[cell.text for cell in row.find_all("td")] for row in page.tbody("tr")]
    assert lines == [list(row) for row in rows]
    assert not page.find("b")


def test_a_verdict_is_shown_as_a_list_with_names_escaped(metrics):
    metrics["classifier"]["weights"] = "<b>*a*</b>.pth"
    shown = verdicts(metrics)["C3"]._repr_markdown_()
    titles = re.findall(r"^- \*\*(.+):\*\* \S", shown, flags=re.MULTILINE)
    assert titles == ["The study", "Measured here", "Verdict"]
    assert not re.search(r"<b>|\*a", shown)


def test_the_last_page_makes_its_sentences_from_numbers(tmp_path, monkeypatch, shown):
    """Chapter 6 on a run whose every entry holds a sentence: none is on the page."""
    from IPython.core.interactiveshell import InteractiveShell

    run = artifacts.measured("small-224-cpu")
    run.pop("superseded", None)
    names = ("data", "classifier", "guided_backprop", "average_saliency")
    entries = [run[name] for name in names]
    for entry in (*entries, *run["dcgan"].values()):
        entry |= {"verdict": "It is so.", "sentence": "It is so."}
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    artifacts.write_json(artifacts.folder("sample") / "metrics.json", run)
    path = runtime.project_root() / "notebooks" / "06_summary.ipynb"
    shell, page = InteractiveShell.instance(), ""
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            result = shell.run_cell("".join(cell["source"]))
            assert result.success, cell["id"]
            render = getattr(
                result.result, "to_html", lambda result=result: result.result
            )
            page += str(getattr(result.result, "_repr_markdown_", render)())
    page += "".join(str(output["data"]) for output in shown)
    assert "It is so." not in page
    text = BeautifulSoup(page, "html.parser").text
    for name in ("small", "small-224"):
        kept = artifacts.measured(f"{name}-cpu")
        assert claims.bias(kept)[1] in text
        assert claims.tell("faithful", kept["guided_backprop"]) in text
        for claim in ("C4", "C5", "C7", "C9", "sanity"):
            assert claims.mark(kept, claim).strip() in text
