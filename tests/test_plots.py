"""Figures are looked at by people; what can be counted is tested here."""

import base64
import contextlib
import io
import os
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from IPython import display
from matplotlib.container import BarContainer, ErrorbarContainer
from PIL import Image

from fashionlib import plots
from fashionlib.evaluation import Estimate, no_estimate

NAMES = [f"series {i}" for i in range(9)]  # the most that a chapter draws
X = [0.0, 0.5, 1.0]
NOTHING, SOMETHING, NAN = no_estimate(1), Estimate(0.5, [0.4, 0.6]), float("nan")
ESTIMATES = [SOMETHING] * 3
SERIES = {
    "bars": lambda: plots.class_bars({name: [0.1] * 6 for name in NAMES}),
    "estimates": lambda: plots.estimates(
        {name: {"row": ESTIMATES[0]} for name in NAMES}, "x"
    ),
    "lines": lambda: plots.panels({"y": dict.fromkeys(NAMES, (X, X))}, "x"),
    "intervals": lambda: plots.panels(
        dict.fromkeys("ab", dict.fromkeys(NAMES, (["c", "d", "e"], ESTIMATES))), "x"
    ),
}


def solid(value: int, height: int = 4, width: int = 4) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def style(series) -> tuple:
    if isinstance(series, BarContainer):
        return series[0].get_facecolor(), series[0].get_hatch()
    line = series[0]
    return line.get_color(), line.get_marker(), line.get_linestyle()


@pytest.mark.parametrize("name", SERIES)
def test_no_two_series_of_a_figure_look_alike(name):
    for axes in SERIES[name]().axes:
        found = [each for each in axes.containers if each.get_label()[0] != "_"]
        assert len(found) >= 2
        assert len({style(series) for series in found}) == len(found)
        if isinstance(found[0], ErrorbarContainer):  # in grey, too
            assert len({series[0].get_marker() for series in found}) == len(found)


def test_the_readers_own_settings_neither_matter_nor_change(monkeypatch):
    bars = {"ours": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}
    expected = plots.png(plots.class_bars(bars))
    monkeypatch.setitem(mpl.rcParams, "font.size", 30)
    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)
    monkeypatch.setitem(mpl.rcParams, "savefig.transparent", True)
    assert plots.png(plots.class_bars(bars)) == expected
    plots.png(plots.panels({"SSIM": {"guided": (["a", "b"], ESTIMATES[:2])}}, "x"))
    assert mpl.rcParams["font.size"] == 30
    assert not mpl.rcParams["axes.grid"]


def test_text_of_data_is_no_formula():
    odd = "$\\frac{a}$"
    plots.png(plots.image_grid([solid(9)], [odd]))  # mathtext would refuse it
    plots.png(plots.estimates({odd: {odd: ESTIMATES[0]}}, odd))
    figure = plots.panels({odd: {odd: ([0.5, 0.7], ESTIMATES[:2])}}, odd)
    plots.png(figure)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert any(ticks)
    assert "$" not in "".join(ticks)


ODD = ["$\\frac{x$", "Was $20 now $10", "$", "a_b^c {", "50 % \\", "<b>&amp;</b>"]


@pytest.mark.parametrize("odd", ODD)
def test_no_text_of_a_figure_is_read_as_markup(odd):
    """Whatever reaches a figure may come from a catalogue: titles, rows and axes."""
    with plots.axes() as (own, ax):
        ax.set(title=odd, xlabel=odd, xticks=[0], xticklabels=[odd])
        ax.annotate(odd, (0, 0))
        ax.scatter([0], [0], label=odd)
        own.legend()
    figures = [
        own,
        plots.image_grid([solid(9)], [odd]),
        plots.image_rows({odd: [solid(9)]}, [odd]),
        plots.class_bars({odd: [0.1] * 6, "b": [0.1] * 6}, odd),
        plots.estimates({odd: {odd: SOMETHING}, "b": {odd: SOMETHING}}, odd),
        plots.panels({odd: {odd: ([odd, "b"], [1, 2])}}, odd),
        plots.text_figure(odd),
    ]
    for figure in figures:
        plots.png(figure, scale=1)
        written = [text for text in figure.findobj(mpl.text.Text) if text.get_text()]
        assert not any(text.get_parse_math() for text in written)
        assert not any(text.get_usetex() for text in written)
        assert " ".join(odd.split()) in repr(figure)


