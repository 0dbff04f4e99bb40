"""The image experiments of the study of finite and infinite width, on digits."""

import numpy as np
import pandas as pd
import pytest
import torch

from resnet_limits.claims import judge, read_reference
from resnet_limits.errors import UserError
from resnet_limits.spec import load_study
from resnet_limits.studies.rff_width import image_plots, image_tables
from resnet_limits.testing import assert_run_resumes
from tests.studies import (
    PlantedRun,
    configuration,
    draw_figures,
    make_tables,
    problem,
    smoke_runs,
    train,
)

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


def test_a_shortened_run_keeps_the_schedule():
    for experiment, epochs in (("mnist_layers", 5), ("cifar", 2)):
        whole = next(STUDY.runs("paper", experiment)).settings
        short = next(STUDY.runs("laptop", experiment)).settings
        assert short.stop_after == epochs
        assert short.model_copy(update={"stop_after": whole.stop_after}) == whole


def test_pixels_are_normalized_as_the_settings_say():
    plain = problem("rff_width", "mnist_layers", normalization={"mean": [0.0], "std": [1.0]})
    moved = problem("rff_width", "mnist_layers", normalization={"mean": [0.5], "std": [0.25]})
    (x, _), (y, _) = (made.test_batches.plain(slice(0, 5)) for made in (plain, moved))
    assert 0 == x.min() < x.max() <= 1
    torch.testing.assert_close(y, (x - 0.5) / 0.25)


def test_normalization_must_fit_the_channels():
    with pytest.raises(UserError, match="2 values for the 1 channels of digits"):
        problem("rff_width", "cifar", normalization={"mean": [0.5, 0.5], "std": [0.25]})


def test_tables_and_figures(runs):
    made = make_tables("rff_width", runs)
    assert set(made["mnist_curves"]["channels"]) == {4, 8, 32}
    assert made["authors_curves"].empty  # digits are no data set of theirs
    assert made["mnist_curves"]["authors_loss"].isna().all()
    assert (made["agreement"]["epoch"] == 2).all()
    assert len(made["agreement"]) == sum(map(len, runs.values()))  # one seed each
    drawn = draw_figures("rff_width", made)
    assert set(drawn) == set(EXPERIMENTS)
    for claim in STUDY.claims:
        if claim.table in made:
            assert set(claim.select) <= set(made[claim.table].columns)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_agreement_of_one_experiment_alone(runs, experiment):
    found = image_tables.agreement(
        {name: [] for name in EXPERIMENTS} | {experiment: runs[experiment]}
    )
    assert set(found["experiment"]) == {experiment}


def test_channels_figure_without_its_runs_says_so(runs):
    alone = {"mnist_layers": runs["mnist_layers"], "mnist_channels": []}
    curves = image_tables.mnist_curves(alone)
    figure = image_plots.mnist_channels({"mnist_curves": curves, "authors_curves": pd.DataFrame()})
    assert "not run" in figure.axes[0].texts[0].get_text()


# Beside the authors' runs


def planted_runs(dataset="mnist", factor=1.0, seeds=3, model="rkhs", layers=20):
    """Return runs of Figure 1, pretrained, whose values are the authors' times a factor."""
    theirs = image_tables.read_authors().query(
        "dataset == 'mnist' and model == @model and layers == @layers and channels == 32 "
        "and pretraining == 3 and epoch <= 5"
    )
    rows = pd.DataFrame(
        {
            "epoch": theirs["epoch"].to_numpy(),
            "train_loss": factor * theirs["train_loss_mean"].to_numpy(),
            "test_error": factor * theirs["test_error_mean"].to_numpy(),
            "train_error": 1.0,
            "test_loss": 1.0,
        }
    )
    settings = {"model": model, "layers": layers, "channels": 32, "pretraining": 3}
    settings["dataset"] = dataset
    runs = [
        PlantedRun({**settings, "seed": seed}, metrics=rows.assign(seed=seed))
        for seed in range(seeds)
    ]
    for run in runs:
        run.record.data.name = dataset
        run.protocol = ("truncated", "stop_after is 5, the protocol has 0")
    return {"mnist_layers": runs, "mnist_channels": [], "cifar": []}


def test_curves_stand_beside_the_authors_at_the_same_epoch():
    curves = image_tables.mnist_curves(planted_runs(factor=1.5))
    assert np.allclose(curves["test_error"], 1.5 * curves["authors_error"])
    assert np.allclose(curves["error_difference"], 0.5 * curves["authors_error"])
    trained = curves[curves["epoch"] > 0]
    assert np.allclose(trained["train_loss"], 1.5 * trained["authors_loss"])
    assert len(curves) == 3 * 6


def test_agreement_counts_the_runs_that_the_authors_lost():
    found = image_tables.agreement(planted_runs(model="shl", layers=5)).iloc[0]
    assert found["epoch"] == 5
    assert found["runs"] == found["finished"] == 3
    assert found["authors_started"] == 20
    assert found["train_loss"] == pytest.approx(found["authors_loss"])


def test_the_authors_table_has_the_runs_that_ended_early():
    theirs = image_tables.read_authors().query("model == 'shl' and pretraining == 3")
    last = theirs[theirs["epoch"] == 40]
    assert last["runs"].sum() == 60
    assert (last["runs"] - last["test_runs"]).sum() == 25


def verdicts(runs):
    table = image_tables.mnist_curves(runs).assign(departures="stop_after 5")
    wanted = ("rkhs20_pretrained_loss", "rkhs_pretrained_error")
    claims = [claim for claim in STUDY.claims if claim.id in wanted]
    return [
        judge(claim, table, "laptop", read_reference(claim, STUDY.folder)).verdict
        for claim in claims
    ]


def test_runs_like_theirs_agree_and_others_do_not():
    rng = np.random.default_rng(0)
    near = planted_runs()
    for run in near["mnist_layers"]:
        run.measured["metrics"]["test_error"] += 0.01 * rng.normal()
    assert verdicts(near) == ["reproduced", "reproduced"]
    far = planted_runs(factor=2.0)
    for run in far["mnist_layers"]:
        run.measured["metrics"]["test_error"] += 0.01 * rng.normal()
    assert verdicts(far) == ["not reproduced", "not reproduced"]
    assert verdicts(planted_runs(dataset="digits")) == ["not tested", "not tested"]
