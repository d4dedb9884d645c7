"""The figures of the README and of the benchmarks' page are those of the committed results."""

import json
from pathlib import Path

import pytest

from fashionlib import artifacts

ROOT = Path(__file__).parents[1]


def kept(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


@pytest.mark.parametrize("profile", ["small", "small-224"])
def test_the_readme_quotes_the_real_runs(profile):
    run, readme = kept(f"{profile}-cpu"), (ROOT / "README.md").read_text()
    network = run["classifier"]
    accuracy = [
        f"{100 * network['accuracy'][part]:.2f}"
        for part in ("train", "validation", "test")
    ]
    low, high = (f"{100 * bound:.2f}" for bound in network["test_accuracy_ci95"])
    row = f"| `{profile}` | {' | '.join(accuracy)} | {low} to {high} | {network['architecture']}"
    assert row in readme
    assert run["run"]["date"] in readme
    assert (
        network["epochs"] == artifacts.parameters_of("02_resnet152", profile)["epochs"]
    )
    assert set(artifacts.METRICS_OF) <= run.keys()
    assert "/" not in run["data"]["source"], "no machine's folder"


def test_the_real_run_shows_the_facts_of_the_catalogue():
    small = kept("small-cpu")
    data = small["data"]
    assert (
        data["rows"],
        data["malformed_rows"],
        data["images"],
        data["rows_without_image"],
    ) == (44446, 22, 44072, 374)
    assert (data["duplicate_groups"], data["duplicate_label_conflicts"]) == (371, 6)
    assert (
        sum(data["split_counts"].values())
        == sum(data["class_counts"])
        == data["products"]
    )
    assert small["classifier"]["accuracy"]["test"] >= 0.92


def test_what_the_last_page_says_about_faces_holds_in_the_photographs():
    """The kept run on photographs: the maps prefer the face, and the answer does not need it."""
    run = kept("small-224-cpu")
    assert all(
        low > 1
        for low, _ in filter(None, run["average_saliency"]["face_over_garment_ci95"])
    )
    maps = run["guided_backprop"]
    assert maps["face_blurred_answers_changed"] < 0.02
    assert maps["only_the_face_gender_accuracy"] > 0.75
    assert maps["only_the_face_answers_changed"] > maps["face_blurred_answers_changed"]


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


@pytest.mark.parametrize("name", RATIOS)
def test_the_page_of_the_benchmarks_shows_the_results(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measuring

    content = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert list(content["ratios"]) == RATIOS[name]
    section = (
        (ROOT / "benchmarks" / "README.md").read_text().split(f"<!-- {name} -->\n")[1]
    )
    assert section == measuring.table(content)


def test_the_readme_shows_the_ratios(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measuring

    assert (ROOT / "README.md").read_text().split("<!-- ratios -->\n")[
        1
    ] == measuring.overview()
    assert set(measuring.README) <= {
        name for names in RATIOS.values() for name in names
    }


def test_every_result_has_a_page():
    """A machine with a GPU adds gpu.json, and a report that `book --keep` keeps its own file."""
    results = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    own = {
        f"{profile.name}-{kind}"
        for profile in (ROOT / "profiles").iterdir()
        for kind in ("cpu", "gpu")
    }
    assert {*RATIOS, "small-cpu", "small-224-cpu"} <= results <= {*RATIOS, "gpu", *own}
