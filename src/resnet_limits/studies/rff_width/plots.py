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
            run = rows[rows["width"] == r].sort_values("step")
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
    most = int(table["count"].max())
    title = f"width $r$\n($n = {most}$ networks)"
    figure.legend(handles, labels, title=title, loc="outside right center", fontsize=7,
                  title_fontsize=7)  # fmt: skip
    return figure


def rate(tables: Tables) -> Figure:
    """Draw relative rates and the steps taken over the width, by number of samples."""
    table = tables["rates"].query("kernel == 'gaussian'")
    table = table[np.isfinite(table["width"])].sort_values("width")
    if table.empty:
        return style.not_run()
    figure, (left, right) = style.panels(2, width=7.6, height=3.3)
    for samples, look in style.looks(sorted(table["samples"].unique())).items():
        rows = table[table["samples"] == samples]
        label = f"$N = {samples}$"
        relative = rows.dropna(subset=["relative_rate"])
        _ranges(left, relative, look, label)
        right.plot(rows["width"], rows["effort_median"].where(rows["effort_median"] > 0),
                   markersize=3.5, label=label, **look)  # fmt: skip
        failing = rows[rows["converged"] < rows["networks"]]
        for ax, column in ((left, "relative_rate"), (right, "effort_median")):
            ax.plot(failing["width"], failing[column], "x", color=look["color"], markersize=7)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xlabel("width $r$")
    left.axhline(1, **style.GUIDE)
    left.set(ylabel=r"rate relative to $r = \infty$", ylim=(0, None))
    networks = table["networks"].max()
    left.legend(fontsize=7, loc="lower right", title=f"$n = {networks}$ networks each",
                title_fontsize=7)  # fmt: skip
    right.set(yscale="log", ylabel="steps per condition number")
    return figure


def kernel(tables: Tables) -> Figure:
    """Draw the error of the smallest eigenvalue over the width, with fits."""
    errors = tables["eigenvalue_errors"].query("when == 'start'").sort_values("width")
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
        title = f"slope over $r \\geq 8 N$\n($n = {errors['n'].max()}$ data sets)"
        ax.legend(fontsize=6, loc="lower left", title=title, title_fontsize=6)
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
    lines = lines.dropna(subset=["slope"])
    if lines.empty:
        return
    slopes, r = lines["slope"], rows["width"].to_numpy()
    r = r[r >= lines["least_width"].min()]
    fit = np.exp(lines["intercept"].mean()) * r ** slopes.mean()
    label = f"$N = {lines['samples'].iloc[0]}$: {slopes.mean():.2f}"
    if len(slopes) > 1:
        label += f" ({slopes.min():.2f} to {slopes.max():.2f})"
    ax.plot(r, fit, **look, markevery=[], label=label)


def threshold(tables: Tables) -> Figure:
    """Draw the share of networks that converge, and the threshold over the number of samples."""
    figure, (left, right) = style.panels(2, width=7.6, height=3.3)
    rates = tables["rates"]
    _shares(left, rates[np.isfinite(rates["width"]) & (rates["kernel"] == "gaussian")])
    _thresholds(right, tables["thresholds"])
    return figure


@style.panel
def _shares(ax: Axes, table: pd.DataFrame) -> None:
    for samples, look in style.looks(sorted(table["samples"].unique())).items():
        rows = table[table["samples"] == samples].sort_values("width")
        share = rows["converged"] / rows["networks"]
        ax.plot(rows["width"], share, **look, label=f"$N = {samples}$")
        ax.plot([samples / 2], [-0.06], marker=2, color=look["color"], markersize=7, clip_on=False)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="width $r$", ylabel="share of networks that converge", title="Gaussian")
    ax.set_ylim(-0.08, 1.05)
    title = f"$n = {table['networks'].max()}$ networks each"
    ax.legend(fontsize=7, loc="lower right", title=title, title_fontsize=7)


