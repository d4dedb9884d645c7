"""The course in JupyterLab, as its readers use it: opened in a browser, all cells run.

`make test` names the chapters in IN_LAB and runs the others by nbval; without it all
are run here. The build folder is one of links to the report's results; the notebooks
are copies, because JupyterLab saves what it shows.
"""

import contextlib
import json
import os
import re
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
from test_notebooks import NOTEBOOKS

ROOT = Path(__file__).parents[1]
MINUTE = 60_000  # ms; a chapter takes about one, ten were seen beside two trainings
IN_LAB = os.environ.get("IN_LAB", "").split() or [path.stem for path in NOTEBOOKS]
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PROFILE", "SOURCE", "LAB_OPTIONS")
RAW = r":::|\{(glue|term|doc|numref|ref|footcite)\b|\*\*|<details"  # not understood
NOTEBOOK = "window.jupyterapp.shell.currentWidget"  # in the browser
IDLE = f"{NOTEBOOK}.sessionContext.session?.kernel?.status === 'idle'"


class Lab(NamedTuple):
    address: str
    token: str
    folder: Path  # the root that it serves

    def ask(self, path: str, method: str = "GET") -> bytes:
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(
            f"{self.address}/{path}", method=method, headers=headers
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()


# --- a server -------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def untouched_by_the_user(home: Path) -> dict[str, str]:
    """The environment of a server that knows no settings and kernels of the user."""
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
    """End a server with all that it started: kernels have their own process groups."""
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
    """`lab` while `command` serves it; should it not, what it says is told."""
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
    """No retries: another port could be someone else's server."""
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
    """One server for all, offline: it looks for neither news nor extensions."""
    home = tmp_path_factory.mktemp("lab")
    lab = new_lab(home / "course")
    hidden = shutil.ignore_patterns(".*")
    shutil.copytree(ROOT / "notebooks", lab.folder / "notebooks", ignore=hidden)
    shutil.copy(ROOT / "glossary.md", lab.folder)
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


# --- a notebook in the browser --------------------------------------------------------


@contextlib.contextmanager
def opened_notebook(browser, lab: Lab, name: str) -> Iterator[Opened]:
    """A notebook alone on the screen, its kernel waiting; the kernel ends with it."""
    path = f"notebooks/{name}"
    try:
        with open_page(browser, viewport={"width": 1400, "height": 1000}) as opened:
            # reset: JupyterLab opens what was open before, and starts its kernels
            opened.page.goto(f"{lab.address}/lab/tree/{path}?token={lab.token}&reset")
            shown = f"window.jupyterapp && {NOTEBOOK}?.context?.path === '{path}'"
            opened.page.wait_for_function(f"{shown} && {IDLE}", timeout=3 * MINUTE)
            yield opened
    finally:
        for session in json.loads(lab.ask("api/sessions")):
            lab.ask(f"api/sessions/{session['id']}", "DELETE")


def start_all_cells(page: Page) -> None:
    """Menu Run > Run All Cells; `window.ran` tells when it is through, or stopped."""
    run = "window.jupyterapp.commands.execute('notebook:run-all-cells')"
    done = "window.ran = true"
    page.evaluate(
        f"() => {{ window.ran = false; {run}.finally(() => {{ {done}; }}); }}"
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
            f"still running after {timeout / MINUTE:.0f} minutes:\n"
            f"{next(waiting, 'no cell')}"
        )
    cells = code_cells(page)
    for cell in cells.values():
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                pytest.fail(
                    f"{output['ename']}: {output['evalue']}\n"
                    f"in the cell\n{cell['source']}"
                )
    return cells


def scroll_to(page: Page, position: int) -> None:
    """As a reader does: what is out of sight need not be drawn."""
    scroll = f"{NOTEBOOK}.content.scrollToItem(position, 'center')"
    page.evaluate(f"position => {{ {scroll}; }}", position)


def wait_for_image(page: Page, position: int) -> None:
    scroll_to(page, position)
    drawn = f"""position => {{
        const cell = {NOTEBOOK}.content.widgets[position].node;
        const images = [...cell.querySelectorAll('.jp-OutputArea img')];
        return images.length && images.every(image => image.naturalWidth > 0);
    }}"""
    page.wait_for_function(drawn, arg=position, timeout=MINUTE)


def shown_text(page: Page, count: int) -> str:
    """What a reader sees of the Markdown cells and of printed sentences."""
    seen = []
    for position in range(count):
        scroll_to(page, position)
        text = f"""position => {{
            const cell = {NOTEBOOK}.content.widgets[position];
            const parts = cell.node.querySelectorAll(".jp-RenderedMarkdown");
            return [...parts].map(one => {{
                const copy = one.cloneNode(true);
                copy.querySelectorAll("code, pre").forEach(each => each.remove());
                return copy.textContent;
            }}).join("\\n");
        }}"""
        seen.append(page.evaluate(text, position))
    return "\n".join(seen)


def compared(cells: list[dict]) -> list:
    """Outputs of the cells that nbval compares, where it runs the notebook."""
    tagged = [c for c in cells if "nbval-check-output" in c["metadata"].get("tags", [])]
    found = []
    for output in (output for cell in tagged for output in cell["outputs"]):
        text = output.get("text") or output["data"]["text/plain"]
        found.append("".join(text).strip())
    return found


@pytest.mark.parametrize("chapter", IN_LAB)
def test_all_cells_of_a_chapter_run_and_show_what_they_should(browser, lab, chapter):
    name = f"{chapter}.ipynb"
    with opened_notebook(browser, lab, name) as (page, outside, errors):
        start_all_cells(page)
        cells = wait_until_idle(page)
        # a fresh kernel numbers the cells that it runs: some come from git with a 1
        counts = [cell["execution_count"] for cell in cells.values()]
        assert counts == list(range(1, len(cells) + 1))
        for position, cell in cells.items():
            hidden = cell["metadata"].get("jupyter", {}).get("outputs_hidden")
            data = [output.get("data", {}) for output in cell["outputs"]]
            if not hidden and any("image/png" in each for each in data):
                wait_for_image(page, position)
        text = shown_text(page, page.evaluate(f"{NOTEBOOK}.content.widgets.length"))
        assert "Before you start." in text
        assert not (raw := re.search(RAW, text)), text[
            raw.start() - 99 : raw.end() + 99
        ]
        assert outside == []
        assert errors == []
    kept = json.loads((ROOT / "notebooks" / name).read_text())["cells"]
    assert compared(list(cells.values())) == compared(kept)


@pytest.mark.slow
def test_a_term_opens_the_glossary_at_its_place(browser, lab):
    with opened_notebook(browser, lab, NOTEBOOKS[0].name) as (page, _, errors):
        link = page.locator(".jp-RenderedMarkdown a[href*='glossary.md']").first
        term = link.inner_text()
        link.click()
        page.locator(".jp-MarkdownViewer h2", has_text=term).first.wait_for()
        page.wait_for_url("**/glossary.md*")
        assert errors == []


@pytest.mark.slow
def test_an_error_in_a_cell_is_found(browser, lab):
    """The test above could not fail otherwise; what follows the error does not run."""
    write_notebook(
        lab.folder / "notebooks" / "error.ipynb", ["1 / 1", "1 / 0", "1 / 2"]
    )
    with opened_notebook(browser, lab, "error.ipynb") as (page, _, _):
        start_all_cells(page)
        with pytest.raises(pytest.fail.Exception, match="ZeroDivisionError"):
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


@pytest.mark.slow
def test_a_progress_bar_moves_while_its_cell_runs_and_goes(browser, lab, tmp_path):
    """The cell runs until the test has seen enough, however slow the machine is."""
    seen = tmp_path / "seen"
    loop = f"""
import sys, time
from pathlib import Path
from fashionlib import runtime
print(sys.prefix)
for _ in (bar := runtime.progress(range(10_000), "drawing")):
    time.sleep(0.1)
    if Path({str(seen)!r}).exists():
        break
bar.close()
"""
    write_notebook(lab.folder / "notebooks" / "progress.ipynb", [loop])
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
    text = "".join(output["text"] for output in cell["outputs"])
    assert text.startswith(f"{sys.prefix}\n"), "the kernel is the project's own"
    assert {output["name"] for output in cell["outputs"]} == {"stdout"}
    assert "drawing" not in text, "the bar is gone"


@pytest.mark.slow
def test_make_lab_serves_the_course(tmp_path):
    """The project's root is served, so that the glossary is found from a notebook."""
    lab = new_lab(ROOT)
    chosen = f"LAB_OPTIONS={' '.join(options(lab))}"
    command = ["make", "-o", ".venv/.installed", "lab", chosen]
    with served(command, lab, tmp_path):
        assert b"<title>JupyterLab</title>" in lab.ask("lab")
        content = json.loads(lab.ask("api/contents/notebooks"))["content"]
        listed = {entry["name"] for entry in content}
        assert listed >= {path.name for path in NOTEBOOKS}
        assert json.loads(lab.ask("api/contents/glossary.md"))["type"] == "file"
    with pytest.raises(urllib.error.URLError):
        lab.ask("api/status")


def test_what_a_page_asks_of_other_machines_and_its_errors_are_found(browser, tmp_path):
    """The tests above, and those of the published book, rely on the two lists."""
    address = tmp_path / "page.html"
    address.write_text("""<img src="http://example.org/picture.png"><script>
        new WebSocket("ws://example.org/socket").onclose = () => {
            document.title = "closed"; };
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
