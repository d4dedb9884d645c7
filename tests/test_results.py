"""The figures of the README and of the benchmarks' page are those of the kept results.

Numbers are compared, not bytes: the text around them is for its readers.
"""

import ast
import json
import re

import pytest

from fashionlib import artifacts, parameters, runtime

ROOT = runtime.project_root()
KEPT = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))
RUNS = [name for name in KEPT if name.endswith(("-cpu", "-gpu"))]
RATIOS = {  # of every benchmark, larger is better
    "prepare": [
        "prepare_vs_notebook_loop",
        "prepare_vs_best_peer",
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
        "guided_vs_captum_resnet152",
        "guided_bf16_vs_captum_resnet18",
        "guided_limit_share_resnet18",
    ],
    "gan": ["gan_vs_example", "gan_vs_example_in_memory"],
}


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import measuring

    return measuring


def numbers(text: str) -> list[str]:
    return re.findall(r"\d[\d,.]*", text)


def between(page: str, name: str) -> str:
    """What a page holds between its two markers of this name."""
    return (ROOT / page).read_text().split(f"<!-- {name} -->\n")[1]


def test_docstrings_name_the_results_and_quote_no_figure_of_them():
    """A figure in a docstring stays when the result is measured again."""
    for path in (ROOT / "fashionlib").rglob("*.py"):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        if "benchmarks/results/" in docstring:
            quoted = r"\d (times|%|of)|images/s|a second"
            assert not re.search(quoted, docstring), path


@pytest.mark.parametrize("profile", ["small", "small-224"])
def test_the_readme_quotes_the_real_runs(profile):
    run, readme = artifacts.measured(f"{profile}-cpu"), (ROOT / "README.md").read_text()
    network = run["classifier"]
    rows = "".join(re.findall(rf"^\| `{profile}` \|.*", readme, flags=re.MULTILINE))
    accuracies = [network["accuracy"][part] for part in ("train", "validation", "test")]
    for value in (*accuracies, *network["test_accuracy_ci95"]):
        assert f"{100 * value:.2f}" in rows
    assert network["architecture"] in rows
    epochs = parameters.for_profile("02_resnet152", profile)["epochs"]
    assert network["epochs"] == epochs


@pytest.mark.parametrize("name", RUNS)
def test_a_kept_run_holds_the_entries_that_chapters_read(name):
    run = artifacts.measured(name)
    chapters = {"data", "classifier", "guided_backprop", "average_saliency", "dcgan"}
    assert chapters <= run.keys()
    assert "/" not in run["data"]["source"], "no machine's folder"
    assert not re.search(r'"verdict_|"set_aside"|"drawn"', json.dumps(run))


def test_the_real_run_shows_the_facts_of_the_catalogue():
    run = artifacts.measured("small-cpu")
    data = run["data"]
    assert (data["rows"], data["malformed_rows"]) == (44446, 22)
    assert (data["images"], data["rows_without_image"]) == (44072, 374)
    assert (data["duplicate_groups"], data["duplicate_label_conflicts"]) == (371, 6)
    products = sum(data["class_counts"])
    assert sum(data["split_counts"].values()) == products == data["products"]
    assert run["classifier"]["accuracy"]["test"] >= 0.92


def intervals(entry: object, name: str = "") -> list:
    """What stands below keys that end in `_ci95`: [low, high], or None."""
    if isinstance(entry, dict):
        return [pair for key, value in entry.items() for pair in intervals(value, key)]
    values = entry if isinstance(entry, list) else []
    if not name.endswith("_ci95"):
        return [pair for value in values for pair in intervals(value)]
    return [entry] if not values or isinstance(values[0], float) else values


def test_five_seeds_have_finite_intervals_throughout():
    kept = artifacts.measured("seeds")  # JSON without NaN and infinity
    assert [*kept["runs"]] == list("12345")
    for seed, run in kept["runs"].items():
        found = intervals(run)
        assert len(found) > 100
        assert found.count(None) == 4  # face_over_garment of classes without faces
        assert all(pair[0] <= pair[1] for pair in found if pair)
        assert [*kept["failed_readings"][seed]] == parameters.chapters()


def test_what_the_last_page_says_about_faces_holds_in_the_photographs():
    """The maps prefer the face, and the answer does not need it."""
    run = artifacts.measured("small-224-cpu")
    intervals = filter(None, run["average_saliency"]["face_over_garment_ci95"])
    assert all(low > 1 for low, _ in intervals)
    maps = run["guided_backprop"]
    assert maps["face_blurred_answers_changed"] < 0.02
    assert maps["only_the_face_gender_accuracy"] > 0.75
    assert maps["only_the_face_answers_changed"] > maps["face_blurred_answers_changed"]


@pytest.mark.parametrize("name", RATIOS)
def test_a_benchmark_holds_its_ratios(name):
    assert set(RATIOS[name]) <= artifacts.measured(name)["ratios"].keys()


@pytest.mark.parametrize("name", [name for name in KEPT if name not in RUNS])
def test_the_page_of_the_benchmarks_shows_the_results(name, measuring):
    shown = numbers(between("benchmarks/README.md", name))
    assert shown == numbers(measuring.table(artifacts.measured(name)))


def test_the_readme_shows_the_ratios(measuring):
    assert numbers(between("README.md", "ratios")) == numbers(measuring.overview())