def _thresholds(ax: Axes, table: pd.DataFrame) -> None:
    if table.empty or table["threshold"].isna().all():
        text = "no threshold:\nall networks converge, or none"
        ax.text(0.5, 0.5, text, ha="center", transform=ax.transAxes)
        ax.set_axis_off()
        return
    sizes = np.array(sorted(table["samples"].unique()), dtype=float)
    for index, name in enumerate(_present(table)):
        rows = table[table["kernel"] == name].dropna(subset=["threshold"]).sort_values("samples")
        bars = [rows["threshold"] - rows["low"], rows["high"] - rows["threshold"]]
        position = rows["samples"] * 1.04 ** (index - 1)
        ax.errorbar(position, rows["threshold"], yerr=bars, capsize=2, label=KERNELS[name],
                    **LOOKS[name])  # fmt: skip
    ax.plot(sizes, sizes / 2, **style.GUIDE)
    ax.plot(sizes, sizes**2, **style.GUIDE)
    ax.fill_between(sizes, sizes**2, 4 * sizes[-1] ** 2, color="0.93", zorder=0, lw=0)
    middle = sizes[len(sizes) // 2]
    style.label_guide(ax, "$2 r = N$", (sizes[0], sizes[0] / 2))
    ax.text(sizes[0], 2 * sizes[-1] ** 2, "guaranteed from an unknown\nmultiple of $N^2$ on",
            fontsize=7, va="center")  # fmt: skip
    ax.annotate("$r = N^2$", (middle, middle**2), xytext=(4, -9), textcoords="offset points",
                fontsize=7)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    ax.set(xlabel="samples $N$", ylabel="width $r^*$, half converge")
    ax.legend(fontsize=6.5, loc="lower right")


def kappas(tables: Tables) -> Figure:
    """Draw kappa of features as drawn over their number, with its limit."""
    table = tables["kappas"]
    kernels = _present(table)
    if not kernels:
        return style.not_run()
    figure, axes = style.panels(len(kernels), width=8.2, height=2.9, sharey=True)
    for ax, name in zip(axes, kernels, strict=True):
        rows = table[table["kernel"] == name]
        spread = rows.groupby("width")["kappa"].agg(["median", "min", "max"])
        bars = [spread["median"] - spread["min"], spread["max"] - spread["median"]]
        look = LOOKS[name]
        ax.errorbar(spread.index, spread["median"], yerr=bars, capsize=1.5, elinewidth=0.8,
                    **look)  # fmt: skip
        limit = rows["limit"].iloc[0]
        ax.axhline(limit, **style.GUIDE)
        ax.axhline(limit + 1, color="0.45", linewidth=1)
        first = _first_within(rows)
        said = f"all within $\\kappa + 1$ from $r = {first:.0f}$ on" if first else "not all within"
        ax.set_title(f"{KERNELS[name]}\n{said}", fontsize=8)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        style.plain_numbers(ax)
        ax.set_xlabel("width $r$")
    count = table.groupby(["kernel", "width"])["draw"].size().max()
    axes[0].set_ylabel(f"$\\hat\\kappa$ of features ($n = {count}$)")
    axes[0].annotate(r"$\kappa + 1$", (1.0, limit + 1), fontsize=7, xytext=(-2, 3), ha="right",
                     xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    return figure


def _first_within(rows: pd.DataFrame) -> float | None:
    """Return the smallest width from which on all draws are within kappa + 1."""
    every = rows.groupby("width")["within"].all()
    failing = every.index[~every]
    held = every.index[every.index > (failing.max() if len(failing) else 0)]
    return float(held.min()) if len(held) else None


def pl(tables: Tables) -> Figure:
    """Draw the PL quotient of the infinite-width model between its bounds at three alpha."""
    table = tables["pl"]
    table = table[np.isinf(table["width"]) & (table["experiment"] == "embedding")]
    table = table[table["embedding"] == "scaling"]
    table = table[table["data_seed"] == table["data_seed"].min()]
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
        ("lower", r"bound $m(\|v\|)$, on the pass", {"color": style.COLORS[6], "linewidth": 4}),
        (
            "lower_ball",
            r"bound $m(\|v\|)$, on the ball",
            {"color": style.COLORS[1], "linestyle": "--"},
        ),
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
    style.legend_once(axes[1], fontsize=6.5, loc="lower right")
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
        if np.isinf(width) and len(medians):
            _power_law(ax, medians, table["embedding"].iloc[0])
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


def _power_law(ax: Axes, medians: pd.Series, embedding: str) -> None:
    """Draw the power law of a sweep through its last point."""
    power, label = (
        (-1, r"$\propto 1 / \alpha$") if embedding == "scaling" else (-0.25, "$q^{-1/4}$")
    )
    last, size = medians.iloc[-1], medians.index[-1]
    sizes = medians.index[medians.index >= (4 if embedding == "scaling" else 0)]
    guide = 0.4 * last * (np.array(sizes) / size) ** power
    ax.plot(sizes, guide, color="0.45", linewidth=1, linestyle=style.DASHES[2])
    style.label_guide(ax, label, (sizes[len(sizes) // 2], guide[len(sizes) // 2]))


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
                    label=label if filled else f"{label}, not every network converged")  # fmt: skip
    ax.set(ylim=(0, None))


def _onsets(axes: np.ndarray, table: pd.DataFrame) -> None:
    """Mark from which alpha on Theorem 2 applies at infinite width."""
    proven = table.loc[table["width"] == np.inf, "proven"].dropna()
    if proven.empty:
        return
    onset = proven.max()
    right = axes[0].get_xlim()[1]
    for ax in axes:
        ax.axvspan(onset, right, color="0.93", zorder=0, lw=0)
        ax.set_xlim(right=right)
    axes[0].annotate(
        "Theorem 2\napplies\n" + r"at $r = \infty$", (onset, 0.97),
        xycoords=("data", "axes fraction"), xytext=(3, 0), textcoords="offset points",
        va="top", fontsize=7, color="0.3",
    )  # fmt: skip


def _ranges(ax: Axes, rows: pd.DataFrame, look: dict[str, Any], label: str) -> None:
    """Draw median rates relative to infinite width, with their ranges."""
    middle, unit = rows["relative_rate"], rows["infinite_rate"]
    bars = [middle - rows["rate_min"] / unit, rows["rate_max"] / unit - middle]
    bars = [part.clip(lower=0).fillna(0) for part in bars]
    ax.errorbar(rows["width"], middle, yerr=bars, capsize=1.5, linewidth=1, elinewidth=0.6,
                markersize=3.5, label=label, **look)  # fmt: skip


def _one_size(table: pd.DataFrame) -> pd.DataFrame:
    sizes = table["samples"].unique()
    return table[table["samples"] == (32 if 32 in sizes else max(sizes))]


def _present(table: pd.DataFrame) -> list[str]:
    return [name for name in KERNELS if name in set(table["kernel"])]
