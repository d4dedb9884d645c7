"""Results kept in git: what follows from a number is recomputed, names are fixed."""

import json
import re

import numpy as np
import pytest
import torch

from fashionlib import artifacts, claims, evaluation, parameters, runtime

ROOT = runtime.project_root()
RUNS = ("small", "small-224")  # profiles whose whole course is kept
RATIOS = {
    "prepare": [
        "prepare_vs_notebook_loop",
        "prepare_vs_best_peer",
        "prepare_vs_opencv_eighth",
        "batches_vs_dataloader_64",
        "batches_vs_dataloader_224",
    ],
    "train": [
        "train_vs_reference_resnet18",
        "train_vs_reference_resnet152",
        "train_vs_same_arrays_resnet18",
    ],
    "saliency": [
        "guided_vs_captum_resnet18",
        "guided_limit_share_resnet18",
        "guided_bf16_vs_captum_resnet18",
        "guided_vs_captum_resnet152",
        "guided_limit_share_resnet152",
        "guided_bf16_vs_captum_resnet152",
        "class_averages_vs_maps",
    ],
    "gan": ["gan_vs_example", "gan_vs_example_in_memory"],
    "splits": [],
    "ablation": [],
    "gan_recipes": ["gan_best_vs_plain"],
    "resolution": [],
    "transfer": [],
}
FORMER = {"drawn", "set_aside", "variety", "alarms", "features"}  # names of keys


def kept_keys(content) -> set[str]:
    if isinstance(content, list):
        return set().union(*map(kept_keys, content))
    if isinstance(content, dict):
        return set(content).union(*map(kept_keys, content.values()))
    return set()


@pytest.fixture(params=RUNS)
def run(request) -> dict:
    return artifacts.measured(f"{request.param}-cpu")


def test_what_follows_from_the_confusion_matrix(run):
    network = run["classifier"]
    confusion = np.array(network["confusion"])
    found, count, answers = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    total = int(count.sum())
    expected = {
        "test_images": total,
        "recall": found / count,
        "precision": found / answers,
        "macro_f1": np.mean(2 * found / (count + answers)),
        "recall_ci95": [
            evaluation.wilson_interval(found[k], count[k]) for k in range(6)
        ],
        "recall_equality_p": evaluation.recall_equality(confusion),
        "true_distribution": count / total,
        "predicted_distribution": answers / total,
        "largest_shift": abs(count - answers).max() / total,
        "gender_errors": sum(confusion[i, i ^ 1] for i in range(6)),
        "category_errors": confusion[::2, ::2].sum()
        + confusion[1::2, 1::2].sum()
        - found.sum(),
        "test_accuracy_ci95": evaluation.wilson_interval(found.sum(), total),
        "minus_study_ci95": evaluation.newcombe_interval(
            (int(found.sum()), total), (round(0.9175 * 5600), 5600)
        ),
    }
    for key, value in expected.items():
        np.testing.assert_allclose(network[key], value, rtol=1e-6, err_msg=key)
    assert network["accuracy"]["test"] == pytest.approx(found.sum() / total)
    assert network["gender_gap"] == evaluation.gender_gap(confusion)
    kinds = [network[f"{kind}_errors"] for kind in ("gender", "category", "both")]
    assert sum(kinds) == total - found.sum()


def test_the_counts_of_a_run_agree(run):
    data = run["data"]
    split = sum(data["split_counts"].values())
    assert split == sum(data["class_counts"]) == data["products"]
    assert data["split_counts"]["test"] == run["classifier"]["test_images"]
    assert (
        sum(run["average_saliency"]["images_per_class"])
        == run["average_saliency"]["images"]
    )
    assert "/" not in data["source"], "no machine's folder"
    epochs = parameters.for_profile("02_resnet152", run["run"]["profile"])["epochs"]
    assert run["classifier"]["epochs"] == epochs


def test_no_sentence_and_no_former_name_is_kept(run):
    keys = kept_keys(run)
    assert not [key for key in keys if key.startswith("verdict_")]
    assert not keys & FORMER
    assert not kept_keys(artifacts.measured("gan_recipes")) & FORMER


def test_the_verdicts_of_a_run(run):
    found = {verdict.claim: verdict for verdict in claims.verdicts(run)}
    assert list(found) == [f"C{number}" for number in range(1, 10)]
    assert found["C1"].verdict.startswith("does not hold: one row too many")
    assert found["C3"].verdict.startswith("by another network: above")
    assert found["C4"].verdict.startswith("does not hold: p =")
    assert found["C5"].verdict == "holds"
    assert found["C6"].verdict.startswith("undecided")
    assert found["C9"].verdict.startswith("no sign of copies; nearer")
    assert "nan" not in " ".join(text for row in found.values() for text in row)


