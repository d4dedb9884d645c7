"""The hand-over between chapters: metrics from several processes, checkpoints."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import full_disk
from safetensors.torch import save_file

from fashionlib import artifacts, evaluation, runtime
from fashionlib.data import prepare
from fashionlib.runtime import InputError


@pytest.fixture(autouse=True)
def build(tmp_path, monkeypatch):
    """A build root of its own for every test, for child processes too."""
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    return tmp_path / "build"


# --- metrics --------------------------------------------------------------------------

WRITER = """
import sys
from fashionlib import artifacts
for i in range(60):
    artifacts.publish("sample", "shared", {f"{sys.argv[1]}_{i}": i}, extend=True)
artifacts.publish("sample", sys.argv[1], {"done": True})
"""


def test_two_processes_lose_none_of_each_others_metrics():
    command = [sys.executable, "-c", WRITER]
    writers = [
        subprocess.Popen([*command, name], cwd=runtime.project_root())
        for name in ("first", "second")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    metrics = artifacts.read_metrics("sample")
    assert metrics["shared"] == {
        f"{name}_{i}": i for name in ("first", "second") for i in range(60)
    }
    assert metrics["first"] == metrics["second"] == {"done": True}
    assert not list(artifacts.folder("sample").glob("*.tmp"))


def test_a_chapter_that_runs_again_leaves_no_key_of_its_last_run():
    artifacts.publish("sample", "dcgan", {"1": {"images": 5}, "2": {"images": 6}})
    artifacts.publish("sample", "dcgan", {"1": {"images": 5}})
    assert artifacts.read_metrics("sample") == {"dcgan": {"1": {"images": 5}}}


def test_metrics_replace_only_their_own_keys_and_become_plain_numbers():
    artifacts.publish("sample", "data", {"rows": 1, "images": 2})
    artifacts.publish(
        "sample",
        "data",
        {"images": np.int64(3), "shares": np.array([0.5, 0.25])},
        extend=True,
    )
    artifacts.publish("sample", "dcgan", {"1": {"distance": torch.tensor(1.5)}})
    expected = {
        "data": {"rows": 1, "images": 3, "shares": [0.5, 0.25]},
        "dcgan": {"1": {"distance": 1.5}},
    }
    assert artifacts.read_metrics("sample", "data") == expected
    assert artifacts.read_metrics("another") == {}


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), np.array([1.0, np.nan]), {"deep": [float("nan")]}],
)
def test_numbers_that_are_none_are_refused(value):
    artifacts.publish("sample", "data", {"rows": 1})
    before = (artifacts.folder("sample") / "metrics.json").read_text()
    with pytest.raises(InputError, match="not finite"):
        artifacts.publish("sample", "data", {"rows": value})
    assert (artifacts.folder("sample") / "metrics.json").read_text() == before
    assert not list(artifacts.folder("sample").glob("*.tmp"))


DAMAGED = {
    "empty": b"",
    "cut": b'{"data": {',
    "list": b"[]",
    "null": b"null",
    "no text": b"\xff\xfe",
    "not a number": b'{"data": {"rows": NaN}}',
    "deep": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_damaged_metrics_are_refused_and_stay_as_they_are(content):
    path = artifacts.folder("sample") / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        artifacts.read_metrics("sample")
    with pytest.raises(InputError, match=r"metrics\.json is damaged"):
        artifacts.publish("sample", "data", {"count": 1})
    assert path.read_bytes() == content


def test_a_folder_in_the_place_of_a_file_is_one_line():
    (artifacts.folder("sample") / "metrics.json").mkdir()
    for use in (
        lambda: artifacts.read_metrics("sample"),
        lambda: artifacts.publish("sample", "data", {"count": 1}),
    ):
        with pytest.raises(InputError, match=r"metrics\.json"):
            use()


@pytest.mark.parametrize("entry", ["null", "[]", "3"])
def test_an_entry_that_is_no_object_is_one_line(entry):
    path = artifacts.folder("sample") / "metrics.json"
    path.write_text(f'{{"data": {entry}}}')
    with pytest.raises(InputError, match=r"01_data_preparation makes it"):
        artifacts.read_metrics("sample", "data")
    artifacts.publish("sample", "data", {"count": 1}, extend=True)
    assert artifacts.read_metrics("sample", "data")["data"] == {"count": 1}


def test_an_estimate_becomes_a_value_and_its_interval():
    estimate = evaluation.Estimate(0.5, [0.25, 0.75], 9)
    results = {"share": estimate, "methods": {"gradient": {"auc": estimate}}}
    artifacts.publish("sample", "data", results)
    flat = {"share": 0.5, "share_ci95": [0.25, 0.75]}
    nested = {"auc": 0.5, "auc_ci95": [0.25, 0.75]}
    expected = flat | {"methods": {"gradient": nested}}
    assert artifacts.read_metrics("sample")["data"] == expected


def test_an_estimate_that_is_no_number_becomes_null_with_its_reason():
    none = evaluation.no_estimate(1)
    artifacts.publish(
        "sample", "data", {"share": none, "methods": {"a": {"auc": none}}}
    )
    found = artifacts.read_metrics("sample")["data"]
    null = {"share": None, "share_ci95": None, "share_reason": none.reason}
    assert found.pop("methods")["a"].keys() == {"auc", "auc_ci95", "auc_reason"}
    assert found == null
    again = {"share": evaluation.Estimate(0.5, [0.25, 0.75], 9)}
    artifacts.publish("sample", "data", again, extend=True)
    assert "share_reason" not in artifacts.read_metrics("sample")["data"]


def test_missing_results_name_chapter_and_command():
    with pytest.raises(InputError, match=r"02_resnet152.*02_resnet152\.ipynb"):
        artifacts.read_metrics("sample", "classifier")
    with pytest.raises(InputError, match=r"papermill notebooks/05_dcgan\.ipynb"):
        artifacts.require("sample", "dcgan_1.safetensors")
    with pytest.raises(InputError, match=r"-f profiles/small/02_resnet152\.yml$"):
        artifacts.require("small", "classifier.safetensors")
    with pytest.raises(InputError, match="-p run mine"):
        artifacts.require("mine", "prepared")
    with pytest.raises(InputError, match="05_dcgan makes it"):
        artifacts.require("sample", "dcgan_3.safetensors")
    with pytest.raises(InputError, match="07_resolution makes it"):
        artifacts.read_metrics("sample", "resolution")


@pytest.mark.parametrize("name", ["datta", "", "metrics", "data.rows"])
def test_what_no_chapter_makes_is_one_line_with_what_there_is(name):
    with pytest.raises(InputError, match="average_saliency"):
        artifacts.read_metrics("sample", name)
    with pytest.raises(InputError, match="no chapter makes"):
        artifacts.require("sample", f"{name}.npy")


def test_reading_creates_nothing(build):
    for read in (
        lambda: artifacts.read_metrics("smal", "data"),
        lambda: artifacts.require("smal", "classifier.safetensors"),
    ):
        with pytest.raises(InputError):
            read()
    assert artifacts.read_metrics("smal") == {}
    assert not artifacts.path("smal").exists()
    assert not build.exists()


def test_who_waits_for_a_lock_says_so(build, capsys):
    """A second process holds it for a while."""
    holder = """
