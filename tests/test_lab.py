"""The course in JupyterLab, as its readers use it: every chapter is opened in a browser and all its cells are run.

The build folder is a copy of the one of `make test`, whose report has just been made; the notebooks are copies, too,
because JupyterLab saves what it shows.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nbformat.v4
import psutil
import pytest
from browser import Opened, open_page
from conftest import own_build
from playwright.sync_api import Page, TimeoutError, expect
from test_notebooks import NOTEBOOKS, each_notebook

ROOT = Path(__file__).parents[1]
MINUTE = 60_000  # ms; a chapter takes about one on two idle cores, and ten were seen beside two trainings
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE", "SOURCE", "LAB_OPTIONS")
NOTEBOOK = "window.jupyterapp.shell.currentWidget"  # in the browser
IDLE = f"{NOTEBOOK}.sessionContext.session?.kernel?.status === 'idle'"


class Lab(NamedTuple):
    address: str
    token: str
    folder: Path  # where its notebooks are

    def ask(self, path: str, method: str = "GET") -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(
            f"{self.address}/{path}", method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


# --- a server ---------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def untouched_by_the_user(home: Path) -> dict[str, str]:
    """The environment of a server that knows neither the user's settings nor kernels of another environment."""
    ours = {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_CONFIG_DIR": f"{home}/config",
        "JUPYTER_DATA_DIR": f"{home}/data",
        "JUPYTERLAB_SETTINGS_DIR": f"{home}/settings",
        "JUPYTERLAB_WORKSPACES_DIR": f"{home}/workspaces",
        "IPYTHONDIR": f"{home}/ipython",
    }
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in (*OF_MAKE, "JUPYTER_PATH")
    }
    return kept | ours


def stop(process: subprocess.Popen) -> None:
    """End a server with all that it started: kernels have process groups of their own."""
    descendants = (
        psutil.Process(process.pid).children(recursive=True)
        if process.poll() is None
        else []
    )
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    _, alive = psutil.wait_procs(descendants, timeout=10)
    for descendant in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendant.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def served(
    command: list[str], lab: Lab, home: Path, **environment: str
) -> Iterator[Lab]:
    """`lab` while `command` serves it; what the command says is in the failure, should it not."""
    log = home / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=untouched_by_the_user(home) | environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_answer(process, lab, log)
        yield lab
    finally:
        stop(process)


def wait_for_answer(
    process: subprocess.Popen, lab: Lab, log: Path, seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError):
            lab.ask("api/status")
            return
        time.sleep(0.2)
    pytest.fail(f"no answer at {lab.address}:\n{log.read_text()}")


def options(lab: Lab) -> list[str]:
    """Another port than the one asked for would be an answer of someone else's server: no retries."""
    port = lab.address.rsplit(":", 1)[1]
    return [
        "--no-browser",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={lab.token}",
    ]


def new_lab(folder: Path) -> Lab:
    return Lab(f"http://127.0.0.1:{free_port()}", secrets.token_hex(16), folder)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, pytestconfig) -> Iterator[Lab]:
    """One server for all chapters, offline: it looks for neither news nor extensions."""
    home = tmp_path_factory.mktemp("lab")
    lab = new_lab(home / "notebooks")
    shutil.copytree(ROOT / "notebooks", lab.folder, ignore=shutil.ignore_patterns(".*"))
    notification = (
        home
        / "settings"
        / "@jupyterlab"
        / "apputils-extension"
        / "notification.jupyterlab-settings"
    )
    notification.parent.mkdir(parents=True)
    notification.write_text('{"fetchNews": "false"}')  # else it asks whether it may
    command = [sys.executable, "-m", "jupyterlab", str(lab.folder), *options(lab)]
    command += [
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly",
    ]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    with served(command, lab, home, FASHION_BUILD=own_build(pytestconfig)) as running:
        yield running


# --- a notebook in the browser ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened_notebook(browser, lab: Lab, name: str) -> Iterator[Opened]:
    """The notebook alone on the screen, its kernel waiting; the kernel ends with it, for the memory that it takes."""
    try:
        with open_page(browser, viewport={"width": 1400, "height": 1000}) as opened:
            # reset: JupyterLab opens what was open before, and starts its kernels
            opened.page.goto(f"{lab.address}/lab/tree/{name}?token={lab.token}&reset")
            shown = f"window.jupyterapp && {NOTEBOOK}?.context?.path === '{name}'"
            opened.page.wait_for_function(f"{shown} && {IDLE}", timeout=3 * MINUTE)
            yield opened
    finally:
        for session in json.loads(lab.ask("api/sessions")):
            lab.ask(f"api/sessions/{session['id']}", "DELETE")


def start_all_cells(page: Page) -> None:
    """Menu Run > Run All Cells; `window.ran` tells when it is through, with or without an error."""
    run = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
    page.evaluate(
        f"() => {{ window.ran = false; {run}.finally(() => {{ window.ran = true; }}); }}"
    )


def code_cells(page: Page) -> dict[int, dict]:
    """Position -> cell, as JupyterLab would save it."""
    cells = page.evaluate(f"{NOTEBOOK}.content.model.toJSON().cells")
    return {
        position: cell
        for position, cell in enumerate(cells)
        if cell["cell_type"] == "code"
    }


