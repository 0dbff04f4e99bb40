"""Finite and infinite width, images: run records to tidy tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from resnet_limits.runs import Run, Runs, collect

AUTHORS = Path(__file__).with_name("authors_runs.csv")
MNIST = ["model", "layers", "channels", "pretraining"]
CIFAR = ["model", "layers", "width"]
MEASURES = ["train_loss", "train_error", "test_loss", "test_error"]
MARKS = ["seed", "epoch", "dataset", "diverged", "protocol"]
NETWORK = ["experiment", *MNIST]
THEIRS = {
    "train_loss_mean": "authors_loss",
    "train_loss_sd": "authors_loss_sd",
    "test_error_mean": "authors_error",
    "test_error_sd": "authors_error_sd",
    "test_runs": "authors_runs",
}


def mnist_curves(runs: Runs) -> pd.DataFrame:
    """Losses and errors of both experiments on MNIST after every epoch, beside the authors'."""
    names = ("mnist_layers", "mnist_channels")
    parts = [_collect(runs[name], MNIST).assign(experiment=name) for name in names if runs[name]]
    return _beside_theirs(pd.concat(parts, ignore_index=True), "mnist", MNIST)


def cifar_curves(runs: Runs) -> pd.DataFrame:
    """Losses and errors on CIFAR-10 after every epoch, beside the authors'."""
    table = _collect(runs["cifar"], CIFAR).assign(experiment="cifar")
    # The authors' networks have 64 channels.
    table = _beside_theirs(table, "cifar10", ["model", "layers"])
    table.loc[table["width"] != 64, list(THEIRS.values())] = np.nan
    return table


def authors_curves(runs: Runs) -> pd.DataFrame:
    """Means and standard deviations of the authors' runs, for the data sets that were run.

    ``runs`` is what is left of their runs: those whose output was not finite ended. Their data set
    is ``authors_dataset``; ``dataset`` is empty, since no run of ours made these numbers.
    """
    table = read_authors().rename(columns={"dataset": "authors_dataset"})
    trained = {run.settings["dataset"] for found in runs.values() for run in found}
    return table[table["authors_dataset"].isin(trained)].reset_index(drop=True).assign(dataset=None)


def agreement(runs: Runs) -> pd.DataFrame:
    """Per network at its last epoch: mean and spread of our runs and of the authors'.

    ``finished`` counts our runs that did not diverge; ``authors_runs`` theirs that lasted to that
    epoch, ``authors_started`` all of theirs.
    """
    curves = [table.assign(last=_is_last(table)) for table in _image_curves(runs)]
    table = pd.concat(curves, ignore_index=True)
    groups = table[table["last"]].groupby([*NETWORK, "dataset", "protocol"], sort=False)
    return groups.agg(
        epoch=("epoch", "max"),
        runs=("seed", "nunique"),
        finished=("diverged", lambda diverged: int((~diverged.astype(bool)).sum())),
        train_loss=("train_loss", "mean"),
        train_loss_sd=("train_loss", "std"),
        test_error=("test_error", "mean"),
        test_error_sd=("test_error", "std"),
        **{name: (name, "first") for name in [*THEIRS.values(), "authors_started"]},
    ).reset_index()


def read_authors() -> pd.DataFrame:
    """Return the summary of the authors' published runs, with our names of columns."""
    return pd.read_csv(AUTHORS).rename(columns={"pretraining_epochs": "pretraining"})


def _image_curves(runs: Runs) -> list[pd.DataFrame]:
    tables = []
    if runs["mnist_layers"] or runs["mnist_channels"]:
        tables.append(mnist_curves(runs))
    if runs["cifar"]:
        # A stage of 64 channels is the counterpart of a flow of so many.
        cifar = cifar_curves(runs).rename(columns={"width": "channels"})
        tables.append(cifar.assign(pretraining=0))
    return tables


def _collect(runs: list[Run], columns: list[str]) -> pd.DataFrame:
    table = collect(runs, columns)
    return table[[*columns, *(name for name in MARKS if name in table), *MEASURES]]


def _beside_theirs(table: pd.DataFrame, dataset: str, network: list[str]) -> pd.DataFrame:
    """Add the authors' numbers of the same network at the same epoch, and ours minus theirs.

    A stand-in data set has none of theirs.
    """
    theirs = read_authors().query("dataset == @dataset")
    point = [*network, "epoch"]
    wanted = theirs[[*point, *THEIRS, "runs"]].rename(columns=THEIRS | {"runs": "authors_started"})
    is_theirs = table["dataset"].str.startswith(dataset)
    found = table[is_theirs].merge(wanted, how="left", on=point)
    table = pd.concat([found, table[~is_theirs]], ignore_index=True)
    table = table.reindex(columns=[*found.columns])
    table["error_difference"] = table["test_error"] - table["authors_error"]
    return table


def _is_last(table: pd.DataFrame) -> pd.Series:
    run = [name for name in [*NETWORK, "width", "seed"] if name in table]
    return table["epoch"] == table.groupby(run)["epoch"].transform("max")
