"""Finite and infinite width, images: run records to tidy tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from resnet_limits.runs import Run, Runs, collect
from resnet_limits.stats import means

MNIST = ["model", "layers", "channels", "pretraining"]
CIFAR = ["model", "layers", "width"]
MEASURES = ["train_loss", "train_error", "test_loss", "test_error"]
MARKS = ["seed", "epoch", "dataset", "diverged"]
SPEED = "mean_log_train_loss"


def mnist_curves(runs: Runs) -> pd.DataFrame:
    """Losses and errors of both experiments on MNIST after every epoch."""
    return _collect([*runs["mnist_layers"], *runs["mnist_channels"]], MNIST)


def mnist_final(runs: Runs) -> pd.DataFrame:
    """Per run, the last epoch's; and how fast the training loss fell."""
    return _final(mnist_curves(runs), MNIST)


def cifar_curves(runs: Runs) -> pd.DataFrame:
    """Losses and errors on CIFAR-10 after every epoch."""
    return _collect(runs["cifar"], CIFAR)


def cifar_final(runs: Runs) -> pd.DataFrame:
    """Per run, the last epoch's."""
    return _final(cifar_curves(runs), CIFAR)


def image_means(runs: Runs) -> pd.DataFrame:
    """Means over seeds of what the last epoch has, a row for each network and measure."""
    finals = []
    if runs["mnist_layers"] or runs["mnist_channels"]:
        finals.append(mnist_final(runs))
    if runs["cifar"]:
        # A stage of 64 channels is the counterpart of a flow of so many.
        cifar = cifar_final(runs).rename(columns={"width": "channels"})
        finals.append(cifar.assign(pretraining=0))
    table = pd.concat(finals, ignore_index=True)
    tall = table.melt(["dataset", *MNIST], MEASURES, var_name="measure", value_name="value")
    return means(tall, ["dataset", *MNIST, "measure"], "value")


def _collect(runs: list[Run], columns: list[str]) -> pd.DataFrame:
    return collect(runs, columns)[[*columns, *MARKS, *MEASURES]]


def _final(curves: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Return each run's last row, with the mean log training loss of its epochs from 1 on."""
    run = [*columns, "seed"]
    trained = curves[curves["epoch"] > 0].sort_values("epoch")
    trained[SPEED] = np.log(trained["train_loss"].to_numpy(dtype=float))
    trained[SPEED] = trained.groupby(run)[SPEED].transform("mean")
    return trained.groupby(run, sort=False).tail(1).reset_index(drop=True)