def wait_until_idle(page: Page, timeout: float = 20 * MINUTE) -> dict[int, dict]:
    try:
        page.wait_for_function(f"window.ran && {IDLE}", timeout=timeout, polling=200)
    except TimeoutError:
        waiting = (
            cell["source"]
            for cell in code_cells(page).values()
            if not cell["execution_count"]
        )
        pytest.fail(
            f"still running after {timeout / MINUTE:.0f} minutes:\n{next(waiting, 'no cell')}"
        )
    cells = code_cells(page)
    for cell in cells.values():
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                pytest.fail(
                    f"{output['ename']}: {output['evalue']}\nin the cell\n{cell['source']}"
                )
    return cells


def wait_for_picture(page: Page, position: int) -> None:
    """Scroll to the cell, as a reader does: what is out of sight need not be drawn."""
    page.evaluate(
        f"position => {{ {NOTEBOOK}.content.scrollToItem(position, 'center'); }}",
        position,
    )
    drawn = f"""position => {{
        const pictures = [...{NOTEBOOK}.content.widgets[position].node.querySelectorAll('.jp-OutputArea img')];
        return pictures.length && pictures.every(picture => picture.complete && picture.naturalWidth > 0);
    }}"""
    page.wait_for_function(drawn, arg=position, timeout=MINUTE)


@each_notebook
def test_all_cells_of_a_chapter_run_and_show_their_figures(browser, lab, path):
    with opened_notebook(browser, lab, path.name) as (page, outside, errors):
        start_all_cells(page)
        cells = wait_until_idle(page)
        # a fresh kernel numbers the cells that it runs: some come from git with an output and the number 1
        assert [cell["execution_count"] for cell in cells.values()] == list(
            range(1, len(cells) + 1)
        )
        for position, cell in cells.items():
            if "mystnb" in cell["metadata"]:
                wait_for_picture(page, position)
        assert outside == []
        assert errors == []


def test_an_error_in_a_cell_is_found(browser, lab):
    """The test above could not fail otherwise; the cell after the error does not run."""
    write_notebook(lab.folder / "error.ipynb", ["1 / 1", "1 / 0", "1 / 2"])
    with opened_notebook(browser, lab, "error.ipynb") as (page, _, _):
        start_all_cells(page)
        with pytest.raises(
            pytest.fail.Exception,
            match="ZeroDivisionError: division by zero\nin the cell\n1 / 0",
        ):
            wait_until_idle(page)
        assert [cell["execution_count"] for cell in code_cells(page).values()] == [
            1,
            2,
            None,
        ]


def write_notebook(path: Path, sources: list[str]) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    notebook["metadata"]["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    path.write_text(nbformat.v4.writes(notebook))


def test_a_progress_bar_moves_while_its_cell_runs(browser, lab, tmp_path):
    """The cell runs until the test has seen enough, however slow the machine is."""
    seen = tmp_path / "seen"
    loop = f"""
import sys, time
from pathlib import Path
from fashionlib import runtime
print(sys.prefix)
for _ in runtime.progress(range(10_000), "drawing"):
    time.sleep(0.1)
    if Path({str(seen)!r}).exists():
        break
"""
    write_notebook(lab.folder / "progress.ipynb", [loop])
    with opened_notebook(browser, lab, "progress.ipynb") as (page, _, errors):
        start_all_cells(page)
        bar = page.locator(".jp-OutputArea-output", has_text="drawing:")
        texts = [bar.inner_text(timeout=MINUTE)]
        for _ in range(3):
            expect(bar).not_to_have_text(texts[-1], timeout=MINUTE)
            texts.append(bar.inner_text())
        assert page.evaluate("window.ran") is False
        assert len(set(texts)) == 4, texts
        seen.touch()
        (cell,) = wait_until_idle(page).values()
        assert errors == []
    assert cell["outputs"][0]["text"] == f"{sys.prefix}\n", (
        "the kernel is one of the project's environment"
    )


def test_make_lab_serves_the_chapters(tmp_path):
    lab = new_lab(ROOT / "notebooks")
    with served(
        ["make", "lab", f"LAB_OPTIONS={' '.join(options(lab))}"], lab, tmp_path
    ):
        assert b"<title>JupyterLab</title>" in lab.ask("lab")
        listed = [
            entry["name"] for entry in json.loads(lab.ask("api/contents"))["content"]
        ]
    assert sorted(listed) == [path.name for path in NOTEBOOKS]
    with pytest.raises(urllib.error.URLError):
        lab.ask("api/status")


def test_what_a_page_asks_of_other_machines_and_its_errors_are_found(browser, tmp_path):
    """The tests above, and those of the published book, rely on the two lists."""
    address = tmp_path / "page.html"
    address.write_text("""<img src="http://example.org/picture.png"><script>
        new WebSocket("ws://example.org/socket").onclose = () => { document.title = "closed"; };
        console.error("complaint");
        throw new Error("broken");
    </script>""")
    with open_page(browser) as (page, outside, errors):
        page.goto(address.as_uri())
        expect(page).to_have_title("closed")
    assert sorted(outside) == [
        "http://example.org/picture.png",
        "ws://example.org/socket",
    ]
    assert {"complaint", "broken"} <= set(errors)
