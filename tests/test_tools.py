"""What builds and checks the course: parameters, sizes, notebooks, staged pages."""

import base64
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import full_disk
from PIL import Image

from fashionlib import parameters, runtime
from fashionlib.runtime import InputError
from tools import book, check, clean_notebooks, code_lines

ROOT = runtime.project_root()
NOTEBOOKS = [ROOT / "notebooks" / f"{name}.ipynb" for name in parameters.chapters()]


def code_cell(source: str, *tags: str, outputs=()) -> dict:
    return {
        "cell_type": "code",
        "execution_count": 7,
        "metadata": {"tags": list(tags)},
        "outputs": list(outputs),
        "source": source.splitlines(keepends=True),
    }


def notebook(*cells: dict) -> dict:
    kernel = {"kernelspec": {"name": "python3"}}
    return {"cells": list(cells), "metadata": kernel, "nbformat": 4}


# --- check ----------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one notebook and one profile; returns the profile's file."""
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "profiles" / "mine").mkdir(parents=True)
    code = 'run = "sample"\nrate = 0.1\nsource = "synthetic"\nseed = 0\nseeds = [0]'
    cells = notebook(code_cell(code, "parameters"))
    (tmp_path / "notebooks" / "01_one.ipynb").write_text(json.dumps(cells))
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    profile = tmp_path / "profiles" / "mine" / "01_one.yml"
    profile.write_text("run: mine\n")
    return profile


@pytest.mark.parametrize("rate", [5e-5, 1e-7, 0.25])
def test_a_parameter_reaches_papermill_as_it_was_written(project, rate):
    """JSON writes 5e-05, which YAML 1.1 reads as text."""
    project.write_text(f"run: mine\nrate: {rate:.9f}\n")
    folder = check.check("mine")
    written = yaml.safe_load((folder / "01_one.yml").read_text())
    assert written == {"run": "mine", "rate": rate}


def test_parameters_are_rewritten_only_when_they_change(project):
    path = check.check("mine") / "01_one.yml"
    before = path.stat().st_mtime_ns
    check.check("mine")
    assert path.stat().st_mtime_ns == before
    project.write_text("run: mine\nrate: 0.2\n")
    check.check("mine")
    assert path.stat().st_mtime_ns != before


def test_a_seed_is_that_of_every_chapter(project):
    written = yaml.safe_load((check.check("mine", seed="3") / "01_one.yml").read_text())
    assert written == {"run": "mine", "seed": 3, "seeds": [3]}


def test_a_source_is_written_as_an_absolute_path_with_its_fingerprint(project):
    from conftest import csv_line, solid, write_catalogue

    folder = project.parent / 'it\'s a $b & "c"'
    write_catalogue(folder, [csv_line(1)], {1: solid((1, 2, 3), file_format="JPEG")})
    text = (check.check("mine", str(folder)) / "01_one.yml").read_text()
    assert text.startswith("# source: ")
    assert yaml.safe_load(text)["source"] == str(folder)


