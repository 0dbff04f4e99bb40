"""Two Spirals, the study: training, pairing of seeds, and tables that recover planted rates."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from resnet_limits.record import read_record
from resnet_limits.studies.two_spirals.experiments import spirals

from resnet_limits import train
from resnet_limits.probes import evenly_spaced
from resnet_limits.spec import load_study
from resnet_limits.studies.two_spirals import tables

STUDY = load_study("two_spirals")
SIZES = np.array([32, 128, 512, 2048])
N_TEST = 2**20  # planted errors are whole numbers of test points
STEPS, PROBES = 1000, 40


def test_every_variant_trains_a_few_steps(tmp_path):
    for run in STUDY.runs("smoke"):
        config = run | {"settings": run["settings"] | {"steps": 2}}
        folder = tmp_path / run["experiment"] / run["run"]
        train.train(config, folder, train.Context(torch.device("cpu"), tmp_path), 1e9)
        assert read_record(folder / "record.json")["outcome"]["state"] == "finished"


def test_seeds_share_weights_and_test_points_across_variants():
    context = train.Context(torch.device("cpu"), Path())
    settings = STUDY.run("smoke", "depth", "depth10")["settings"]
    one = spirals(SimpleNamespace(**settings), context)
    other = spirals(SimpleNamespace(**settings | {"depth": 20, "n_train": [32, 64]}), context)
    count = len(settings["seed"])
    assert torch.equal(one.model.field_inner, other.model.field_inner[count:])
    assert torch.equal(one.test_x, other.test_x[:count])
    assert torch.equal(one.sets[0].x, other.sets[1].x)


class Planted:
    """A finished run whose probes measured what is given."""

    def __init__(self, field="constant", **measured):
        self.settings = {"field": field, "n_test": N_TEST, "steps": STEPS, "probes": PROBES}
        files = {f"{probe}.csv": "" for probe in measured}
        self.record = {"outcome": {"diverged": []}, "data": {"name": "planted"}, "files": files}
        self.measured = measured

    def measurements(self, probe="metrics"):
        return self.measured[probe].copy()


def last_errors(errors):
    """Return measurements at the last step, from a seed's test errors at every size."""
    rows = {"step": STEPS, "n_train": SIZES}
    frames = [pd.DataFrame({**rows, "seed": seed, "test_error": e}) for seed, e in errors.items()]
    return pd.concat(frames, ignore_index=True)


def member(**columns):
    """Return the measurements of one network."""
    return pd.DataFrame({"n_train": 32, "seed": 0, **columns})


def test_rates_recover_planted_powers_from_the_seeds_they_name():
    paper = {seed: factor / SIZES for seed, factor in enumerate((8.0, 4.0, 2.0))}
    slow = {seed: factor / SIZES**0.25 for seed, factor in enumerate((0.8, 0.6, 0.7, 0.5))}
    constant = Planted(metrics=last_errors(paper | {3: 256 / SIZES**2.0}))
    removed = Planted("removed", metrics=last_errors(slow))
    found = tables.rates({"rate": [constant, removed]})
    slopes = found.set_index(["field", "seeds", "method"])["slope"]
    for method in ("least squares", "binomial"):
        assert slopes["constant", "paper", method] == pytest.approx(-1, abs=1e-4)
        assert slopes["constant", "all", method] < -1.05  # the fourth seed falls like n^-2
        assert slopes["removed", "all", method] == pytest.approx(-0.25, abs=1e-4)
    assert len(found) == 8


def test_decay_recovers_a_planted_exponential_rate():
    steps = np.array(evenly_spaced(STEPS, PROBES))
    falling = np.where(steps <= 500, np.exp(-0.02 * steps), 1.0)
    error = np.where(steps == 750, 0.01, 0.4)
    good = member(step=steps, train_loss=falling, train_error=error)
    early = member(step=[1, 3], train_loss=1e6, train_error=0.4)  # log-spaced: in no fit
    growing = member(step=steps, train_loss=1.0 + steps, train_error=0.02)
    run = Planted(metrics=pd.concat([good, early, growing.assign(seed=1)]))
    decaying, other = tables.decay({"rate": [run]}).to_dict("records")
    assert decaying["rate"] == pytest.approx(0.02)
    assert decaying["r_squared"] == pytest.approx(1)
    assert (decaying["first_step"], decaying["last_step"]) == (0, 500)
    assert decaying["linear"] and decaying["nearly_zero_error"]
    assert not other["linear"] and not other["nearly_zero_error"]


def test_gram_marks_members_whose_ratio_falls_below_one_half():
    steps = [0, 10, STEPS]
    kept = member(step=steps, g_min=[3.0, 1.5, 1.6])
    lost = member(step=steps, g_min=[0.2, 0.09, 0.2]).assign(seed=1)  # and recovers
    runs = [Planted(gram=pd.concat([kept, lost])), Planted("removed")]
    table = tables.gram({"rate": runs})
    last = table[table["last"]].set_index("seed")
    assert len(table) == 6 and (last["step"] == STEPS).all()
    assert last["smallest_ratio"].tolist() == pytest.approx([0.5, 0.45])
    assert last["kept"].tolist() == [True, False]