def test_the_sentences_of_the_photographs():
    """As chapters 3 and 4 printed them when these runs were made, number by number."""
    small, large = (
        artifacts.measured(f"{name}-cpu")["guided_backprop"] for name in RUNS
    )
    sentence = claims.tell("outline", small) + claims.tell("sanity", small)
    for number in (
        "+0.48 (+0.45 to +0.51)",
        "2.43 (2.30 to 2.57)",
        "+0.31 (+0.29 to +0.34)",
        "+0.17 (+0.15 to +0.20)",
    ):
        assert f"Yes, {number}" in sentence
    assert re.findall(r"(Yes|No|Undecided)\b", claims.tell("faithful", small)) == [
        "Yes",  # worse than chance in deletion
        "No",  # and in insertion
    ]
    assert "7 of 7" in claims.known_networks(small)
    assert "too small" in claims.face_sentence(small)
    face = claims.face_sentence(large)
    for number in (
        "Yes, 2.28 (2.16 to 2.39)",
        "No, the opposite, 18% (17% to 19%)",
        "Yes, +6.1% (+5.6% to +6.6%)",
        "Undecided, +0.0% (-0.9% to +0.9%)",
        "Yes, 1.48 (1.43 to 1.54)",
        "Yes, 1.40 (1.37 to 1.43)",
    ):
        assert number in face


def test_the_answers_that_blurring_changes_on_photographs():
    """Nobody's answer changed: the interval follows from the number of faces."""
    run = artifacts.measured("small-224-cpu")
    maps, averages = run["guided_backprop"], run["average_saliency"]
    none = torch.zeros(averages["face_images"], dtype=torch.bool)
    assert maps["face_blurred_answers_changed"] == 0
    assert maps["elsewhere_blurred_answers_changed"] == 0
    assert maps["face_blurred_minus_elsewhere"] == 0
    expected = evaluation.agresti_min_interval(none, none)
    assert maps["face_blurred_minus_elsewhere_ci95"] == pytest.approx(expected)
    densities = [bounds for bounds in averages["face_over_garment_ci95"] if bounds]
    assert len(densities) == 2
    assert all(low > 1 for low, _ in densities)


def test_the_real_run_shows_the_facts_of_the_catalogue():
    data = artifacts.measured("small-cpu")["data"]
    facts = {
        "rows": 44_446,
        "malformed_rows": 22,
        "images": 44_072,
        "rows_without_image": 374,
        "duplicate_groups": 371,
        "duplicate_label_conflicts": 6,
        "synthetic": False,
    }
    assert {key: data[key] for key in facts} == facts


@pytest.mark.parametrize("name", RATIOS)
def test_the_ratios_of_a_benchmark_have_their_fixed_names(name):
    content = artifacts.measured(name)
    assert list(content["ratios"]) == RATIOS[name]
    assert {"date", "commit", "machine", "versions", "rows"} <= content.keys()
    for row in content["rows"]:
        assert {"what", "value", "unit", "spread"} <= row.keys()


def test_the_page_of_the_benchmarks_shows_the_ratios():
    """Rows such as "| `prepare_vs_best_peer` | 1.09 |"."""
    values = {}
    for name in RATIOS:
        values |= artifacts.measured(name)["ratios"]
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+_vs_\w+)` \| ([\d.]+) \|", text, re.MULTILINE)
    assert shown
    for ratio, value in shown:
        assert float(value) == values[ratio], ratio


def test_the_readme_shows_the_accuracy_of_the_runs():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in RUNS:
        shown = re.search(
            rf"^\| `{name}` \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|", text, re.M
        )
        accuracy = artifacts.measured(f"{name}-cpu")["classifier"]["accuracy"]["test"]
        assert float(shown[1]) == pytest.approx(100 * accuracy, abs=0.005)


def test_every_result_is_known():
    """A GPU adds gpu.json, and a report of a profile its own file."""
    results = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    profiles = [path.name for path in (ROOT / "profiles").iterdir()]
    own = {f"{name}-{kind}" for name in profiles for kind in ("cpu", "gpu")}
    kept = {f"{name}-cpu" for name in RUNS}
    assert {*RATIOS, *kept} <= results <= {*RATIOS, "gpu", *own}
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
