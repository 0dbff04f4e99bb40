"""The image experiments of the study of finite and infinite width, on digits."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from resnet_limits.record import Run, read_record

from resnet_limits import style
from resnet_limits.claims import judge
from resnet_limits.spec import load_study
from resnet_limits.studies.rff_width import image_plots, image_tables, images
from resnet_limits.train import Context, fit

STUDY = "rff_width"
EXPERIMENTS = ("mnist_layers", "mnist_channels", "cifar")
TABLES = ("mnist_curves", "mnist_final", "cifar_curves", "cifar_final", "image_means")


class StoppedError(Exception):
    pass


def configuration(experiment, place=0, **changes):
    config = list(load_study(STUDY).runs("smoke", experiment))[place]
    return {**config, "settings": {**config["settings"], **changes}}


def problem(config, root):
    build = images.cifar if config["experiment"] == "cifar" else images.mnist
    return build(SimpleNamespace(**config["settings"]), Context(torch.device("cpu"), root))


def run(config, folder, stop=None):
    trained = problem(config, folder)
    if stop is not None:
        step = trained.step

        def until():
            if int(trained.taken) == stop:
                raise StoppedError
            return step()

        trained.step = until
    # A checkpoint before every step.
    fit(trained, config, folder, -1.0 if stop is not None else 1e9)
    return Run(folder, read_record(folder / "record.json"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return {
        experiment: [
            run(configuration(experiment, place), tmp_path_factory.mktemp("run"))
            for place in range(len(list(load_study(STUDY).runs("smoke", experiment))))
        ]
        for experiment in EXPERIMENTS
    }


@pytest.mark.parametrize("stop", [2, 4, 6])  # in pretraining, between, and after it
@pytest.mark.parametrize("place", [0, 1])
def test_resumed_training_ends_with_the_same_bits(tmp_path, stop, place):
    config = configuration("mnist_layers", place)
    run(config, tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(config, tmp_path / "cut", stop)
    assert run(config, tmp_path / "cut").record["timing"]["resumed"] == 1
    metrics = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("whole", "cut")]
    assert metrics[0] == metrics[1]


def test_phases_train_the_maps_and_then_the_flow(tmp_path):
    config = configuration("mnist_layers", pretraining=1)
    trained = problem(config, tmp_path)
    network = trained.network

    def copies(parameters):
        return [parameter.detach().clone() for parameter in parameters]

    def equal(parameters, copied):
        return [torch.equal(a, b) for a, b in zip(parameters, copied, strict=True)]

    for step in range(trained.steps):
        maps, flow = copies(network.maps), copies(network.flow.outer)
        statistics = network.input_map[1].running_mean.clone()
        trained.step()
        trained.optimizer.step()
        pretraining = step < trained.steps_per_epoch
        assert all(equal(network.flow.outer, flow)) == pretraining
        assert all(equal(network.maps, maps)) != pretraining
        assert torch.equal(network.input_map[1].running_mean, statistics) != pretraining


def test_learning_rates_of_both_phases(tmp_path):
    config = configuration("mnist_layers", pretraining=2, epochs=3)
    settings = config["settings"] | {
        "learning_rate": 0.5,
        "pretraining_rate": 0.1,
        "schedule": {"kind": "step", "milestones": [2], "factor": 0.2},
    }
    trained = problem({**config, "settings": settings}, tmp_path)
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
    epochs = pd.read_csv(runs["mnist_layers"][0].folder / "metrics.csv")["epoch"]
    assert epochs.tolist() == [-1, 0, 1, 2]


def test_a_cell_is_trained_once():
    for scale in ("smoke", "quick", "laptop", "paper"):
        cells = [
            tuple(config["settings"][name] for name in [*image_tables.MNIST, "seed"])
            for experiment in ("mnist_layers", "mnist_channels")
            for config in load_study(STUDY).runs(scale, experiment)
        ]
        assert len(cells) == len(set(cells))


def test_channels_figure_finds_the_widest_network_at_every_scale():
    study = load_study(STUDY)
    for scale in ("smoke", "quick", "laptop", "paper"):
        few = next(iter(study.runs(scale, "mnist_channels")))["settings"]
        wide = [config["settings"] for config in study.runs(scale, "mnist_layers")]
        same = [*{"model", "layers", "pretraining"}]
        assert any(all(few[name] == other[name] for name in same) for other in wide)


def test_tables_and_figures(runs, tmp_path):
    made = {name: getattr(image_tables, name)(runs) for name in TABLES}
    assert set(made["mnist_final"]["channels"]) == {4, 32}
    assert (made["mnist_final"]["epoch"] == 2).all()
    assert len(made["image_means"]) == 4 * (len(made["mnist_final"]) + len(made["cifar_final"]))
    with style.applied():
        for name in EXPERIMENTS:
            figure = getattr(image_plots, name)(made)
            lines = [line for ax in figure.axes for line in ax.get_lines()]
            assert len(lines) == 2 * 2  # two networks, loss and error
            style.save(figure, tmp_path / name, made, [], "smoke")
    for claim in load_study(STUDY).claims:
        if claim["table"] in made:
            assert set(claim.get("select", {})) <= set(made[claim["table"]].columns)


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
    claims = [claim for claim in load_study(STUDY).claims if claim["table"] in tables]
    return {c["id"]: judge(c, tables[c["table"]], scale)["verdict"] for c in claims}


def test_claims_of_planted_results():
    assert set(verdicts(planted()).values()) == {"reproduced"}
    apart = verdicts(planted(gap=5))
    assert apart["mnist_generalizes"] == apart["cifar_generalizes"] == "not reproduced"
    assert set(verdicts(planted(seeds=1)).values()) == {"inconclusive"}
    digits = planted().assign(dataset="digits")
    assert set(verdicts(digits, "quick").values()) == {"not tested"}
    laptop = verdicts(planted(), "laptop")
    assert laptop["mnist_fits"] == laptop["mnist_generalizes"] == "not tested"
    assert laptop["mnist_generalizes_pretrained"] == "reproduced"
