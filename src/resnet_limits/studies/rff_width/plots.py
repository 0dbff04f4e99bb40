"""Finite and infinite width: tidy tables to figures."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_limits import style
from resnet_limits.style import Tables

KERNELS = {
    "gaussian": "Gaussian",
    "matern4.5": r"Matérn, $\nu = 4.5$",
    "matern2.5": r"Matérn, $\nu = 2.5$",
}
LOOKS = style.looks(list(KERNELS))
INFINITE: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 1.5)), "linewidth": 1.3}
FLOOR = 1e-11
LEAST_ERROR = 1e-4  # of eigenvalues, for intervals that reach 0


def width(tables: Tables) -> Figure:
    """Draw the loss over gradient steps for some widths and for infinite width."""
    table = _one_size(tables["curves"])
    # Of a width with draws that diverged, the median of the others would look too good.
    table = table[table["count"] == table.groupby(["kernel", "width"])["count"].transform("max")]
    kernels = _present(table)
    figure, axes = style.panels(len(kernels), width=8.2, height=3.1, sharey=True, sharex=True)
    finite = sorted(table.loc[np.isfinite(table["width"]), "width"].unique())
    shown = [r for r in finite if np.log2(r) % 2 == 0 and r >= 4] or finite
    for ax, name in zip(axes, kernels, strict=True):
        rows = table[table["kernel"] == name]
        for index, (r, color) in enumerate(style.ordered(shown).items()):
            run = rows[rows["width"] == r]
            ax.fill_between(run["step"], run["min"], run["max"], color=color, alpha=0.18, lw=0)
            dashes = style.DASHES[index % 3]
            ax.plot(run["step"], run["median"], color=color, ls=dashes, label=f"{r:.0f}")
        limit = rows[np.isinf(rows["width"])]
        ax.plot(limit["step"], limit["median"], label=r"$\infty$", zorder=5, **INFINITE)
        ax.set(yscale="log", ylim=(FLOOR, 20), xlabel="gradient step")
        ax.set_title(f"{KERNELS[name]}, $N = {rows['samples'].iloc[0]}$")
    last = table.loc[np.isinf(table["width"]), "step"].max()
    axes[0].set_xlim(0, 3 * last if last > 0 else None)
    axes[0].set_ylabel("loss relative to the start")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="width $r$", loc="outside right center", fontsize=7)
    return figure


def rate(tables: Tables) -> Figure:
    """Draw rates and final losses over the width, by number of samples."""
    table = tables["rates"].query("kernel == 'gaussian'")
    if table.empty:
        return style.not_run()
    finite = table[np.isfinite(table["width"])]
    figure, (left, right) = style.panels(2, width=7.6, height=3.3)
    sizes = sorted(table["samples"].unique())
    for index, (samples, look) in enumerate(style.looks(sizes).items()):
        rows = finite[finite["samples"] == samples]
        shift = 1.05 ** (index - 1.5)
        for ax, name in ((left, "rate"), (right, "loss")):
            _ranges(ax, rows, name, shift, look, f"$N = {samples}$")
        limit = table.query("samples == @samples")["infinite_rate"].iloc[0]
        left.axhline(limit, color=look["color"], linestyle=(0, (6, 2)), linewidth=0.9, zorder=1)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xlabel("width $r$")
    left.set(ylabel="rate of decay per gradient step", ylim=(0, 1.35 * left.get_ylim()[1]))
    left.legend(fontsize=7, loc="upper left", ncols=2)
    left.text(0.98, 0.03, r"dashed: $r = \infty$", transform=left.transAxes, ha="right", fontsize=7)
    right.set(yscale="log", ylabel="final loss relative to the start")
    right.axhline(1e-8, **style.GUIDE)
    right.text(0.98, 0.93, "dashed: converged", transform=right.transAxes, ha="right", fontsize=7)
    return figure


def kernel(tables: Tables) -> Figure:
    """Draw the error of the smallest eigenvalue over the width, with fits."""
    errors = tables["eigenvalue_errors"].query("when == 'start'")
    slopes = tables["eigenvalue_slopes"].query("when == 'start'")
    kernels = _present(errors)
    figure, axes = style.panels(len(kernels), width=8.2, height=3.3, sharey=True)
    looks = style.looks(sorted(errors["samples"].unique()))
    for ax, name in zip(axes, kernels, strict=True):
        for samples, rows in errors[errors["kernel"] == name].groupby("samples"):
            line = slopes.query("kernel == @name and samples == @samples")
            _eigenvalue_errors(ax, rows, line, looks[samples])
        r = np.array(sorted(errors["width"].unique()))
        ax.plot(r[r >= 16], 0.35 * (r[r >= 16] / 16) ** -0.5, label="$r^{-1/2}$", **style.GUIDE)
        ax.set_xscale("log", base=2)
        ax.set(yscale="log", xlabel="width $r$", title=KERNELS[name])
        ax.legend(fontsize=6, loc="lower left", title="slope", title_fontsize=6.5)
    axes[0].set_ylabel(r"$|\lambda_{\min}(\hat K) - \lambda_{\min}(K)|$ at the start")
    return figure


def _eigenvalue_errors(
    ax: Axes, rows: pd.DataFrame, lines: pd.DataFrame, look: dict[str, Any]
) -> None:
    ax.errorbar(
        rows["width"],
        rows["mean"],
        yerr=style.interval_bars(rows, floor=LEAST_ERROR),
        color=look["color"],
        marker=look["marker"],
        linestyle="none",
        linewidth=0.9,
        capsize=1.5,
    )
    for _, line in lines.iterrows():
        r = rows.loc[rows["width"] >= line["least_width"], "width"].to_numpy()
        fit = np.exp(line["intercept"]) * r ** line["slope"]
        label = f"$N = {line['samples']}$: {_interval(line)}"
        ax.plot(r, fit, **look, markevery=[], label=label)


def threshold(tables: Tables) -> Figure:
    """Draw the share of draws that converge, and the threshold over the number of samples."""
    figure, (left, right) = style.panels(2, width=7.6, height=3.3)
    rates = tables["rates"]
    _shares(left, rates[np.isfinite(rates["width"]) & (rates["kernel"] == "gaussian")])
    _thresholds(right, tables["thresholds"], tables["threshold_growth"])
    return figure


@style.panel
def _shares(ax: Axes, table: pd.DataFrame) -> None:
    for samples, look in style.looks(sorted(table["samples"].unique())).items():
        rows = table[table["samples"] == samples]
        ax.plot(rows["width"], rows["converged"] / rows["draws"], **look, label=f"$N = {samples}$")
    ax.set_xscale("log", base=2)
    ax.set(xlabel="width $r$", ylabel="share of draws that converge", title="Gaussian")
    ax.legend(fontsize=7, loc="lower right")


def _thresholds(ax: Axes, table: pd.DataFrame, growth: pd.DataFrame) -> None:
    if table["threshold"].isna().all():
        text = "no threshold:\nall networks converge, or none"
        ax.text(0.5, 0.5, text, ha="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    sizes = np.array(sorted(table["samples"].unique()), dtype=float)
    for index, name in enumerate(_present(table)):
        rows = table[table["kernel"] == name].dropna(subset=["threshold"])
        line = growth[growth["kernel"] == name].iloc[0]
        bars = [rows["threshold"] - rows["low"], rows["high"] - rows["threshold"]]
        look = LOOKS[name]
        ax.errorbar(
            rows["samples"] * 1.04 ** (index - 1),
            rows["threshold"],
            yerr=bars,
            color=look["color"],
            marker=look["marker"],
            linestyle="none",
            capsize=2,
        )
        label = f"{KERNELS[name]}: {_interval(line)}"
        fit = np.exp(line["intercept"]) * sizes ** line["slope"]
        ax.plot(sizes, fit, color=look["color"], linestyle=look["linestyle"], label=label)
    first = table.loc[table["samples"] == sizes[0], "threshold"].min()
    for power, label in ((1, "$N$"), (2, "$N^2$ (sufficient)")):
        guide = first * (sizes / sizes[0]) ** power
        ax.plot(sizes, guide, **style.GUIDE)
        ax.annotate(label, (sizes[-1], guide[-1]), xytext=(-3, 4), textcoords="offset points",
                    ha="right", fontsize=7, color="0.3")  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    ax.set(xlabel="samples $N$", ylabel="threshold width $r^*$")
    ax.legend(fontsize=6, title="slope", title_fontsize=6.5, loc="upper left")


def pl(tables: Tables) -> Figure:
    """Draw the PL quotient of the infinite-width model between its bounds at three alpha."""
    table = tables["pl"]
    table = table[np.isinf(table["width"]) & (table["experiment"] == "embedding")]
    table = table[table["embedding"] == "scaling"]
    sizes = sorted(table["size"].unique())
    if not sizes:
        return style.not_run()
    shown = [alpha for alpha in (1, 16, 256, 1024) if alpha in sizes][:3] or sizes[:3]
    figure, axes = style.panels(len(shown), width=8.2, height=3.1)
    for ax, alpha in zip(axes, shown, strict=True):
        _pl_panel(ax, table[table["size"] == alpha])
        ax.set_title(rf"$\alpha = {alpha:g}$")
    axes[0].set_ylabel(r"$\|\nabla L\|^2 / (2 L)$")
    axes[0].legend(fontsize=6.5, loc="upper left")
    return figure


def _pl_panel(ax: Axes, rows: pd.DataFrame) -> None:
    for column, label, look in (
        ("upper", r"bound $M(\|v\|)$", {"color": style.COLORS[2], "marker": "v"}),
        ("lower", r"bound $m(\|v\|)$, pass", {"color": style.COLORS[6], "linewidth": 4}),
        ("lower_ball", r"bound $m(\|v\|)$, ball", {"color": style.COLORS[1], "linestyle": "--"}),
    ):
        positive = rows[rows[column] > 0]
        ax.plot(positive["step"], positive[column], label=label, **look)
    ax.plot(rows["step"], rows["quotient"], "o", color="black", zorder=5, label="measured")
    none = rows.loc[rows["lower"] <= 0, "step"]
    if len(none):
        text = f"$m = 0$ from step {none.min()} on"
        ax.text(0.97, 0.12, text, transform=ax.transAxes, ha="right", fontsize=7, color="0.3")
    ax.set_xscale("symlog", linthresh=1)
    lowest, highest = rows["quotient"].min(), rows["upper"].max()
    floor = min(lowest, rows.loc[rows["lower_ball"] > 0, "lower_ball"].min())
    ax.set(yscale="log", xlabel="gradient step")
    ax.set_ylim(10 ** np.floor(np.log10(floor)), 10 ** np.ceil(np.log10(highest) + 0.2))


def embedding(tables: Tables) -> Figure:
    """Draw the left side of Eq. 15 and the measured rates over alpha and q."""
    figure, axes = plt.subplots(2, 2, figsize=(7.6, 5.4), sharex="col", sharey="row")
    table = tables["sweep"]
    for column, (name, xlabel) in enumerate(
        (("scaling", r"$\alpha$ of the scaling"), ("lifting", "$q$ of the lifting"))
    ):
        rows = table[table["embedding"] == name]
        _left_sides(axes[0, column], rows)
        _sweep_rates(axes[1, column], rows)
        axes[1, column].set_xlabel(xlabel)
    _onsets(axes[:, 0], tables["onsets"])
    axes[0, 0].set_ylabel("left side of Eq. 15")
    axes[1, 0].set_ylabel("rate of decay per gradient step")
    style.legend_once(axes[0, ::-1], fontsize=6.5, loc="upper right")
    style.legend_once(axes[1, ::-1], fontsize=6.5, loc="lower right")
    return figure


@style.panel
def _left_sides(ax: Axes, table: pd.DataFrame) -> None:
    for index, width in enumerate(sorted(table["width"].unique())):
        rows = table[table["width"] == width]
        label = r"$r = \infty$" if np.isinf(width) else f"$r = {width:.0f}$"
        look: dict[str, Any] = {
            "color": style.COLORS[1 - index],
            "linestyle": style.DASHES[1 - index],
        }
        medians = rows[np.isfinite(rows["left_side"])].groupby("size")["left_side"].median()
        ax.plot(medians, marker=style.MARKERS[index], label=f"{label}, proven", **look)
        plug_in = rows.groupby("size")["plug_in"].median().dropna()
        ax.plot(plug_in, marker="x", ls="none", color=look["color"], label=f"{label}, plug-in")
    for radius in table.loc[np.isinf(table["width"]), "radius"].dropna()[:1]:
        ax.axhline(radius, **style.GUIDE)
        ax.annotate(
            r"$R$ at $r = \infty$", (0.02, radius), xycoords=("axes fraction", "data"),
            xytext=(0, -9), textcoords="offset points", fontsize=7, color="0.3",
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")


@style.panel
def _sweep_rates(ax: Axes, table: pd.DataFrame) -> None:
    for index, width in enumerate(sorted(table["width"].unique())):
        rows = table[table["width"] == width]
        groups = rows.groupby("size")
        middle, low, high = (groups["rate"].agg(how) for how in ("median", "min", "max"))
        color = style.COLORS[1 - index]
        ax.errorbar(middle.index, middle, yerr=[middle - low, high - middle], color=color,
                    linestyle=style.DASHES[1 - index], capsize=1.5, elinewidth=0.7)  # fmt: skip
        every = groups["converged"].all()
        for filled in (True, False):
            part = middle[every == filled]
            if part.empty:
                continue
            label = r"$r = \infty$" if np.isinf(width) else f"$r = {width:.0f}$"
            ax.plot(part, marker=style.MARKERS[index], linestyle="none", color=color,
                    fillstyle="full" if filled else "none",
                    label=label if filled else f"{label}, not every draw converged")  # fmt: skip
    ax.set(ylim=(0, None))


def _onsets(axes: np.ndarray, table: pd.DataFrame) -> None:
    """Mark from which alpha on Theorem 2 applies at infinite width."""
    proven = table.loc[table["width"] == np.inf, "proven"].dropna()
    if proven.empty:
        return
    onset = proven.iloc[0]
    right = axes[0].get_xlim()[1]
    for ax in axes:
        ax.axvspan(onset, right, color="0.93", zorder=0, lw=0)
        ax.set_xlim(right=right)
    axes[0].annotate(
        "Theorem 2\napplies", (onset, 0.97), xycoords=("data", "axes fraction"),
        xytext=(3, 0), textcoords="offset points", va="top", fontsize=7, color="0.3",
    )  # fmt: skip


def _ranges(
    ax: Axes, rows: pd.DataFrame, name: str, shift: float, look: dict[str, Any], label: str
) -> None:
    rows = rows[np.isfinite(rows[f"{name}_median"])]
    middle = rows[f"{name}_median"]
    high = rows[f"{name}_max"].where(np.isfinite(rows[f"{name}_max"]), middle)
    bars = [middle - rows[f"{name}_min"], high - middle]
    style_of = {key: look[key] for key in ("color", "marker", "linestyle")}
    ax.errorbar(rows["width"] * shift, middle, yerr=bars, capsize=1.5, linewidth=1, **style_of,
                elinewidth=0.7, label=label)  # fmt: skip


def _interval(line: pd.Series) -> str:
    return f"{line['slope']:.2f} [{line['low']:.2f}, {line['high']:.2f}]"


def _one_size(table: pd.DataFrame) -> pd.DataFrame:
    sizes = table["samples"].unique()
    return table[table["samples"] == (32 if 32 in sizes else max(sizes))]


def _present(table: pd.DataFrame) -> list[str]:
    return [name for name in KERNELS if name in set(table["kernel"])]
