"""What several test files share: tiny catalogues, and which tests cannot run here.

A test marked `real_data` or `gpu` is deselected, counted and named at the end where its
means are missing: a skipped test looks like a broken one, a silent one is forgotten.
"""

import ast
import contextlib
import functools
import io
import json
import os
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fashionlib import catalogue, runtime

FIRST = (
    "test_lab.py",
    "test_site.py",
)  # the longest: nothing waits for them at the end
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
DESELECTED = pytest.StashKey[dict[str, list[str]]]()
OWN_BUILD = pytest.StashKey[tempfile.TemporaryDirectory]()


def real_data_folder() -> Path | None:
    """Folder with the real zips: what FASHION_REAL_DATA names, else ../shared/real."""
    folder = Path(
        os.environ.get("FASHION_REAL_DATA")
        or runtime.project_root().parent / "shared" / "real"
    )
    return folder if (folder / "fashion-product-images-small.zip").is_file() else None


def has_cuda() -> bool:
    import torch  # only where a test asks: the import takes seconds

    return torch.cuda.is_available()


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in FIRST)
    means = {"real_data": real_data_folder, "gpu": has_cuda}
    missing = {}
    for marker, available in means.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and not available():
            missing[marker] = [item.nodeid for item in marked]
    config.stash[DESELECTED] = missing
    names = {name for nodeids in missing.values() for name in nodeids}
    if names:
        config.hook.pytest_deselected(
            items=[item for item in items if item.nodeid in names]
        )
        items[:] = [item for item in items if item.nodeid not in names]


def pytest_sessionfinish(session):
    """One of several processes (pytest -n) hands over what it deselected."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected"] = session.config.stash.get(
            DESELECTED, {}
        )


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    if hasattr(node, "workeroutput"):  # it has not where the process died
        node.config.stash[DESELECTED] = node.workeroutput["deselected"]


def pytest_terminal_summary(terminalreporter, config):
    for marker, names in config.stash.get(DESELECTED, {}).items():
        terminalreporter.section(
            f"deselected: {marker} is not available on this machine"
        )
        for name in names:
            terminalreporter.write_line(name)


def own_build(config) -> str:
    """A build folder for chapters that a test runs: the sample's artifacts, as links.

    Two that run side by side in one folder would overwrite each other's results, and
    those that the published book is compared with. The library replaces files and never
    writes into them: links are enough. One folder a process is kept. Without a report
    it is the build folder itself.
    """
    build = runtime.build_root()
    made = build / "sample" / "artifacts"
    if not made.is_dir():
        return str(build)
    if OWN_BUILD in config.stash:
        config.stash[OWN_BUILD].cleanup()
    folder = tempfile.TemporaryDirectory(prefix="test-", dir=build)
    config.stash[OWN_BUILD] = folder
    config.add_cleanup(folder.cleanup)
    copy = Path(folder.name) / "sample" / "artifacts"
    shutil.copytree(made, copy, copy_function=os.link)
    return folder.name


class OwnBuilds:
    """A plugin: pytest asks a conftest about its own folder only, not the notebooks."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        """nbval starts a notebook's kernel when it sets up the first cell."""
        with pytest.MonkeyPatch.context() as patch:
            if item.path.suffix == ".ipynb" and item.parent.kernel is None:
                patch.setenv("FASHION_BUILD", own_build(item.config))
            return (yield)


def pytest_configure(config):
    config.pluginmanager.register(OwnBuilds())


@functools.cache
def from_chapter(chapter: str) -> types.ModuleType:
    """What a notebook defines: its functions, and its constants in capitals."""
    path = runtime.project_root() / "notebooks" / f"{chapter}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    kept, module = [], types.ModuleType(chapter)
    for node in ast.parse("\n".join(sources)).body:
        constant = (
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).isupper()
        )
        if constant or isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef):
            kept.append(node)
    code = compile(ast.Module(kept, []), f"<{chapter}>", "exec")
    exec(code, vars(module))
    return module


def solid(colour, size=(60, 80), *, mode="RGB", file_format="PNG", **options) -> bytes:
    """An image of one colour as the bytes of a file; PNG keeps the colour exactly.

    size: (width, height).
    """
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, file_format, **options)
    return stream.getvalue()


def encode(pixels: np.ndarray, file_format: str = "PNG", **options) -> bytes:
    """Pixels, (H, W, 3), (H, W) or uint16 (H, W), as the bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format, **options)
    return stream.getvalue()


@contextlib.contextmanager
def ordinary_user():
    """Root ignores modes: become nobody for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def full_disk(folder: Path, kibibytes: int):
    """A file system of its own, of a size that is soon used up.

    Only root may mount one; where that is not allowed, the test is skipped.
    """
    folder.mkdir()
    options = f"size={kibibytes}k"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def csv_line(product, gender="Men", category="Apparel", name="Plain shirt") -> str:
    return f"{product},{gender},{category},Topwear,Shirts,Blue,Fall,2011,Casual,{name}"


def write_catalogue(
    folder: Path, lines: list[str], images: dict[int, bytes] | None = None
) -> Path:
    """A catalogue in Kaggle's layout; `images` maps an id to the bytes of its file."""
    (folder / "images").mkdir(parents=True)
    (folder / "styles.csv").write_text(
        "\n".join([",".join(catalogue.COLUMNS), *lines]) + "\n"
    )
    for product, data in (images or {}).items():
        (folder / "images" / f"{product}.jpg").write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, started once, in which `browser.open_page` opens pages."""
    # only where a test asks: Playwright takes half a second to import
    from browser import launched_browser

    with launched_browser() as launched:
        yield launched


@pytest.fixture(scope="session")
def site() -> Path:
    """The book of the sample profile, as `make report` has built it."""
    html = runtime.build_root() / "sample" / "html"
    if not (html / "index.html").exists():
        assert not os.environ.get("CI"), f"{html} is missing: run make report"
        pytest.skip("no published book: run make report, or make test, which does so")
    return html
