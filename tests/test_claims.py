"""The study's claims: from numbers to verdicts, on made-up runs of known answers."""

import copy
import math
import re

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st

from fashionlib import claims, runtime
from fashionlib.evaluation import Estimate

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
    """A run of ResNet152 from ImageNet on photographs in which every claim holds."""
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
            "recall": [0.9, 0.9, 0.95, 0.94, 0.91, 0.8],
            "recall_ci95": [[0.85, 0.94]] * 5 + [[0.72, 0.87]],
            "recall_equality_p": 0.2,
            "largest_shift": 0.01,
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


def gan(distance: float = 5.0, ratio: float = 1.1) -> dict:
    return {
        "frechet_distance": distance,
        "real_real_distance": 0.1,
        "baseline_frechet_distance": 20.0,
        "recall": 0.01,
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
    "bounds", [None, [math.nan] * 2, [1, math.inf], [math.inf] * 2]
)
def test_an_interval_that_is_missing_or_not_finite_decides_nothing(bounds):
    assert claims.side(bounds) == "undecided"


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
    assert first == "Yes, +0.056 (+0.035 to +0.076)"
    assert second == "Undecided, -0.100 (-0.200 to +0.100)"


def test_a_result_worse_than_chance_is_said(metrics):
    """The kept run `small`: both tests of faithfulness speak against the maps."""
    values = {
        "deletion_minus_random_foreground": Estimate(0.056, [0.035, 0.076]),
        "insertion_minus_random_foreground": Estimate(-0.065, [-0.091, -0.039]),
    }
    sentence = claims.tell("faithful", values)
    assert "worse" in sentence.split("?")[0]
    assert "Yes, +0.056" in sentence
    assert "No, the opposite, -0.065" in sentence


@pytest.mark.parametrize("value", [0.3, None, Estimate(0.3, [math.nan, math.inf])])
def test_a_number_without_an_interval_is_undecided(value):
    sentence = claims.tell("sanity", {"randomization_minus_floor": value})
    assert "? Undecided: there is no interval." in sentence


def test_methods_that_tell_two_networks_apart():
    apart = {"guided_grad_cam": True, "smooth_grad": None, "gradient": False}
    methods = {name: {"tells_networks_apart": value} for name, value in apart.items()}
    sentence = claims.known_networks({"methods": methods | {"occlusion": {}}})
    assert sentence.startswith("1 of 4")
    assert sentence.endswith(": guided Grad-CAM.")
    methods = {"gradient": {"tells_networks_apart": None}}
    assert claims.known_networks({"methods": methods}).endswith(": none.")


@pytest.mark.parametrize("guided", [{}, {"methods": {"gradient": {}}}])
def test_an_appendix_that_has_not_run_is_no_answer(guided):
    assert "not measured here" in claims.known_networks(guided)


def test_every_question_has_its_answer_and_its_number():
    topics = ("outline", "sanity", "faithful", "face", "face_controls", "resizing")
    for topic in (*topics, "transfer"):
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
    assert found["C9"].verdict.startswith("no sign of copies; nearer")
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


def test_bias_is_decided_by_one_test_over_all_classes(metrics):
    measured, verdict = claims.bias(metrics)
    assert "80.0% (72.0% to 87.0%) for Women/Other" in measured
    assert "95.0% (85.0% to 94.0%) for Men/Apparel" in measured
    assert verdict.startswith("undecided: p = 0.2 ")
    metrics["classifier"]["recall_equality_p"] = 0.049
    assert claims.bias(metrics)[1].startswith("does not hold")


def test_the_parts_of_a_claim_may_differ(metrics):
    guided = metrics["guided_backprop"]
    guided["outline_density_ratio_ci95"] = [0.8, 0.9]
    assert claims.outline(metrics)[1] == "the answers differ"
    guided["edge_minus_floor_ci95"] = [-0.2, -0.1]
    guided["trained_minus_random_edge_similarity_ci95"] = [-0.2, -0.1]
    assert claims.outline(metrics)[1] == "does not hold"
    assert claims.outline(metrics)[0].count("No, the opposite") == 3


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
    assert verdict.startswith("the answers differ")
    assert "not measured here" in verdict
    kept["transfer"]["not_measured"] = {}
    assert "not measured here" not in claims.transfer(kept)[1]


def test_generated_images_are_judged_in_all_classes(metrics):
    measured = claims.gan(metrics)[0]
    assert "Women/Accessories: distance to real images 5.00" in measured
    assert "Men/Apparel" in measured
    metrics["dcgan"]["2"] = gan(distance=25, ratio=0.1)
    copied = claims.gan(metrics)[1]
    assert copied.startswith("copies")
    assert "not always nearer" in copied


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
