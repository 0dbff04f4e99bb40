"""The image experiments of the study of finite and infinite width, on digits."""

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits.claims import judge
from resnet_limits.spec import load_study
from resnet_limits.studies.rff_width import image_plots, image_tables
from resnet_limits.study_files import TRAINED_SCALES
from resnet_limits.testing import assert_run_resumes
from tests.studies import configuration, draw_figures, make_tables, problem, smoke_runs, train

STUDY = load_study("rff_width")
EXPERIMENTS = ("mnist_layers", "mnist_channels", "cifar")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return smoke_runs("rff_width", tmp_path_factory.mktemp("results"), EXPERIMENTS)


@pytest.mark.parametrize("model", ["rkhs", "shl"])
def test_resumed_flow_ends_with_the_same_bits(tmp_path, model):
    config = configuration("rff_width", "mnist_layers", f"{model}_layers2_pretraining1_seed0")
    assert_run_resumes(config, tmp_path, after=[2, 4, 6])  # in pretraining, at its end, after it


@pytest.mark.parametrize("run", [0, 1])
def test_resumed_block_network_ends_with_the_same_bits(tmp_path, run):
    assert_run_resumes(configuration("rff_width", "cifar", run), tmp_path)


def test_phases_train_the_maps_and_then_the_flow():
    trained = problem("rff_width", "mnist_layers", pretraining=1)
    network = trained.network

    def copies(parameters):
        return [parameter.detach().clone() for parameter in parameters]

    def equal(parameters, copied):
        return [torch.equal(a, b) for a, b in zip(parameters, copied, strict=True)]

    for step in range(trained.steps):
        maps, flow = copies(network.maps), copies(network.flow.outer)
        statistics = network.input_map[1].running_mean.clone()
        train(trained, 1)
        pretraining = step < trained.steps_per_epoch
        assert all(equal(network.flow.outer, flow)) == pretraining
        assert all(equal(network.maps, maps)) != pretraining
        assert torch.equal(network.input_map[1].running_mean, statistics) != pretraining


def test_learning_rates_of_both_phases():
    trained = problem(
        "rff_width",
        "mnist_layers",
        pretraining=2,
        epochs=3,
        learning_rate=0.5,
        pretraining_rate=0.1,
        schedule={"kind": "step", "milestones": [2], "factor": 0.2},
    )
    flow, maps = trained.optimizer.param_groups
    assert {id(p) for p in maps["params"]} == {id(p) for p in trained.network.maps}
    seen = []
    for step in range(trained.steps):
        if step % trained.steps_per_epoch == 0:
            seen.append((flow["lr"], maps["lr"]))
        trained.optimizer.step()
        trained.scheduler.step()
    assert [rate for rate, _ in seen] == pytest.approx([0.5] * 4 + [0.1])
    assert [rate for _, rate in seen[:2]] == [0.1, 0.1]


def test_epochs_are_counted_from_the_flow(runs):
    epochs = runs["mnist_layers"][0].measurements()["epoch"]
    assert epochs.tolist() == [-1, 0, 1, 2]


@pytest.mark.parametrize("scale", TRAINED_SCALES)
def test_a_cell_is_trained_once(scale):
    cells = [
        tuple(getattr(config.settings, name) for name in [*image_tables.MNIST, "seed"])
        for experiment in ("mnist_layers", "mnist_channels")
        for config in STUDY.runs(scale, experiment)
    ]
    assert len(cells) == len(set(cells))


@pytest.mark.parametrize("scale", TRAINED_SCALES)
def test_channels_figure_finds_the_widest_network_at_every_scale(scale):
    few = next(STUDY.runs(scale, "mnist_channels")).settings
    wide = [config.settings for config in STUDY.runs(scale, "mnist_layers")]
    same = ("model", "layers", "pretraining")
    assert any(all(getattr(few, name) == getattr(other, name) for name in same) for other in wide)


def test_tables_and_figures(runs):
    made = make_tables("rff_width", runs)
    assert set(made["mnist_final"]["channels"]) == {4, 32}
    assert (made["mnist_final"]["epoch"] == 2).all()
    assert len(made["image_means"]) == 4 * (len(made["mnist_final"]) + len(made["cifar_final"]))
    drawn = draw_figures("rff_width", made)
    assert set(drawn) == set(EXPERIMENTS)
    for figure in drawn.values():
        lines = [line for ax in figure.axes for line in ax.get_lines()]
        assert len(lines) == 2 * 2  # two networks, loss and error
    for claim in STUDY.claims:
        if claim.table in made:
            assert set(claim.select) <= set(made[claim.table].columns)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_means_of_one_experiment_alone(runs, experiment):
    found = image_tables.image_means(
        {name: [] for name in EXPERIMENTS} | {experiment: runs[experiment]}
    )
    networks = {(run.settings["layers"], run.settings["model"]) for run in runs[experiment]}
    assert set(zip(found["layers"], found["model"], strict=True)) == networks


def test_channels_figure_without_few_channels_says_so(runs):
    alone = {"mnist_layers": runs["mnist_layers"], "mnist_channels": []}
    figure = image_plots.mnist_channels({"mnist_curves": image_tables.mnist_curves(alone)})
    assert "not run" in figure.axes[0].texts[0].get_text()


def test_speed_is_the_mean_log_loss_after_pretraining():
    curves = pd.DataFrame({"epoch": [-1, 0, 1, 2], "train_loss": [np.nan, 9.0, np.e, np.e**3]})
    curves = curves.assign(model="rkhs", layers=1, channels=1, pretraining=1, seed=0)
    final = image_tables._final(curves, image_tables.MNIST)
    assert final["mean_log_train_loss"].tolist() == pytest.approx([2.0])
    assert final["epoch"].tolist() == [2]


def planted(seeds=3, gap=0.1):
    """Final rows in which loss and error fall with channels, and RKHS is worse by the gap."""
    draws = np.random.default_rng(0)
    rows = [
        {
            "model": model,
            "layers": 20,
            "channels": channels,
            "pretraining": pretraining,
            "seed": seed,
            "train_loss": 0.01 * draws.uniform(0.9, 1.1),
            "mean_log_train_loss": -np.log(channels) + 0.01 * draws.normal(),
            "test_error": 8 / channels + gap * (model == "rkhs") + 0.01 * draws.normal(),
            "dataset": "mnist",
            "diverged": False,
        }
        for model in ("rkhs", "shl")
        for channels in (4, 8, 32)
        for pretraining in (0, 3)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def verdicts(table, scale="paper"):
    tables = {
        "mnist_final": table,
        "cifar_final": table.query("channels == 32 and pretraining == 0"),
    }
    claims = [claim for claim in STUDY.claims if claim.table in tables]
    return {claim.id: judge(claim, tables[claim.table], scale).verdict for claim in claims}


def test_claims_of_planted_results():
    assert set(verdicts(planted()).values()) == {"reproduced"}
    apart = verdicts(planted(gap=5))
    assert apart["mnist_generalizes"] == apart["cifar_generalizes"] == "not reproduced"
    assert set(verdicts(planted(seeds=1)).values()) == {"inconclusive"}
    digits = planted().assign(dataset="digits")
    assert set(verdicts(digits, "quick").values()) == {"not tested"}
    short = planted().assign(protocol="reduced", departures="epochs 4")
    assert set(verdicts(short, "laptop").values()) == {"not tested"}
