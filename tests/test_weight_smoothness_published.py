"""The authors' networks, on files of their form that the test writes."""

import pickle

import numpy as np
import pytest
import torch

from resnet_limits.errors import UserError
from resnet_limits.problem import Context
from resnet_limits.spec import load_study
from resnet_limits.studies.weight_smoothness import published_problems, published_tables
from resnet_limits.studies.weight_smoothness.published_problems import PublishedProblem
from tests.studies import PlantedRun, configuration, draw_figures, make_tables

STUDY = load_study("weight_smoothness")
DEPTH = 6


def settings():
    return configuration("weight_smoothness", "published", depth=DEPTH).settings


def content(smooth):
    """Return what one of the authors' files holds."""
    net = {"linear.weight": torch.randn(10, 16)}
    for name in ("conv1", "conv2"):
        slope = torch.randn(16, 16, 3, 3)
        for k in range(DEPTH):
            layer = k / DEPTH * slope if smooth else torch.randn(16, 16, 3, 3)
            net[f"residual_layers.{k}.{name}.weight"] = layer
            net[f"residual_layers.{k}.{name}.bias"] = torch.zeros(16)
    return {"net": net, "log_dict": {"test_acc": [10.0, 80.0, 79.0], "train_acc": [10.0, 82.0]}}


def write(root, activation, init, batch_norm, held=None):
    member = {"activation": activation, "init": init, "batch_norm": batch_norm}
    path = root / "marion2024" / published_problems.file_name(DEPTH, member)
    path.parent.mkdir(exist_ok=True)
    torch.save(held or content(init == "weight_tied"), path)
    return path


def problem(root):
    return PublishedProblem(settings(), Context(torch.device("cpu"), root))


def run_of(root):
    """Return what `fit` would record of the files under a data root."""
    found = problem(root)
    probes = {probe.name: probe.measure().assign(step=0) for probe in found.probes}
    run = PlantedRun({}, **probes)
    run.record.data.name = found.data.name
    return {"published": [run]}


def test_files_have_the_authors_names():
    member = {"activation": "gelu", "init": "weight_tied", "batch_norm": True}
    assert published_problems.file_name(256, member) == (
        "ckpt_lr_4e-02_depth_256_seed_0_use_bn_True_smooth_init_True_adaptive_False_non_lin_gelu.pth"
    )


def test_networks_are_measured_as_they_are(tmp_path):
    for init in ("weight_tied", "iid"):
        for norm in (True, False):
            write(tmp_path, "gelu", init, norm)
    table = published_tables.published(run_of(tmp_path)).set_index(published_tables.NETWORK)
    assert len(table) == 8 and table["found"].sum() == 4
    smooth, rough = (table.loc[("gelu", init, True)] for init in ("weight_tied", "iid"))
    line = 6 / (DEPTH * (DEPTH + 1))  # von Neumann ratio of a straight line
    assert smooth["ratio_conv1"] == pytest.approx(line, rel=1e-4)
    assert rough["ratio"] == pytest.approx(1, abs=0.2)
    assert smooth["paper_smooth"] and not rough["paper_smooth"]
    assert (smooth["test_accuracy"], smooth["best_test_accuracy"]) == (79, 80)
    assert smooth["train_accuracy"] == 82
    assert np.isnan(table.loc[("relu", "iid", True), "ratio"])
    assert set(table["dataset"]) == {published_problems.PRESENT}


def test_tables_and_figures_with_some_of_the_files_and_without_any(tmp_path):
    for _ in range(2):
        made = make_tables("weight_smoothness", run_of(tmp_path))
        assert len(made["published"]) == 8
        assert list(draw_figures("weight_smoothness", made)) == ["published_weights"]
        write(tmp_path, "relu", "iid", True)


def test_absent_files_are_said_to_be_absent(tmp_path):
    found = problem(tmp_path)
    assert [probe.name for probe in found.probes] == ["metrics"]
    assert not found.measure()["found"].any()
    assert found.data.name == published_problems.ABSENT
    claims = [claim for claim in STUDY.claims if claim.table.startswith("published")]
    assert claims and all(found.data.name in claim.not_tested_on for claim in claims)


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


def test_no_code_of_a_file_is_executed(tmp_path, capsys):
    path = write(tmp_path, "gelu", "iid", True, Harmful())
    with pytest.raises(UserError, match="cannot be read without executing it"):
        problem(tmp_path)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(UserError, match="cannot be read without executing it"):
        problem(tmp_path)
    assert capsys.readouterr().out == ""


def broken(change):
    held = content(smooth=False)
    change(held)
    return held


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("net"), "'net'"),
        (lambda held: held["net"].pop("residual_layers.3.conv2.weight"), "residual_layers.3"),
        (
            lambda held: held["net"].update(
                {"residual_layers.6.conv1.weight": torch.zeros(16, 16, 3, 3)}
            ),
            "more than 6 layers",
        ),
        (
            lambda held: held["net"].update({"residual_layers.0.conv1.weight": torch.zeros(3)}),
            "not of shape",
        ),
        (
            lambda held: held["net"]["residual_layers.0.conv1.weight"].fill_(np.nan),
            "not finite",
        ),
        (lambda held: held["log_dict"].update(test_acc=[]), "percentages"),
        (lambda held: held["log_dict"].update(test_acc=[120.0]), "percentages"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, change, message):
    write(tmp_path, "gelu", "iid", True, broken(change))
    with pytest.raises(UserError, match=message):
        problem(tmp_path)


def test_cut_file_is_refused(tmp_path):
    path = write(tmp_path, "gelu", "iid", True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        problem(tmp_path)
