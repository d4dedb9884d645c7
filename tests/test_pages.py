"""The pages that tell about their own build: light pictures, buttons that lead somewhere, times, one clear line."""

import base64
import io
import json
import os
import re
import subprocess
from datetime import UTC, datetime

import numpy as np
import pytest
import yaml
from PIL import Image

from fashionlib import artifacts, runtime
from tools import book


def notebook_of(pictures: list[bytes]) -> dict:
    outputs = [
        {
            "output_type": "display_data",
            "data": {"image/png": base64.b64encode(one).decode()},
        }
        for one in pictures
    ]
    return {
        "cells": [{"cell_type": "code", "outputs": outputs}],
        "metadata": {"widgets": {"state": {}}},
    }


def noise(side: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(side).integers(
        0, 256, (side, side, 3), dtype=np.uint8
    )
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_only_the_largest_pictures_of_a_heavy_page_lose_colours():
    small, large = noise(100), noise(760)  # 30 KB, 1.7 MB
    notebook = notebook_of([small, large])
    book._make_lighter(notebook)
    after = [
        base64.b64decode(output["data"]["image/png"])
        for output in notebook["cells"][0]["outputs"]
    ]
    assert after[0] == small
    assert len(after[1]) < book.PICTURE_BYTES
    assert len(Image.open(io.BytesIO(after[1])).convert("RGB").getcolors()) <= 256
    assert "widgets" not in notebook["metadata"]


def test_a_light_page_stays_as_it_is():
    notebook = notebook_of([noise(100)])
    before = json.dumps(notebook["cells"])
    book._make_lighter(notebook)
    assert json.dumps(notebook["cells"]) == before


@pytest.mark.parametrize(
    ("remote", "repository"),
    [
        (
            "https://github.com/someone/fashion.git",
            "https://github.com/someone/fashion",
        ),
        ("git@github.com:someone/fashion.git", "https://github.com/someone/fashion"),
        ("https://gitlab.com/group/fashion", "https://gitlab.com/group/fashion"),
        ("/srv/git/fashion", ""),
        ("", ""),
    ],
)
def test_buttons_lead_to_the_git_remote_or_are_not_there(tmp_path, remote, repository):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if remote:
        subprocess.run(
            ["git", "-C", tmp_path, "remote", "add", "origin", remote], check=True
        )
    assert book._repository(tmp_path) == repository
    config = tmp_path / "_config.yml"
    config.write_text((runtime.project_root() / "_config.yml").read_text())
    book._add_buttons(config, repository)
    settings = yaml.safe_load(config.read_text())
    assert settings.get("repository", {}).get("url", "") == repository
    assert ("binderhub_url" in settings["launch_buttons"]) == bool(repository)


def test_make_renders_anew_when_a_page_or_a_kept_run_changes():
    """The Makefile's list of what the book depends on names every file that is staged."""
    makefile = (runtime.project_root() / "Makefile").read_text()
    (pages,) = re.findall(
        r"^BOOK := (.*) \$\(wildcard (.*)\)$", makefile, flags=re.MULTILINE
    )
    assert pages[0].split() == list(book.PAGES)
    assert {pattern.split("/")[0] for pattern in pages[1].split()} == set(book.FOLDERS)
    (kept,) = re.findall(r"^KEPT := (.*)$", makefile, flags=re.MULTILINE)
    assert kept.split() == [
        f"benchmarks/results/{name}.json" for name in book.KEPT_RUNS
    ]


def test_a_duration_reads_as_people_say_it():
    assert [book._duration(seconds) for seconds in (4.4, 99, 130, 2121)] == [
        "4 s",
        "99 s",
        "2 min",
        "35 min",
    ]


def test_chapters_that_ran_at_once_are_told_by_their_times():
    times = [
        ("2026-01-01T10:00:00", "2026-01-01T10:00:20"),
        ("2026-01-01T10:00:20", "2026-01-01T10:00:40"),
    ]
    runs = {
        str(i): dict(zip(("start_time", "end_time"), each, strict=True))
        for i, each in enumerate(times)
    }
    assert not book._overlap(runs)
    assert book._overlap(
        runs
        | {
            "beside": {
                "start_time": "2026-01-01T10:00:15",
                "end_time": "2026-01-01T10:01",
            }
        }
    )


def test_a_book_without_its_chapters_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    with pytest.raises(
        runtime.InputError,
        match=r"01_data_preparation.ipynb is missing: make report PROFILE=small",
    ):
        book.stage("small")
    assert not (tmp_path / "small" / "book").exists()


def test_a_finished_report_is_kept_with_its_times(monkeypatch, tmp_path):
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    for chapter in artifacts.METRICS_OF:
        artifacts.update_metrics("small", chapter, {"machine": {"gpu": None}})
    with pytest.raises(
        runtime.InputError,
        match="no finished report of small: make report PROFILE=small",
    ):
        book.keep("small")
    for folder in ("notebooks", "html"):
        (tmp_path / "build" / "small" / folder).mkdir()
    times = {
        "01_data_preparation": ("2026-01-01T10:00:00+00:00", 29.6),
        "02_resnet152": ("2026-01-01T10:00:30+00:00", 60),
    }
    for chapter, (start, seconds) in times.items():
        notebook = {
            "metadata": {"papermill": {"start_time": start, "duration": seconds}}
        }
        (tmp_path / "build" / "small" / "notebooks" / f"{chapter}.ipynb").write_text(
            json.dumps(notebook)
        )
    for unfinished in ("02_resnet152.failed", "03_guided_backprop.part"):
        notebook = {
            "metadata": {
                "papermill": {
                    "start_time": "2026-01-01T09:00:00+00:00",
                    "duration": None,
                }
            }
        }
        (tmp_path / "build" / "small" / "notebooks" / f"{unfinished}.ipynb").write_text(
            json.dumps(notebook)
        )
    page = tmp_path / "build" / "small" / "html" / "index.html"
    page.touch()
    os.utime(page, (0, datetime(2026, 1, 1, 10, 2, tzinfo=UTC).timestamp()))
    kept = json.loads(book.keep("small").read_text())
    assert kept["run"]["chapter_seconds"] == {
        "01_data_preparation": 30,
        "02_resnet152": 60,
    }
    assert kept["run"]["report_seconds"] == 120
    assert kept["run"]["profile"] == "small"
    assert set(artifacts.METRICS_OF) < kept.keys()