@pytest.mark.parametrize(
    ("profile", "content", "words"),
    [
        ("unknown", "", "PROFILE"),
        ("..", "", "PROFILE"),
        ("mine", "rte: 0.1", "it has rate"),
        ("mine", "rate: fast", "rate"),
        ("mine", "source: nowhere", "does not exist"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    project, profile, content, words, monkeypatch
):
    project.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        check.main(["--profile", profile])
    message = str(stopped.value)
    assert message.startswith("error: ")
    assert words in message
    assert "\n" not in message
    assert not (runtime.build_root()).exists()


@pytest.mark.parametrize("source", ["nowhere\udcff.zip", "\udc80"])
def test_a_source_whose_name_is_no_text_is_one_line(project, source):
    with pytest.raises(InputError, match="UTF-8"):
        check.check("mine", source)
    assert not runtime.build_root().exists()


def test_a_full_disk_keeps_the_parameters_of_the_last_run(project, monkeypatch):
    with full_disk(project.parent / "disk", kibibytes=16) as disk:
        monkeypatch.setenv("FASHION_BUILD", str(disk))
        path = check.check("mine") / "01_one.yml"
        before = path.read_text()
        (disk / "filler").write_bytes(
            b"x" * 4096 * (shutil.disk_usage(disk).free // 4096)
        )
        project.write_text(f"run: mine\nsource: {'kaggle-small'!r}\n")
        with pytest.raises(InputError, match="No space left"):
            check.check("mine")
        assert path.read_text() == before
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["folder", b"\xff", b""])
def test_damaged_parameters_of_the_last_run_are_replaced_or_one_line(project, damage):
    path = check.check("mine") / "01_one.yml"
    before = path.read_text()
    path.unlink()
    if damage == "folder":
        (path / "inside").mkdir(parents=True)
        with pytest.raises(InputError, match=r"01_one\.yml was not written"):
            check.check("mine")
        return
    path.write_bytes(damage)
    check.check("mine")
    assert path.read_text() == before


@pytest.mark.parametrize("tool", ["check", "book", "guarded"])
def test_a_tool_works_without_its_docstrings(tool):
    command = [sys.executable, "-OO", "-m", f"tools.{tool}", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "usage:" in shown.stdout


@pytest.mark.parametrize("name", ["02_two.yml", "01_one.yaml", "01_one.YML"])
def test_a_profile_file_that_no_notebook_reads_is_refused(project, name):
    project.with_name(name).write_text("run: mine\n")
    with pytest.raises(InputError, match=f"{name} belongs to no notebook") as error:
        check.check("mine")
    assert "known: 01_one.yml." in str(error.value)


# --- sizes and directions -------------------------------------------------------------


def test_the_houses_keep_their_sizes_and_their_direction():
    assert code_lines.faults(code_lines.modules()) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_lesson_more_than_a_report(path):
    lines, total, calls = code_lines.bookkeeping(path)
    assert lines / total <= code_lines.BOOKKEEPING_LIMIT, dict(calls)


def test_faults_are_found():
    long = "\n".join(f"x{i} = {i}" for i in range(code_lines.MODULE_LIMIT + 1))
    sources = {
        "fashionlib.runtime": "import fashionlib.images",
        "fashionlib.images": "def f():\n    from fashionlib import data, training",
        "fashionlib.training": "from fashionlib.images import batches",
        "fashionlib.data.prepare": "from tools import book",
        "fashionlib.data.synthetic": long,
        "tools.book": long,
    }
    found = "\n".join(code_lines.faults(sources))
    assert "runtime imports fashionlib.images" in found
    assert "data.prepare imports tools.book" in found
    assert "circle" in found
    assert f"tools.book: {code_lines.MODULE_LIMIT + 1} code lines" in found
    assert found.count("\n") == 3


def test_code_lines_leave_out_comments_blank_lines_and_docstrings():
    module = '"""Module.\n\nLong."""\n\n# comment\n'
    function = 'def f():\n    """Doc."""\n    return """a\nb"""'
    assert code_lines.code_lines(module + function) == {6, 8, 9}


def test_bookkeeping_is_counted_by_line(tmp_path):
    code = """
value = train()
kept = {"a": value}
kept |= {"b": 2}
shown = {"a": value}
text = f"{value}"
plots.show(
    plots.panels(shown),
    f"One line of caption "
    f"and another.",
)
for key in shown:
    print(key)
    display(Markdown(text + key))
artifacts.publish(
    run, "x", kept
)
"""
    path = tmp_path / "n.ipynb"
    path.write_text(json.dumps(notebook(code_cell(code.strip()))))
    lines, total, calls = code_lines.bookkeeping(path)
    # kept twice, text, the caption's two lines, display, publish's three
    assert (lines, total) == (9, 16)
    assert calls == {"publish": 1, "display": 1, "Markdown": 1}


# --- clean notebooks ------------------------------------------------------------------


def test_cleaning_keeps_what_is_compared_and_nothing_else(tmp_path):
    printed = {
        "output_type": "execute_result",
        "execution_count": 7,
        "metadata": {},
        "data": {"text/plain": ["1"]},
    }
    kept = code_cell("1", "keep_output", outputs=[printed])
    hidden = code_cell("1", outputs=[printed])
    hidden["metadata"] = {"scrolled": True, "jupyter": {"source_hidden": True}}
    kept["metadata"]["execution"] = {"shell.execute_reply": "2026"}
    text = {"cell_type": "markdown", "id": "c", "metadata": {}, "source": ["text"]}
    path = tmp_path / "lesson.ipynb"
    dirty = notebook(kept, hidden, text)
    dirty["metadata"]["widgets"] = {}
    path.write_text(json.dumps(dirty))
    with pytest.raises(SystemExit, match="lesson"):
        clean_notebooks.main([str(path)])
    clean_notebooks.main([str(path)])  # nothing is left to do: no exit
    found = json.loads(path.read_text())
    first, second, third = found["cells"]
    assert (first["execution_count"], first["outputs"][0]["execution_count"]) == (1, 1)
    assert first["metadata"] == {"tags": ["keep_output"]}
    assert (second["execution_count"], second["outputs"]) == (None, [])
    assert second["metadata"] == {"jupyter": {"source_hidden": True}}
    assert third == text
    assert found["metadata"]["kernelspec"] == clean_notebooks.KERNEL
    assert "widgets" not in found["metadata"]


# --- the staged book ------------------------------------------------------------------


def png(side: int, noise: bool = True) -> bytes:
    values = np.random.default_rng(side).integers(0, 256, (side, side, 3)) * noise
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def figure(data: bytes, words: str) -> dict:
    encoded = {"image/png": base64.b64encode(data).decode(), "text/plain": [words]}
    return {"output_type": "display_data", "data": encoded, "metadata": {}}


def test_a_page_has_the_words_of_its_figures_and_no_trace_of_the_machine():
    controls = {"text/plain": "VBox(...)", book.WIDGET: {"model_id": "1"}}
    panel = {"output_type": "display_data", "data": controls, "metadata": {}}
    outputs = [figure(png(20), 'a "map":\n of $x$'), panel]
    cell = code_cell("plots.show(f, 'x')", outputs=outputs)
    cell["metadata"]["papermill"] = {"duration": 1}
    injected = code_cell('source = "/home/me/x.zip"', "injected-parameters")
    executed = notebook(injected, cell, {"cell_type": "markdown", "metadata": {}})
    executed["metadata"] |= {"widgets": {}, "papermill": {"output_path": "/home/me"}}
    page = book.for_page(executed)
    assert len(page["cells"]) == 2
    assert page["cells"][0]["metadata"]["mystnb"] == {
        "image": {"alt": 'a "map": of $x$'}
    }
    assert "papermill" not in json.dumps(page)
    assert "VBox" not in json.dumps(page)
    assert "widgets" not in page["metadata"]


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("plain\nlines\n", "plain\nlines\n"),
        ("\rfit:  10%|= |\rfit:  90%|==|\r           \rdone\n", "done\n"),
        ("before\n\rfit:  10%|= |", "before\n"),
        ("\r        \r", ""),
    ],
)
def test_progress_bars_are_gone_and_what_was_printed_stays(printed, shown):
    assert book.without_progress(printed) == shown
    output = {"output_type": "stream", "name": "stdout", "text": [printed]}
    (cell,) = book.for_page(notebook(code_cell("f()", outputs=[output])))["cells"]
    assert cell["outputs"] == ([output | {"text": shown}] if shown else [])


def test_only_large_images_lose_colours_and_a_film_keeps_its_frames():
    small, large = png(100), png(400)
    for data, colours in ((small, 10_000), (large, 256)):
        encoded = base64.b64encode(data).decode()
        after = base64.b64decode(book.lighter(encoded))
        found = Image.open(io.BytesIO(after)).convert("RGB").getcolors(10**6)
        assert len(found) <= colours
        assert (after == data) == (data is small)
    frames = [Image.open(io.BytesIO(png(side=300))) for _ in range(2)]
    frames[1] = frames[1].rotate(90)
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    encoded = base64.b64encode(stream.getvalue()).decode()
    assert book.lighter(encoded) == encoded


@pytest.mark.parametrize(
    ("remote", "repository"),
    [
        (
            "https://github.com/someone/fashion.git",
            "https://github.com/someone/fashion",
        ),
        ("git@github.com:someone/fashion.git", "https://github.com/someone/fashion"),
        ("ssh://git@github.com/a/fashion.git", "https://github.com/a/fashion"),
        ("https://gitlab.com/group/fashion", "https://gitlab.com/group/fashion"),
        ("/srv/git/fashion", ""),
        ("", ""),
    ],
)
def test_buttons_lead_to_the_remote_and_its_branch_or_are_not_there(
    tmp_path, monkeypatch, remote, repository
):
    subprocess.run(["git", "init", "-q", "-b", "trunk", tmp_path], check=True)
    if remote:
        added = ["remote", "add", "origin", remote]
        subprocess.run(["git", "-C", tmp_path, *added], check=True)
    config = tmp_path / "_config.yml"
    config.write_text((ROOT / "_config.yml").read_text())
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    book.add_buttons(config)
    settings = yaml.safe_load(config.read_text())
    expected = {"url": repository, "branch": "trunk"} if repository else None
    assert settings.get("repository") == expected
    assert ("binderhub_url" in settings["launch_buttons"]) == bool(repository)


def test_buttons_lead_to_the_branch_of_the_remote(tmp_path, monkeypatch):
    """`master`; a branch here that follows it by another name; none, as in CI."""
    here, there = tmp_path / "here", tmp_path / "there"

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        command = ["git", *who, *arguments]
        return subprocess.run(
            command, cwd=here, check=True, capture_output=True, text=True
        ).stdout.strip()

    def branch() -> str:
        shutil.copy(ROOT / "_config.yml", here)
        book.add_buttons(here / "_config.yml")
        return yaml.safe_load((here / "_config.yml").read_text())["repository"][
            "branch"
        ]

    here.mkdir()
    git("init", "-q", "-b", "master", ".")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("clone", "-q", "--bare", ".", str(there))
    git("remote", "add", "origin", str(there))
    git("fetch", "-q", "origin")
    git("branch", "-q", "--set-upstream-to=origin/master")
    monkeypatch.setattr(runtime, "project_root", lambda: here)
    git("remote", "set-url", "origin", "https://github.com/someone/fashion")
    assert branch() == "master"
    git("checkout", "-q", "-b", "local", "--track", "origin/master")
    assert branch() == "master"
    git("checkout", "-q", "--detach")
    assert branch() == git("rev-parse", "HEAD")


def test_a_duration_reads_as_people_say_it():
    said = [book.duration(seconds) for seconds in (0, 4.4, 99, 130, 2121)]
    assert said == ["not run", "4 s", "99 s", "2 min", "35 min"]


def test_a_book_without_its_chapters_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path))
    with pytest.raises(InputError, match=r"make report PROFILE=small"):
        book.stage("small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("profile", ["", ".", "../small", "a/b", "small\n"])
@pytest.mark.parametrize("keep", [[], ["--keep"]])
def test_a_book_of_no_plain_name_is_one_line(profile, keep):
    with pytest.raises(SystemExit, match="error: run must be a name"):
        book.main([f"--profile={profile}", *keep])


WHOLE = {
    "cells": [],
    "metadata": {
        "kernelspec": {"name": "python3", "display_name": "Python 3"},
        "papermill": {
            "duration": 29.6,
            "start_time": "2026-01-01T10:00:00+00:00",
            "parameters": {},
        },
    },
    "nbformat": 4,
    "nbformat_minor": 5,
}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        json.dumps(WHOLE).encode()[:-20],
        json.dumps(WHOLE | {"cells": None}).encode(),
        json.dumps(WHOLE | {"cells": [3]}).encode(),
        json.dumps(WHOLE | {"cells": [{"cell_type": "code"}]}).encode(),
        json.dumps(WHOLE | {"metadata": {}}).encode(),
        json.dumps(WHOLE | {"metadata": {"papermill": {}}}).encode(),
        json.dumps({key: WHOLE[key] for key in WHOLE if key != "cells"}).encode(),
    ],
)
def test_a_damaged_chapter_is_one_line_before_anything_is_staged(project, content):
    path = runtime.build_root() / "mine" / "notebooks" / "01_one.ipynb"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(WHOLE))
    assert list(book.executed("mine")) == ["01_one"]
    path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        book.main(["--profile", "mine"])
    message = str(stopped.value)
    assert message.startswith("error: ")
    assert str(path) in message
    assert "\n" not in message
    assert not (runtime.build_root() / "mine" / "book").exists()