@pytest.mark.slow
def test_pyplot_is_not_needed():
    code = "import sys, fashionlib.plots; print('matplotlib.pyplot' in sys.modules)"
    environment = os.environ | {"MPLBACKEND": "TkAgg"}
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, text=True, env=environment)
    assert printed.strip() == "False"


def test_a_figure_is_shown_as_png_words_and_caption(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda *given, **o: shown.append((*given, o)))
    plots.show(plots.image_grid([solid(200)], ["a shoe"]), "One *shoe*\nfor $5.")
    (bundle, options), (caption, _) = shown
    assert bundle["text/plain"] == "Images: a shoe."
    image = pixels(base64.b64decode(bundle["image/png"]))
    width = options["metadata"]["image/png"]["width"]
    assert (options["raw"], width) == (True, image.shape[1] // 2)  # sharp on 2x screens
    assert isinstance(caption, display.Markdown)
    assert caption.data.startswith("*One ")
    assert caption.data.count("*") == 2  # one paragraph in italics
    assert "\n" not in caption.data


DRAWN = """
import numpy as np
from fashionlib import evaluation, plots
pixels = np.tile(np.arange(0, 240, dtype=np.uint8)[:, None, None], (1, 180, 3))
ramp, few = pixels[:, :, 0] / 240, [evaluation.Estimate(0.5, [0.4, 0.6])] * 2
three = {"a": ([1, 2, 3], [3, 1, 2]), "b": ([1, 2, 3], [1, 2, 3])}
with plots.axes(height=4) as (figure, ax):
    ax.scatter([1, 2, 30_000], [2, 1, 1e-7], label="files", alpha=0.6)
    ax.axline((0, 0), slope=1, color="0.5", linestyle=":", label="square")
    ax.legend(loc="upper left")
with plots.axes() as (shaded, ax):
    import seaborn as sns
    counts = np.arange(9).reshape(3, 3)
    sns.heatmap(counts / 9, annot=counts, ax=ax, cmap=plots.MAPS["Blues"], cbar=False)
figures = [
    figure, shaded,
    plots.class_bars({"ours": [0.1] * 6, "theirs": [0.2] * 6}),
    plots.image_rows({"$x$": [pixels, ramp], "maps": [ramp - 0.5]}, ["$a$", "b_c"]),
    plots.image_grid([pixels, pixels[:90]], ["Was $20", "now $10"]),
    plots.estimates({"": {"row": few[0]}}, "accuracy"), plots.text_figure("None."),
    plots.panels({"loss": three, "other": {"of two": (["x", "y"], few)}}, "epoch", 45),
]
for number, figure in enumerate(figures):
    plots.show(figure, f"Figure {number}, -1.5 *not* $x$.")
"""
KERNEL = """
c.InlineBackend.figure_formats = {"svg", "jpeg"}
c.InlineBackend.print_figure_kwargs = {"dpi": 20, "facecolor": "red"}
c.InlineBackend.rc = {"figure.dpi": 20, "axes.facecolor": "red", "font.size": 30}
c.InlineBackend.close_figures = False
c.IPKernelApp.matplotlib = "inline"
c.InteractiveShellApp.exec_lines = [
    "import fashionlib.plots, matplotlib.pyplot as plt; plt.switch_backend('svg')",
    "plt.style.use(['dark_background', 'ggplot']); plt.rcParams['axes.grid'] = 0",
]
"""


def other_settings() -> str:
    """A matplotlibrc in which every setting is another than matplotlib's own."""
    values = [True, False, "red", "serif", "Missing Font", "log", "jpg", "svg", "both"]
    values += ["heavy", "x-large", "top", "left", "lower", "none", "--", "nearest", "x"]
    values += [20, 3, 0.4, "0.1, 0.7", "'10', '20'", "cycler('color', 'rg')", "data"]
    lines = []
    for name, default in mpl.rcParamsDefault.items():
        for value in values:
            with contextlib.suppress(Exception):
                found = mpl.rcsetup._validators[name](str(value))
                if found != default and name not in ("backend", "text.latex.preamble"):
                    quoted = f'"{value}"' if "#" in str(value) else value
                    lines.append(f"{name}: {quoted}")
                    break
    assert len(lines) > 250
    return "\n".join(["text.usetex: True", *lines])


def executed(code: str, folder, monkeypatch, **environment: str) -> list[dict]:
    """What a cell displays in a kernel of its own; not what matplotlib logs."""
    import nbformat
    from nbclient import NotebookClient

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = notebook.cells[0].outputs
    return [dict(each["data"]) for each in outputs if each["output_type"] != "stream"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["TkAgg", "module://nowhere.at_all", "nonsense"])
def test_a_figure_is_the_same_whatever_the_reader_has_set(
    backend, tmp_path, monkeypatch
):
    """To the byte, with its words: matplotlibrc, IPython's profile, locale, home."""
    ours = executed(DRAWN, tmp_path, monkeypatch)
    (tmp_path / "matplotlibrc").write_text(other_settings())
    (tmp_path / "profile_default").mkdir()
    if backend != "nonsense":  # with that IPython itself would not start
        (tmp_path / "profile_default" / "ipython_kernel_config.py").write_text(KERNEL)
    theirs = executed(
        DRAWN,
        tmp_path,
        monkeypatch,
        MPLBACKEND=backend,
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        IPYTHONDIR=str(tmp_path),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONHASHSEED="7",
        TZ="Pacific/Kiritimati",
        HOME=str(tmp_path / "nowhere"),
    )
    assert len(ours) == 2 * 8
    for shown in ours[::2]:
        assert set(shown) == {"image/png", "text/plain"}
        assert len(shown["text/plain"]) > 4
    assert [shown["text/plain"] for shown in theirs[::2]] == [
        shown["text/plain"] for shown in ours[::2]
    ]
    changed = [i for i in range(16) if theirs[i] != ours[i]]
    assert changed == []


DEGENERATE = {  # what is drawn: its words
    "no image": (plots.image_grid, [[]], "There is no image"),
    "rows without an image": (plots.image_rows, [{"a": []}], "There is no image"),
    "an empty row": (plots.image_rows, [{"a": [], "b": [solid(1)]}], "Images: "),
    "zeros": (plots.image_rows, [{"a": [np.zeros((4, 4))]}], "Images: a"),
    "NaN": (plots.image_rows, [{"a": [np.full((3, 4, 4), NAN)]}], "Images: a"),
    "thin": (
        plots.image_grid,
        [[solid(1, 300, 1)], ["Men/Other"]],
        "Images: Men/Other",
    ),
    "bars of zeros": (plots.class_bars, [{"a": [0] * 6}], "fraction of images: a"),
    "no estimate": (plots.estimates, [{"a": {}}, "x"], "There is no number"),
    "one point": (plots.estimates, [{"a": {"b": SOMETHING}}, "x"], "x: a b 0.5."),
    "a gap": (
        plots.estimates,
        [{"a": {"b": NOTHING, "c": SOMETHING}}, "x"],
        "x: a b no number, c 0.5.",
    ),
    "gaps": (plots.estimates, [{"a": {"b": NOTHING}}, "x"], "x: a b no number."),
    "a line of one": (
        plots.panels,
        [{"y": {"a": ([1], [2])}}, "x"],
        "y against x: a begins at 2, ends at 2.",
    ),
    "a line of none": (
        plots.panels,
        [{"y": {"a": ([], [])}}, "x"],
        "y against x: a begins at no number",
    ),
    "a line of NaN": (
        plots.panels,
        [{"y": {"a": (["u", "v"], [NOTHING, NOTHING])}}, "x"],
        "y against x: a begins at no number",
    ),
    "letters that the font lacks": (
        plots.image_grid,
        [[solid(1)], ["日本 \x07"]],
        "Images: 日本",
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DEGENERATE)
def test_a_figure_of_nothing_or_of_one_thing_is_drawn_and_described(name):
    draw, given, words = DEGENERATE[name]
    figure = draw(*given)
    assert pixels(plots.png(figure, scale=1)).shape[2] == 3
    text = repr(figure)
    assert text.startswith(words)
    assert "nan" not in text
    assert ".." not in text


def test_a_map_with_one_pixel_is_not_shown_as_empty():
    """Its 99.5th percentile is 0."""
    size = np.zeros((100, 100))
    size[3, 4] = 1e-6
    shown = plots._imshow(size)
    assert shown["vmax"] == size.max()


def test_images_keep_their_shape_and_order():
    row = plots.image_grid([solid(10, 40, 20), solid(90, 20, 40)], ["tall", "wide"])
    tall, wide = (image.get_extent() for image in row.axes[0].images)
    assert (tall[1] - tall[0]) / (tall[2] - tall[3]) == pytest.approx(0.5)
    assert (wide[1] - wide[0]) / (wide[2] - wide[3]) == pytest.approx(2)
    assert tall[2:] == wide[2:]  # one height
    assert tall[1] < wide[0]
    found = pixels(plots.png(plots.image_grid([solid(10), solid(90)], columns=1)))
    column = found[:, found.shape[1] // 2, 0].tolist()
    assert column.index(10) < column.index(90)


def test_a_map_is_grey_at_zero_and_darker_where_it_is_more():
    signed = torch.zeros(3, 4, 4)
    signed[0, 1, 2], signed[2, 3, 3] = 2.0, -2.0
    image = plots._imshow(signed)["X"]
    np.testing.assert_allclose(image[0, 0], 0.5)
    np.testing.assert_allclose(image[1, 2], [1, 0.5, 0.5])
    np.testing.assert_allclose(image[3, 3], [0.5, 0.5, 0])
    magnitude = np.array([[0.0, 1.0], [2.0, 3.0]])
    rows = {"image": [solid(0)], "map": [magnitude], "no map": [0 * magnitude]}
    figure = plots.image_rows(rows, ["Men/Other"])
    _, shown, empty = figure.axes[0].images
    assert shown.cmap(shown.norm(3.0))[0] < shown.cmap(shown.norm(1.0))[0]
    assert empty.cmap(empty.norm(0.0))[0] == 1.0
    plots.png(figure)


def test_lines_of_tensors_of_a_data_frame_and_of_estimates():
    frame = pd.DataFrame({"step": [3, 4, 5], "loss": [1.0, 1.5, 4.0]}).tail(2)
    lines = {"tensor": (torch.tensor(X), torch.tensor(X))}
    lines |= {"column": (frame["step"], frame["loss"]), "estimates": (X, ESTIMATES)}
    above, below = plots.panels({"a": lines, "b": lines}, "x", rotation=45).axes
    assert (above.get_ylabel(), below.get_ylabel()) == ("a", "b")
    assert below.get_xlabel() == "x"
    tensor, column, estimates = below.containers
    assert tensor[0].get_ydata().tolist() == X
    assert column[0].get_xydata().tolist() == [[4, 1.5], [5, 4]]
    assert not column.has_yerr
    (bars,) = estimates[2]
    assert bars.get_segments()[1].tolist() == [[0.5, 0.4], [0.5, 0.6]]


def test_axes_are_in_the_course_s_style_and_described():
    with plots.axes(height=4) as (figure, ax):
        ax.scatter([1], [2], label="two sizes")
    assert figure.get_size_inches().tolist() == [plots.WIDTH, 4]
    assert not ax.spines["top"].get_visible()
    assert repr(figure) == "two sizes."


def test_a_change_of_a_control_draws_anew():
    asked = []

    def draw(method, image):
        asked.append((method, image))
        return plots.image_grid([solid(image)], columns=1)

    controls, moving = plots.explorer(
        draw, method=["guided", "gradient"], image=(0, 200)
    ).children
    method, image, *_ = controls.children
    assert asked == [("guided", 100)]
    before = moving.value
    image.value = 200
    method.value = "gradient"
    assert asked[1:] == [("guided", 200), ("gradient", 200)]
    assert moving.value != before
    assert [200] * 3 in pixels(moving.value).reshape(-1, 3).tolist()
    assert not image.continuous_update


def test_source_shows_the_code_itself():
    assert "def source(obj" in plots.source(plots.source).data
