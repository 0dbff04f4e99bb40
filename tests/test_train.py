"""The training loop: resuming, divergence, progress and locks."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from resnet_limits import train as training
from resnet_limits.errors import UserError
from resnet_limits.layout import RunKey
from resnet_limits.locks import is_locked, locked
from resnet_limits.probes import evenly_spaced, log_spaced
from resnet_limits.problem import Context, Probe
from resnet_limits.progress import Line, describe, status
from resnet_limits.runs import collect, read_record, read_run
from resnet_limits.spec import load_study
from resnet_limits.testing import assert_resumes, assert_run_resumes
from resnet_limits.train import choose_device, fit, read_config, train
from tests.problems import CONFIG, SOURCES, Quadratic

pytestmark = pytest.mark.filterwarnings("error")

STUDY = load_study("two_spirals")
SPIRALS = STUDY.run(RunKey("smoke", "two_spirals", "depth", "depth10"))


def metrics(folder):
    return pd.read_csv(folder / "metrics.csv")


@pytest.mark.parametrize("after", [(1,), (17, 18), (20, 35), (0, 39), tuple(range(40))])
def test_resumed_training_ends_with_the_same_bits(tmp_path, after):
    assert_resumes(Quadratic, tmp_path, after)
    record = read_record(tmp_path / "resumed" / "record.json")
    assert record.timing.resumed == len(after)
    assert record.outcome == read_record(tmp_path / "whole" / "record.json").outcome
    assert not (tmp_path / "resumed" / "checkpoint.pt").exists()


@pytest.mark.slow
def test_a_run_of_a_study_resumes(tmp_path):
    assert_run_resumes(SPIRALS, tmp_path)


def test_training_is_gradient_descent_with_momentum(tmp_path):
    problem = Quadratic(curvatures=(1.0,), steps=30)
    fit(problem, CONFIG, SOURCES, tmp_path, 1e9)
    noise = torch.Generator().manual_seed(0)
    x, velocity = 1.0, 0.0
    for step in range(30):
        drawn = torch.randn(3, generator=noise, dtype=torch.float64)[0].item()
        velocity = 0.9 * velocity + x + 0.01 * drawn
        x -= 0.1 * (1 + math.cos(math.pi * step / 30)) / 2 * velocity
    assert problem.x.item() == pytest.approx(x, rel=1e-9)


def test_measurements_are_taken_where_the_probes_ask(tmp_path):
    problem = Quadratic()
    problem.probes = [*problem.probes, Probe("late", [3, 39], problem.measure)]
    fit(problem, CONFIG, SOURCES, tmp_path, 1e9)
    table = metrics(tmp_path)
    assert sorted(set(table["step"])) == evenly_spaced(40, 10)
    assert (table["taken"] == table["step"]).all()  # a measurement follows its step
    assert pd.read_csv(tmp_path / "late.csv")["step"].unique().tolist() == [3, 39]


def test_training_stops_when_a_problem_is_done(tmp_path):
    problem = Quadratic()
    problem.is_done = lambda: int(problem.taken) >= 5
    fit(problem, CONFIG, SOURCES, tmp_path, 1e9)
    outcome = read_record(tmp_path / "record.json").outcome
    assert (outcome.state, outcome.steps) == ("finished", 8)  # the next measurement
    assert metrics(tmp_path)["step"].max() == 8


def planted(folder):
    """Return a run of no study, whose protocol nobody can look up."""
    run = read_run(folder, CONFIG)
    run.protocol = ("paper", "")
    return run


def test_divergence_is_recorded_and_leaves_other_members_alone(tmp_path):
    fit(Quadratic(curvatures=(1, 1e200, 1)), CONFIG, SOURCES, tmp_path / "one", 1e9)
    fit(Quadratic(), CONFIG, SOURCES, tmp_path / "none", 1e9)
    outcome = read_record(tmp_path / "one" / "record.json").outcome
    assert outcome.state == "finished"
    assert outcome.diverged == [{"seed": 1, "step": 1}]
    one, none = metrics(tmp_path / "one"), metrics(tmp_path / "none")
    others = one["seed"] != 1
    pd.testing.assert_frame_equal(one[others], none[others], check_exact=True)
    table = collect([planted(tmp_path / "one")], [])
    assert (table["diverged"] == (table["seed"] == 1)).all()


def test_training_where_all_diverge_stops_and_says_so(tmp_path):
    fit(Quadratic(curvatures=(1e200, 1e250)), CONFIG, SOURCES, tmp_path, 1e9)
    outcome = read_record(tmp_path / "record.json").outcome
    assert outcome.state == "diverged"
    assert len(outcome.diverged) == outcome.members == 2
    assert outcome.steps < 40


def test_a_diverged_member_may_be_called_infinite(tmp_path):
    problem = Quadratic(curvatures=(1, 1e200, 1))
    problem.members = [{"width": width} for width in (8.0, float("inf"), 16.0)]
    fit(problem, CONFIG, SOURCES, tmp_path, 1e9)
    assert read_record(tmp_path / "record.json").outcome.diverged[0]["width"] == "inf"
    table = collect([planted(tmp_path)], [])
    assert table.loc[table["diverged"], "width"].unique().tolist() == [float("inf")]


def lost_at_the_last_step(folder, **columns):
    """Train members whose last measurement has losses of its own; return the outcome."""
    problem = Quadratic()

    def measure():
        frame = problem.measure_before().assign(loss=1.0)
        return frame.assign(**columns) if int(problem.taken) == problem.steps else frame

    problem.measure_before = problem.measure
    problem.probes = [Probe("metrics", [0, 20, 40], measure)]
    fit(problem, CONFIG, SOURCES, folder, 1e9)
    return read_record(folder / "record.json").outcome


@pytest.mark.parametrize("name", ["loss", "train_loss", "test_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_the_last_step_lost_counts_as_diverged(tmp_path, name, value):
    outcome = lost_at_the_last_step(tmp_path, **{name: [1.0, value, 1.0]})
    assert (outcome.state, outcome.steps) == ("finished", 40)
    assert outcome.diverged == [{"seed": 1, "step": 40}]


def test_all_losses_may_be_lost_at_the_last_step(tmp_path):
    assert lost_at_the_last_step(tmp_path, loss=[math.nan] * 3).state == "diverged"


def test_other_columns_and_earlier_losses_are_no_divergence(tmp_path):
    assert lost_at_the_last_step(tmp_path, loss=1.0, quotient=math.nan).diverged == []
    problem = Quadratic()
    measure = problem.measure
    problem.probes = [
        Probe("metrics", [0, 40], lambda: measure().assign(loss=1 / float(problem.taken or "nan")))
    ]
    fit(problem, CONFIG, SOURCES, tmp_path / "early", 1e9)
    assert read_record(tmp_path / "early" / "record.json").outcome.diverged == []


def test_what_diverges_is_json(tmp_path):
    problem = Quadratic()
    measure = problem.measure
    problem.probes = [
        Probe("metrics", [0, 40], lambda: measure().assign(loss=[math.inf, math.nan, math.inf]))
    ]
    problem.members = [{"width": math.inf}, {"width": math.nan}, {"width": 1.0}]
    fit(problem, CONFIG, SOURCES, tmp_path, 1e9)
    texts = [(tmp_path / "record.json").read_text()]
    texts += (tmp_path / "progress.jsonl").read_text().splitlines()
    for text in texts:
        json.loads(text, parse_constant=pytest.fail)
    outcome = read_record(tmp_path / "record.json").outcome
    assert outcome.diverged[0] == {"width": "inf", "step": 40}


def test_progress_lines_say_where_training_stands(tmp_path):
    folder = tmp_path / "smoke" / "toy" / "quadratic" / "all"
    fit(Quadratic(), CONFIG, SOURCES, folder, 1e9)
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == evenly_spaced(40, 10)
    assert lines[0]["median"] == {"x": 1.0, "taken": 0.0}
    assert list(status(tmp_path)) == []
    (folder / "record.json").unlink()
    (line,) = status(tmp_path, "smoke")
    assert "smoke/toy/quadratic/all  step 40/40 (100%)  interrupted: run Snakemake" in line


@pytest.mark.parametrize(
    ("age", "left"), [(0, "0:05:00 left"), (50, "0:04:10 left"), (400, "0:00:00 left")]
)
def test_time_left_counts_down_between_lines(age, left):
    line = Line(step=1, steps=4, seconds=100, pid=1, median={})
    assert left in describe(STUDY.folder, line, age, alive=True)


def test_finished_run_is_not_trained_again(tmp_path, capsys):
    context = Context(torch.device("cpu"), tmp_path)
    train(SPIRALS, tmp_path, context, 1e9)
    stamp = (tmp_path / "record.json").stat().st_mtime_ns
    train(SPIRALS, tmp_path, context, 1e9)
    assert (tmp_path / "record.json").stat().st_mtime_ns == stamp
    assert "has been trained already" in capsys.readouterr().out


def test_what_is_finished_depends_on_settings_sources_and_measurements(tmp_path):
    sources = STUDY.sources("depth")
    fit(Quadratic(), SPIRALS, sources, tmp_path, 1e9)
    assert training._is_finished(SPIRALS, sources, tmp_path / "record.json")
    assert not training._is_finished(SPIRALS, "others", tmp_path / "record.json")
    other = replace(SPIRALS, settings=SPIRALS.settings.model_copy(update={"noise": 0.5}))
    assert not training._is_finished(other, sources, tmp_path / "record.json")
    (tmp_path / "metrics.csv").write_text("step\n")
    assert not training._is_finished(SPIRALS, sources, tmp_path / "record.json")
    assert not training._is_finished(SPIRALS, sources, tmp_path / "nowhere")


def test_a_deleted_record_is_put_back_and_no_other_run_is(tmp_path, capsys):
    context = Context(torch.device("cpu"), tmp_path)
    train(SPIRALS, tmp_path, context, 1e9)
    record = tmp_path / "record.json"
    whole = record.read_bytes()
    record.unlink()
    train(SPIRALS, tmp_path, context, 1e9)
    assert record.read_bytes() == whole
    assert "put back" in capsys.readouterr().out
    record.unlink()
    (tmp_path / "metrics.csv").write_text("step\n")
    train(SPIRALS, tmp_path, context, 1e9)
    assert "put back" not in capsys.readouterr().out
    assert read_record(record).files == json.loads(whole)["files"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".metrics.csv.123").write_text("half")
    train(SPIRALS, tmp_path, Context(torch.device("cpu"), tmp_path), 1e9)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock", ".record.json", "metrics.csv", "progress.jsonl", "record.json",
    ]  # fmt: skip


@pytest.mark.parametrize("lost", ["nothing", "the record"])
def test_a_kill_before_the_checkpoint_is_removed_leaves_nothing(tmp_path, lost):
    context = Context(torch.device("cpu"), tmp_path)
    train(SPIRALS, tmp_path, context, 1e9)
    finished = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "checkpoint.pt").write_bytes(b"of the last epoch")
    (tmp_path / ".checkpoint.pt.7").write_bytes(b"half")
    if lost == "the record":
        (tmp_path / "record.json").unlink()
    train(SPIRALS, tmp_path, context, 1e9)
    assert sorted(path.name for path in tmp_path.iterdir()) == finished


def test_a_record_says_what_computed(tmp_path):
    fit(Quadratic(), CONFIG, SOURCES, tmp_path, 1e9)
    record = read_record(tmp_path / "record.json")
    found = record.provenance
    assert (found.sources, found.device, found.threads) == (SOURCES, "cpu", 1)
    assert (found.engine, found.precision) == ("torch", "")
    assert torch.__version__.startswith(found.versions["torch"])
    assert record.data.hash == Quadratic().data.hash
    assert record.config.model_dump() == CONFIG.to_json()
    assert record.timing.peak_memory_mb > 0


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"device: cuda, but torch sees no GPU; use auto\.$"):
        choose_device("cuda")


def test_a_configuration_is_read_from_text_or_a_file(tmp_path):
    text = json.dumps(SPIRALS.to_json())
    path = tmp_path / "config.json"
    path.write_text(text)
    assert read_config(text) == read_config(str(path)) == SPIRALS


CONFIGURATIONS = {
    "cut": (lambda text: text[:-1], "--config: not valid JSON"),
    "not a number": (lambda text: text.replace("0.4", "NaN"), "NaN is not a finite number"),
    "twice": (lambda text: text.replace("{", '{"run": "a", ', 1), "duplicate key 'run'; keep one"),
    "unknown key": (lambda text: text.replace('"run"', '"runs"'), "runs: .*did you mean 'run'"),
    "unknown study": (lambda text: text.replace("two_spirals", "three"), "study 'three' does not"),
    "unknown experiment": (
        lambda text: text.replace('"depth", "run"', '"dept", "run"'),
        "--config: experiment 'dept' does not exist; did you mean 'depth'",
    ),
    "wrong setting": (lambda text: text.replace("0.4", "-1"), "--config: settings.noise: -1"),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_wrong_configuration_is_named(case):
    change, words = CONFIGURATIONS[case]
    text = json.dumps(SPIRALS.to_json())
    assert change(text) != text
    with pytest.raises(UserError, match=words):
        read_config(change(text))


def hold(path, ready, seconds):
    with locked(path):
        ready.set()
        time.sleep(seconds)


@pytest.mark.slow
def test_a_second_trainer_waits_for_the_first(tmp_path, capsys):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path / ".lock", ready, 1.0))
    holder.start()
    assert ready.wait(60)
    assert is_locked(tmp_path / ".lock")
    with locked(tmp_path / ".lock"):
        holder.join(60)
        assert holder.exitcode == 0
    assert "waiting" in capsys.readouterr().out
    assert not is_locked(tmp_path / ".lock")


def test_probe_steps_include_both_ends():
    assert log_spaced(1000, 4) == [0, 1, 10, 100, 1000]
    assert evenly_spaced(10, 4) == [0, 2, 5, 8, 10]
    assert evenly_spaced(2, 40) == [0, 1, 2]
