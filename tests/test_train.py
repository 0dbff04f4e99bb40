"""The training loop: resuming, divergence, probes and locks."""

import json
import multiprocessing
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from resnet_limits.record import read_record

from resnet_limits import train
from resnet_limits.locks import locked
from resnet_limits.probes import Probe, evenly_spaced, log_spaced, member_rows
from resnet_limits.spec import load_study

CONFIG = load_study("two_spirals").run("smoke", "depth", "depth10")


class Quadratic(train.Problem):
    """Minimize ``curvature x^2 / 2`` by noisy gradient descent, three members at once."""

    def __init__(self, rates=(0.1, 0.1, 0.1), steps=40, interrupt=None):
        self.members = [{"seed": seed} for seed in range(len(rates))]
        self.steps = steps
        self.x = torch.ones(len(rates), dtype=torch.float64)
        self.rates = torch.tensor(rates, dtype=torch.float64)
        self.noise = torch.Generator().manual_seed(0)
        self.state = {"x": self.x, "noise": self.noise}
        self.data = train.Data.of("quadratic", [self.rates])
        self.optimizer = torch.optim.SGD([self.x], lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.probes = [Probe("metrics", evenly_spaced(steps, 10), self.measure)]
        self.interrupt = interrupt
        self.taken = 0

    def step(self):
        if self.taken == self.interrupt:
            raise KeyboardInterrupt
        self.taken += 1
        noise = torch.randn(3, generator=self.noise, dtype=torch.float64)
        self.x.grad = 10 * self.rates * self.x + 0.01 * noise[: len(self.x)]
        return 5 * self.rates * self.x.square()

    def measure(self):
        return member_rows(self.members, x=self.x)


def metrics(folder: Path) -> bytes:
    return (folder / "metrics.csv").read_bytes()


@pytest.mark.parametrize("interrupt", [1, 17, 20, 35])
def test_resumed_training_ends_with_the_same_bits(tmp_path, interrupt):
    train.fit(Quadratic(), CONFIG, tmp_path / "whole", 1e9)
    for broken in (Quadratic(interrupt=interrupt), Quadratic(interrupt=4)):
        try:
            train.fit(broken, CONFIG, tmp_path / "broken", -1)  # a checkpoint every step
        except KeyboardInterrupt:
            continue
    train.fit(Quadratic(), CONFIG, tmp_path / "broken", -1)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    record = read_record(tmp_path / "broken" / "record.json")
    assert record["timing"]["resumed"] >= 1
    assert record["outcome"] == read_record(tmp_path / "whole" / "record.json")["outcome"]
    assert not (tmp_path / "broken" / "checkpoint.pt").exists()


def test_checkpoint_of_another_configuration_is_not_continued(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        train.fit(Quadratic(interrupt=20), CONFIG, tmp_path, -1)
    other = CONFIG | {"settings": CONFIG["settings"] | {"learning_rate": 0.5}}
    train.fit(Quadratic(), other, tmp_path, -1)
    assert "starting over" in capsys.readouterr().out
    assert read_record(tmp_path / "record.json")["timing"]["resumed"] == 0


def test_damaged_checkpoint_is_not_fatal(tmp_path, capsys):
    (tmp_path / "checkpoint.pt").write_bytes(b"half a checkp")
    train.fit(Quadratic(), CONFIG, tmp_path, 1e9)
    assert "starting over" in capsys.readouterr().out


def test_divergence_is_recorded_and_leaves_other_members_alone(tmp_path):
    train.fit(Quadratic(rates=(0.1, 1e200, 0.1)), CONFIG, tmp_path / "one", 1e9)
    train.fit(Quadratic(), CONFIG, tmp_path / "none", 1e9)
    outcome = read_record(tmp_path / "one" / "record.json")["outcome"]
    assert outcome["state"] == "finished"
    assert [member["seed"] for member in outcome["diverged"]] == [1]
    one, none = (pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "none"))
    others = one["seed"] != 1
    pd.testing.assert_frame_equal(one[others], none[others], check_exact=True)


def test_training_where_all_diverge_stops_and_says_so(tmp_path):
    train.fit(Quadratic(rates=(1e200, 1e250)), CONFIG, tmp_path, 1e9)
    outcome = read_record(tmp_path / "record.json")["outcome"]
    assert outcome["state"] == "diverged"
    assert outcome["steps"] < 40


def test_progress_lines_say_where_training_stands(tmp_path):
    train.fit(Quadratic(), CONFIG, tmp_path, 1e9)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == evenly_spaced(40, 10)
    assert {"steps", "seconds", "median"} <= lines[0].keys()


def test_finished_run_is_not_trained_again(tmp_path, capsys):
    context = train.Context(torch.device("cpu"), tmp_path)
    train.train(CONFIG, tmp_path, context, 1e9)
    stamp = (tmp_path / "record.json").stat().st_mtime_ns
    train.train(CONFIG, tmp_path, context, 1e9)
    assert (tmp_path / "record.json").stat().st_mtime_ns == stamp
    assert "already" in capsys.readouterr().out


def hold(path, ready, seconds):
    with locked(path):
        ready.set()
        time.sleep(seconds)


def test_a_second_trainer_waits_for_the_first(tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path / ".lock", ready, 1.0))
    holder.start()
    ready.wait(30)
    with locked(tmp_path / ".lock"):
        assert not holder.is_alive() or holder.join(5) is None
    assert "waiting" in capsys.readouterr().out


def test_probe_steps_include_both_ends():
    assert log_spaced(1000, 4) == [0, 1, 10, 100, 1000]
    assert evenly_spaced(10, 4) == [0, 2, 5, 8, 10]
    assert evenly_spaced(2, 40) == [0, 1, 2]