import sys, time
from fashionlib import artifacts
with artifacts.locked(artifacts.folder("sample") / "metrics.json"):
    print("held", flush=True)
    time.sleep(1.6)
"""
    command = [sys.executable, "-c", holder]
    root, pipe = runtime.project_root(), subprocess.PIPE
    with subprocess.Popen(command, cwd=root, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        artifacts.publish("sample", "data", {"rows": 1})
    assert "metrics.json: another process" in capsys.readouterr().out
    artifacts.publish("sample", "data", {"rows": 2})
    assert capsys.readouterr().out == ""  # nobody waits, nobody speaks


ALTERED = {"list": "[]", "null": "null", "deep": "[" * 10**5, "no seal": '{"a": 1}'}


@pytest.mark.parametrize("text", ALTERED.values(), ids=ALTERED)
def test_what_is_not_as_it_was_sealed_is_empty(tmp_path, text):
    path, content = tmp_path / "note.json", {"a": 1, "b": [0.1, None, {"c": "d"}]}
    assert prepare.read_sealed(path) == {}
    artifacts.write_json(path, prepare.sealed(content))
    assert prepare.read_sealed(path) == content
    path.write_text(path.read_text().replace("0.1", "0.2"))
    assert prepare.read_sealed(path) == {}
    path.write_text(text)
    assert prepare.read_sealed(path) == {}


def test_a_checksum_is_taken_again_of_a_file_that_changed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # XXH3, 128 bits, of "abc": the value that its own command line prints
    assert artifacts.checksum(path) == "06b05ab6733a618578af5f94892f3950"
    path.write_bytes(b"abd")
    assert artifacts.checksum(path) != "06b05ab6733a618578af5f94892f3950"


# --- weights and checkpoints ----------------------------------------------------------


def small_model(seed=0) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = [
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3),
    ]
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def train(model, optimizer, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(2, 3, 9, 9, generator=generator)).square().mean()
        loss.backward()
        optimizer.step()


def tensors_of(model) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_a_restored_training_goes_on_as_if_never_stopped(tmp_path):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"epoch": 3, "history": [0.5, None]}
    artifacts.save_checkpoint(tmp_path / "c.pt", state)
    train(model, optimizer, 2, seed=1)

    restored = artifacts.load_checkpoint(tmp_path / "c.pt")
    assert (restored["epoch"], restored["history"]) == (3, [0.5, None])
    other = small_model(seed=7)
    other.load_state_dict(restored["model"])
    continued = torch.optim.AdamW(other.parameters(), lr=0.5)
    continued.load_state_dict(restored["optimizer"])
    assert continued.param_groups[0]["lr"] == 0.01
    for parameter, moments in continued.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
        assert moments["exp_avg_sq"].stride() == parameter.stride()
    assert not other[0].weight.is_contiguous()  # still channels_last
    train(other, continued, 2, seed=1)
    pairs = zip(tensors_of(model), tensors_of(other), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_other_settings_and_other_code_are_another_file(tmp_path, monkeypatch):
    code = ("catalogue", "data.duplicates")
    settings = {"epochs": 5, "size": (80, 60)}
    path = artifacts.checkpoint_path(tmp_path / "classifier", settings, code)
    assert path.name.startswith("classifier-")
    as_read = json.loads(json.dumps(settings))
    assert artifacts.checkpoint_path(tmp_path / "classifier", as_read, code) == path
    others = [
        artifacts.checkpoint_path(
            tmp_path / "classifier", settings | {"epochs": 6}, code
        ),
        artifacts.checkpoint_path(tmp_path / "classifier", settings, code[:1]),
    ]
    assert len({path, *others}) == 3
    assert artifacts.load_checkpoint(path) is None


def test_the_code_digest_is_of_what_is_computed(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    module = tmp_path / "data" / "lesson.py"
    monkeypatch.setattr(artifacts, "__file__", str(tmp_path / "artifacts.py"))
    digests = []
    for text in (
        'def f(x):\n    """Doc."""\n    return x + 1\n',
        'def f(x):\n    """Another doc."""\n    return x + 1  # why\n',
        'def f(x):\n    """Doc."""\n    return x + 2\n',
    ):
        module.write_text(text)
        digests.append(artifacts.code_digest("data.lesson"))
    assert digests[0] == digests[1] != digests[2]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    artifacts.save_checkpoint(whole, {"model": small_model().state_dict()})
    cut.write_bytes(whole.read_bytes()[:-100])
    foreign = tmp_path / "foreign.pt"
    save_file({"weight": torch.zeros(2)}, foreign)
    pickled = tmp_path / "pickled.pt"
    torch.save({"code": pytest.raises}, pickled)
    for path in (cut, foreign, pickled):
        with pytest.raises(InputError, match=path.name) as error:
            artifacts.load_checkpoint(path)
        assert "\n" not in str(error.value)
        assert path.exists()  # left for the reader to look at
    for path in (foreign, pickled):
        with pytest.raises(InputError, match=path.name):
            artifacts.load_weights(path, small_model())


def test_weights_and_their_settings(tmp_path):
    model, path = small_model(), tmp_path / "model.safetensors"
    artifacts.save_weights(path, model, {"architecture": "tiny", "classes": 4})
    assert json.loads((tmp_path / "model.json").read_text()) == {
        "architecture": "tiny",
        "classes": 4,
    }
    other = small_model(seed=5)
    assert artifacts.load_weights(path, other) == {"architecture": "tiny", "classes": 4}
    assert all(
        torch.equal(a, b)
        for a, b in zip(tensors_of(model), tensors_of(other), strict=True)
    )
    with pytest.raises(InputError, match="Linear"):
        artifacts.load_weights(path, torch.nn.Linear(2, 2))


# --- damage, full disks, kills --------------------------------------------------------


def saved_weights(folder: Path) -> Path:
    path = folder / "model.safetensors"
    artifacts.save_weights(path, small_model(), {"architecture": "tiny"})
    return path


def saved_checkpoint(folder: Path) -> Path:
    path = folder / "c.pt"
    artifacts.save_checkpoint(path, {"model": small_model().state_dict(), "step": 3})
    return path


def test_a_byte_overwritten_anywhere_in_weights_is_found(tmp_path):
    path = saved_weights(tmp_path)
    whole = path.read_bytes()
    assert artifacts.load_weights(path, small_model()) == {"architecture": "tiny"}
    for position in [*range(0, 600, 7), *range(600, len(whole), 97), len(whole) - 1]:
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        for read in (
            lambda: artifacts.load_weights(path, small_model()),
            lambda: artifacts.read_settings(path),
        ):
            with pytest.raises(InputError, match="damaged") as found:
                read()
            assert "\n" not in str(found.value)


def test_a_byte_overwritten_in_a_tensor_of_a_checkpoint_is_found(tmp_path):
    path = saved_checkpoint(tmp_path)
    whole = path.read_bytes()
    values = small_model()[3].weight.detach()  # as they lie in memory: channels_last
    place = whole.index(values.permute(0, 2, 3, 1).numpy().tobytes())
    for position in (place, place + 3, place + 500):
        broken = bytearray(whole)
        broken[position] ^= 64
        path.write_bytes(broken)
        with pytest.raises(InputError, match="checksum") as found:
            artifacts.load_checkpoint(path)
        assert "\n" not in str(found.value)


def header(content: object) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text


FOREIGN = {
    "empty": b"",
    "short": b"\x01",
    "text": b"these are no weights, but quite some text",
    "list": header([1, 2]),
    "null": header(None),
    "metadata list": header({"__metadata__": [1]}),
    "metadata null": header({"__metadata__": None}),
    "checksum list": header({"__metadata__": {"settings": "{}", "checksum": []}}),
    "deep": header(b'{"a":' * 100_000),
    "long": (2**63).to_bytes(8, "little") + b"{}",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_headers_of_any_kind_are_one_line(tmp_path, content):
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(content)
    for read in (
        lambda: artifacts.load_weights(path, small_model()),
        lambda: artifacts.read_settings(path),
        lambda: artifacts.load_checkpoint(path),
    ):
        with pytest.raises(InputError, match=r"classifier\.safetensors") as found:
            read()
        assert "\n" not in str(found.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "state", [[1, 2], torch.zeros(3), "text", None, 3], ids=lambda state: type(state)
)
def test_a_checkpoint_of_something_else_is_one_line(tmp_path, state):
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"c\.pt is damaged"):
        artifacts.load_checkpoint(tmp_path / "c.pt")


def write_everything(folder: Path, size: int = 10) -> list:
    """Calls that write each kind of file into `folder`, of `size` KiB and more."""
    model = torch.nn.Linear(size, 256)
    return [
        lambda: artifacts.save_checkpoint(folder / "c.pt", model.state_dict()),
        lambda: artifacts.save_weights(folder / "w.safetensors", model, {}),
        lambda: artifacts.write_json(folder / "j.json", {"a": "x" * 1024 * size}),
        lambda: artifacts.write_text(folder / "t.txt", "x" * 1024 * size),
    ]


def test_a_full_disk_is_one_line_and_keeps_the_old_files(tmp_path):
    with full_disk(tmp_path / "disk", kibibytes=200) as disk:
        for write in write_everything(disk):
            write()
        before = {path.name: path.read_bytes() for path in disk.iterdir()}
        for write in write_everything(disk, size=1000):
            with pytest.raises(InputError, match="No space left") as found:
                write()
            assert "\n" not in str(found.value)
            assert str(disk) in str(found.value)
        after = {path.name: path.read_bytes() for path in disk.iterdir()}
    assert after == before


def test_a_full_disk_while_a_chapter_publishes_is_one_line(tmp_path, monkeypatch):
    with full_disk(tmp_path / "disk", kibibytes=200) as disk:
        monkeypatch.setenv("FASHION_BUILD", str(disk))
        artifacts.publish("sample", "data", {"rows": 3})
        with pytest.raises(InputError, match="No space left"):
            artifacts.publish("sample", "classifier", {"words": "x" * 300_000})
        assert artifacts.read_metrics("sample") == {"data": {"rows": 3}}


@pytest.mark.parametrize("place", ["/proc/build", "/dev/null", "file/below"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, place):
    """Root ignores modes: a folder of the kernel, a device, and a file take none."""
    (tmp_path / "file").touch()
    folder = tmp_path / place
    monkeypatch.setenv("FASHION_BUILD", str(folder))
    for write in (
        lambda: artifacts.folder("sample"),
        lambda: artifacts.publish("sample", "data", {"rows": 3}),
        *write_everything(folder),
    ):
        with pytest.raises(InputError, match="was not written") as found:
            write()
        assert "\n" not in str(found.value)


def test_what_a_killed_process_left_is_gone_after_the_next_write(tmp_path):
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    left = tmp_path / f"classifier-0123.pt.{done.pid}.tmp"
    kept = [tmp_path / f"other.pt.{os.getppid()}.tmp", tmp_path / "mine.tmp"]
    for path in (left, *kept):
        path.touch()
    artifacts.write_json(tmp_path / "metrics.json", {})
    assert not left.exists()
    assert all(path.exists() for path in kept)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_are_as_readable_as_umask_says(tmp_path, monkeypatch, umask):
    monkeypatch.setenv("FASHION_BUILD", str(tmp_path / "build"))
    before = os.umask(umask)
    try:
        artifacts.publish("sample", "data", {"rows": 3})
        for write in write_everything(artifacts.folder("sample")):
            write()
    finally:
        os.umask(before)
    written = [path for path in (tmp_path / "build").rglob("*") if path.is_file()]
    assert len(written) == 7  # with a lock, and the settings beside the weights
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask, path.name
