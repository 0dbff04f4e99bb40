"""A checkpoint is continued whole and with the same bits, or not at all."""

from __future__ import annotations

import io
import json
import os
import random
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits import train as training
from resnet_limits.checkpoint import Checkpoint, pack, read_marks, unpack
from resnet_limits.contract import training_state
from resnet_limits.files import hash_bytes
from resnet_limits.problem import Context
from resnet_limits.runs import read_record
from resnet_limits.spec import load_study
from resnet_limits.testing import Interruption
from resnet_limits.train import fit, train
from tests.problems import CONFIG, SOURCES, Quadratic

pytestmark = pytest.mark.filterwarnings("error")

FRAME = pd.DataFrame(
    {
        "int": [-(2**63), 0, 2**63 - 1, 1, 2],
        "small": np.array([-128, 0, 127, 1, 2], dtype=np.int8),
        "float": [np.nan, -np.inf, 5e-324, -0.0, 0.1 + 0.2],
        "single": np.array([np.nan, np.inf, 1e-45, -0.0, 0.1], dtype=np.float32),
        "bool": [True, False, True, False, True],
        "word": ["", "a,b", '"', "é\n", "nan"],
        "mixed": [1, 2.5, None, "x", True],
        "numpy": [np.float64(0.1), np.int64(7), np.bool_(True), np.str_("y"), np.nan],
        "twice": pd.array([1, 2, 3, 4, 5], dtype="Int64"),
    }
)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_frames_keep_every_bit(rows):
    frame = FRAME[:rows]
    buffer = io.BytesIO()
    torch.save(pack(frame), buffer)
    buffer.seek(0)
    found = unpack(torch.load(buffer, weights_only=True))
    assert found.to_csv() == frame.to_csv()
    for name in ("float", "single", "int", "small", "bool"):
        assert found[name].dtype == frame[name].dtype
        assert found[name].to_numpy().tobytes() == frame[name].to_numpy().tobytes()
    assert pack(found).keys() == pack(frame).keys()


def checkpoint(folder, steps_taken=7):
    """Return the bytes of a checkpoint after some steps, and leave it in the folder."""
    problem = Quadratic()
    gradient, left = problem.loss_and_grad, iter(range(steps_taken))

    def loss_and_grad():
        if next(left, None) is None:
            raise Interruption
        return gradient()

    problem.loss_and_grad = loss_and_grad
    with pytest.raises(Interruption):
        fit(problem, CONFIG, SOURCES, folder, checkpoint_seconds=-1)
    return (folder / "checkpoint.pt").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    fit(Quadratic(), CONFIG, SOURCES, folder, 1e9)
    return (folder / "metrics.csv").read_bytes()


def finish(folder, capsys, config=CONFIG, sources=SOURCES):
    """Train on; return the lines about the checkpoint, and the measurements."""
    capsys.readouterr()
    fit(Quadratic(), config, sources, folder, 1e9)
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    assert not (folder / "checkpoint.pt").exists()
    return said, (folder / "metrics.csv").read_bytes()


def starts_over(folder, capsys, undisturbed, why, **options):
    said, numbers = finish(folder, capsys, **options)
    assert said == [f"{folder / 'checkpoint.pt'}: {why}; starting over."]
    assert numbers == undisturbed
    assert read_record(folder / "record.json").timing.resumed == 0


def test_a_whole_checkpoint_is_continued(tmp_path, capsys, undisturbed):
    checkpoint(tmp_path)
    said, numbers = finish(tmp_path, capsys)
    assert said == ["Continuing from step 7 of 40."]
    assert numbers == undisturbed
    assert read_record(tmp_path / "record.json").timing.resumed == 1


def restored(path, content, problem):
    """Put bytes in a checkpoint's place and restore them; return the progress."""
    path.write_bytes(content)
    return Checkpoint(path, read_marks(path) or {"any": 1}, problem).restore(dict)


def assert_untouched(problem):
    fresh = Quadratic()
    states = training_state(problem), training_state(fresh)
    for name in states[0]:
        values = (state[name] for state in states)
        tensors = (v.get_state() if isinstance(v, torch.Generator) else v for v in values)
        assert torch.equal(*tensors)
    assert problem.optimizer.state_dict() == fresh.optimizer.state_dict()
    assert problem.scheduler.state_dict() == fresh.scheduler.state_dict()