@pytest.mark.parametrize("content", [b"", b"[1]", b"a: [", b"\xff", b"- a\n b: c"])
def test_damaged_settings_of_the_book_are_one_line(tmp_path, content):
    path = tmp_path / "_toc.yml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"_toc\.yml") as found:
        book.read_yaml(path)
    assert "\n" not in str(found.value)


def test_a_finished_report_is_kept_with_its_times(project):
    from fashionlib import artifacts

    root, build = runtime.project_root(), runtime.build_root()
    (root / "benchmarks" / "results").mkdir(parents=True)
    artifacts.publish("mine", "data", {"rows": 1})
    artifacts.publish("mine", "classifier", {"machine": {"gpu": None}})
    with pytest.raises(InputError, match="make report"):
        book.keep("mine")
    for folder in ("notebooks", "html"):
        (build / "mine" / folder).mkdir()
    (build / "mine" / "notebooks" / "01_one.ipynb").write_text(json.dumps(WHOLE))
    (build / "mine" / "html" / "index.html").touch()
    kept = json.loads(book.keep("mine").read_text())
    assert kept["run"]["chapter_seconds"] == {"01_one": 30}
    assert kept["run"]["profile"] == "mine"
    assert kept["data"] == {"rows": 1}


def test_every_page_of_the_book_is_staged():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [page["file"] for part in contents["parts"] for page in part["chapters"]]
    pages = [f"{name}.md" for name in listed if not name.startswith("notebooks/")]
    assert sorted(["index.md", *pages]) == sorted(book.PAGES)
    notebooks = [name for name in listed if name.startswith("notebooks/")]
    assert sorted(notebooks) == [f"notebooks/{path.stem}" for path in NOTEBOOKS]
