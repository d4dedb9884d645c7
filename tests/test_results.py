"""The figures of the README and of the benchmarks' page are those of the committed results."""

import json
from pathlib import Path

import pytest

from fashionlib import artifacts

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def small() -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / "small-cpu.json").read_text())


def test_the_readme_quotes_the_real_run(small):
    network = small["classifier"]
    accuracy = [f"{100 * network['accuracy'][part]:.2f}" for part in ("train", "validation", "test")]
    low, high = (f"{100 * bound:.2f}" for bound in network["test_accuracy_ci95"])
    row = f"| `small` | {' | '.join(accuracy)} | {low} to {high} | {network['architecture']}"
    assert row in (ROOT / "README.md").read_text()
    assert f"{small['run']['date']}" in (ROOT / "README.md").read_text()


def test_the_real_run_shows_the_facts_of_the_catalogue(small):
    data = small["data"]
    assert (data["rows"], data["malformed_rows"], data["images"], data["rows_without_image"]) == (44446, 22, 44072, 374)
    assert (data["duplicate_groups"], data["duplicate_label_conflicts"]) == (371, 6)
    assert sum(data["split_counts"].values()) == sum(data["class_counts"]) == data["products"]
    assert small["classifier"]["accuracy"]["test"] >= 0.92
    assert small["classifier"]["epochs"] == artifacts.parameters_of("02_resnet152", "small")["epochs"]
    assert set(artifacts.METRICS_OF) <= small.keys()


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
}


@pytest.mark.parametrize("name", RATIOS)
def test_the_page_of_the_benchmarks_shows_the_results(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measuring

    content = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    assert list(content["ratios"]) == RATIOS[name]
    section = (ROOT / "benchmarks" / "README.md").read_text().split(f"<!-- {name} -->\n")[1]
    assert section == measuring.table(content)


def test_every_result_has_a_page():
    results = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert results == {*RATIOS, "small-cpu"}