@pytest.mark.slow
def test_no_truncation_is_continued(tmp_path, capsys):
    whole, problem = checkpoint(tmp_path), Quadratic()
    path = tmp_path / "checkpoint.pt"
    capsys.readouterr()
    for cut in range(len(whole)):
        assert restored(path, whole[:cut], problem) is None
        assert not path.exists()
    assert_untouched(problem)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{path}: is damaged; starting over."] * len(whole)
    assert restored(path, whole, problem)["step"] == 7


def test_no_flipped_bit_is_continued(tmp_path):
    whole, problem, draw = checkpoint(tmp_path), Quadratic(), random.Random(0)
    header = whole.index(b"\n") + 1
    places = [draw.randrange(header) for _ in range(50)]
    places += [draw.randrange(len(whole)) for _ in range(150)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        assert restored(tmp_path / "checkpoint.pt", bytes(flipped), problem) is None
    assert_untouched(problem)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"half a checkp", b"[]\n", b'{"digest": "0"}\n', b'{"digest": 0, "marks": []}\n',
     b"[" * 10**5 + b"\n", b"\xff\n", b"1" * 10**4 + b"\n"],
    ids=range(9),
)  # fmt: skip
def test_what_is_no_checkpoint_is_not_fatal(tmp_path, capsys, undisturbed, content):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    starts_over(tmp_path, capsys, undisturbed, "is damaged")


def test_a_folder_in_its_place_is_not_fatal(tmp_path, capsys, undisturbed):
    (tmp_path / "checkpoint.pt" / "inner").mkdir(parents=True)
    assert read_marks(tmp_path / "checkpoint.pt") is None
    starts_over(tmp_path, capsys, undisturbed, "cannot be read (Is a directory)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_not_fatal(tmp_path, capsys, undisturbed):
    checkpoint(tmp_path)
    (tmp_path / "checkpoint.pt").chmod(0)
    starts_over(tmp_path, capsys, undisturbed, "cannot be read (Permission denied)")


def payload(whole):
    return torch.load(io.BytesIO(whole[whole.index(b"\n") + 1 :]), weights_only=True)


def sealed(whole, payload):
    """Return a checkpoint with another payload, and a digest that is right."""
    header = json.loads(whole[: whole.index(b"\n")])
    header["digest"] = hash_bytes(json.dumps(header["marks"], sort_keys=True).encode() + payload)
    return json.dumps(header).encode() + b"\n" + payload


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_a_right_digest_with_the_same_content_is_continued(tmp_path, capsys, undisturbed):
    whole = checkpoint(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(sealed(whole, saved(payload(whole))))
    assert finish(tmp_path, capsys) == (["Continuing from step 7 of 40."], undisturbed)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, capsys, undisturbed):
    whole, target = checkpoint(tmp_path), tmp_path / "executed"
    for content in ({**payload(whole), "progress": Payload(target)}, Payload(target)):
        attack = saved(content)
        torch.load(io.BytesIO(attack), weights_only=False)
        target.rmdir()  # the attack works where it is let
        (tmp_path / "checkpoint.pt").write_bytes(sealed(whole, attack))
        starts_over(tmp_path, capsys, undisturbed, "does not fit (UnpicklingError)")
        assert not target.exists()


def state(name, change):
    """Return an edit of one entry of the state."""
    return lambda content: content["state"].update({name: change(content["state"][name])})


UNFIT = {
    "dtype": state("parameters.0.0", lambda x: x.float()),
    "shape": state("parameters.0.0", lambda x: x[:2]),
    "no tensor": state("parameters.0.0", lambda _: 1.0),
    "generator": state("noise", lambda x: x[:-1]),
    "generator of zeros": state("noise", lambda x: torch.zeros_like(x)),
    "missing": lambda content: content["state"].pop("noise"),
    "additional": lambda content: content["state"].update(more=torch.zeros(1)),
    "renamed": lambda content: content["state"].update(x=content["state"].pop("parameters.0.0")),
    "optimizer": lambda content: content["steppers"].update(optimizer={}),
    "optimizer's groups": lambda content: content["steppers"]["optimizer"]["param_groups"].clear(),
    "no optimizer": lambda content: content["steppers"].pop("optimizer"),
    "scheduler": lambda content: content["steppers"].update(scheduler=3),
    "no progress": lambda content: content.pop("progress"),
    "other progress": lambda content: content["progress"].update(place=3),
    "progress of another kind": lambda content: content.update(progress=[1, 2]),
    "no content": lambda content: content.clear(),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_state_that_does_not_fit_leaves_the_problem_as_it_was(
    tmp_path, capsys, undisturbed, case
):
    whole = checkpoint(tmp_path)
    content = payload(whole)
    UNFIT[case](content)
    (tmp_path / "checkpoint.pt").write_bytes(sealed(whole, saved(content)))
    assert_starts_over_as_unfit(tmp_path, capsys, undisturbed)


def assert_starts_over_as_unfit(folder, capsys, undisturbed):
    said, numbers = finish(folder, capsys)
    assert len(said) == 1
    assert re.search(r"checkpoint.pt: does not fit \(\w+\); starting over\.$", said[0])
    assert numbers == undisturbed


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04", b"\x80\x02.", bytes(1000), b"\x80\x02cos\n"])
def test_junk_with_a_right_digest_is_not_fatal(tmp_path, capsys, undisturbed, junk):
    whole = checkpoint(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(sealed(whole, junk))
    assert_starts_over_as_unfit(tmp_path, capsys, undisturbed)


def test_cut_payloads_with_a_right_digest_are_not_fatal(tmp_path):
    whole = checkpoint(tmp_path)
    inner, problem = whole[whole.index(b"\n") + 1 :], Quadratic()
    for cut in range(0, len(inner), 97):
        path = tmp_path / "checkpoint.pt"
        assert restored(path, sealed(whole, inner[:cut]), problem) is None
    assert_untouched(problem)


def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


def other_versions(monkeypatch):
    monkeypatch.setattr(training, "versions", lambda: {"torch": "0"})


MARKS = {
    "threads": two_threads,
    "versions": other_versions,
    "engine": lambda monkeypatch: monkeypatch.setattr(Quadratic, "engine", "numba"),
    "precision": lambda monkeypatch: monkeypatch.setattr(Quadratic, "precision", "bfloat16"),
}


@pytest.mark.parametrize("mark", MARKS)
def test_a_checkpoint_with_another_mark_is_not_continued(
    tmp_path, capsys, undisturbed, monkeypatch, mark
):
    checkpoint(tmp_path)
    MARKS[mark](monkeypatch)
    starts_over(tmp_path, capsys, undisturbed, f"is of other {mark}")


def test_a_checkpoint_of_other_sources_or_settings_is_not_continued(tmp_path, capsys, undisturbed):
    checkpoint(tmp_path)
    starts_over(tmp_path, capsys, undisturbed, "is of other sources", sources="others")
    checkpoint(tmp_path)
    other = replace(CONFIG, key=replace(CONFIG.key, run="b"))
    starts_over(tmp_path, capsys, undisturbed, "is of other configuration", config=other)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
def test_training_goes_on_with_the_threads_it_was_started_with(
    tmp_path, capsys, threads, monkeypatch
):
    config = next(load_study("two_spirals").runs("smoke", "depth"))
    context = Context(torch.device("cpu"), tmp_path)
    steps = iter([None] * 3)

    def zero_grad(*_, **__):
        if next(steps, 0) == 0:
            raise Interruption

    threads(2)
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(torch.optim.Adam, "zero_grad", zero_grad)
        train(config, tmp_path, context, -1)
    threads(1)
    train(config, tmp_path, context, 1e9)
    said = capsys.readouterr().out
    assert "Continuing with 2 threads, as the run was started." in said
    assert "Continuing from step 3 of 20." in said
    assert read_record(tmp_path / "record.json").provenance.threads == 2


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, capsys, monkeypatch, undisturbed):
    checkpoint(tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    problem = Quadratic()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        fit(problem, CONFIG, SOURCES, tmp_path, -1)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "progress.jsonl"]
    assert finish(tmp_path, capsys)[1] == undisturbed
