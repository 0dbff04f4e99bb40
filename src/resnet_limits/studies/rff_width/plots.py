"""Finite and infinite width: tidy tables to figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from resnet_limits import style
from resnet_limits.stats import clopper_pearson
from resnet_limits.style import Tables

KERNELS = {
    "gaussian": "Gaussian",
    "matern4.5": r"Matérn, $\nu = 4.5$",
    "matern2.5": r"Matérn, $\nu = 2.5$",
}
LOOKS = style.looks(list(KERNELS))
INFINITE: dict[str, Any] = {"color": "black", "linestyle": (0, (4, 1.5)), "linewidth": 1.6}
FLOOR = 1e-12
LEAST_ERROR = 1e-4  # of eigenvalues, for intervals that reach 0
NEAR = 0.9  # of infinite width's rate, from where on a rate counts as near it


def width(tables: Tables) -> Figure:
    """Draw the loss over gradient steps for some widths and for infinite width."""
    table, rates = _one_size(tables["curves"]), _one_size(tables["rates"])
    # Of a width with draws that diverged, the median of the others would look too good.
    table = table[table["count"] == table.groupby(["kernel", "width"])["count"].transform("max")]
    kernels = _present(table)
    figure, axes = style.panels(len(kernels), height=3.0, sharey=True, sharex=True)
    finite = sorted(table.loc[np.isfinite(table["width"]), "width"].unique())
    shown = [r for r in finite if np.log2(r) % 2 == 0 and r >= 4] or finite
    for ax, name in zip(axes, kernels, strict=True):
        own = rates[rates["kernel"] == name].set_index("width")
        _losses(ax, table[table["kernel"] == name], own, shown)
        ax.set_title(KERNELS[name])
    last = table.loc[np.isinf(table["width"]), "step"].max()
    axes[0].set_xlim(0, 3 * last if last > 0 else None)
    axes[0].set_ylabel("loss relative to the start")
    style.legend_below(figure, axes, title="width $r$", columns=len(shown) + 1)
    samples = table["samples"].iloc[0]
    style.say(
        figure,
        _near_infinity(rates[rates["kernel"] == kernels[0]], KERNELS[kernels[0]]),
        f"{_networks(rates)} a width, N = {samples}: medians, and bands from least to largest; a "
        "line ends at a cross where a network diverges, else where the first has converged.",
    )
    return figure


def _losses(ax: Axes, rows: pd.DataFrame, rates: pd.DataFrame, shown: list[float]) -> None:
    for r, look in style.ordered(shown).items():
        run = rows[rows["width"] == r].sort_values("step")
        if run.empty:
            continue
        ax.fill_between(run["step"], run["min"], run["max"], color=look["color"], alpha=0.15, lw=0)
        ax.plot(run["step"], run["median"], **look | {"marker": None}, label=f"{r:.0f}")
        failed = rates.loc[r, "diverged_networks"] > 0
        end: dict[str, Any] = {
            "marker": "x" if failed else look["marker"],
            "markersize": 6 if failed else 4,
        }
        ax.plot(run["step"].iloc[-1:], run["median"].iloc[-1:], color=look["color"], **end)
    limit = rows[np.isinf(rows["width"])]
    ax.plot(limit["step"], limit["median"], label=r"$\infty$", zorder=5, **INFINITE)
    ax.set(yscale="log", ylim=(FLOOR, 20), xlabel="gradient step")


def _near_infinity(rates: pd.DataFrame, kernel: str) -> str:
    """Say from which width on all networks converge, and how fast the widest ones do."""
    finite = rates[np.isfinite(rates["width"])].sort_values("width")
    failing = finite.loc[finite["converged"] < finite["networks"], "width"]
    holds = finite.loc[~(finite["width"] <= failing.max()), "width"].min()
    where = "from no width that was run" if np.isnan(holds) else f"from r = {holds:.0f}"
    widest = finite.iloc[-1]
    rate = f"{widest['relative_rate']:.2f} of" if np.isfinite(widest["relative_rate"]) else "not"
    return (
        f"{kernel}: {where} on, every network converges to zero loss; at r = {widest['width']:.0f} "
        f"the median rate is {rate} that of infinite width."
    )


def _networks(table: pd.DataFrame) -> str:
    """Return how many networks there are of each finite width."""
    finite = table[np.isfinite(table["width"])]
    return style.of_runs(finite["networks"], "network")


def rate(tables: Tables) -> Figure:
    """Draw rates relative to infinite width over the width, by number of samples."""
    table = tables["rates"].query("kernel == 'gaussian'")
    table = table[np.isfinite(table["width"])].sort_values("width")
    if table.empty:
        return style.not_run()
    sizes = sorted(table["samples"].unique())
    figure, axes = style.panels(len(sizes), sharey=True)
    words = []
    for ax, samples in zip(axes, sizes, strict=True):
        rows = table[table["samples"] == samples]
        _relative_rates(ax, rows)
        ax.set_title(f"$N = {samples}$")
        far = rows.loc[~(rows["relative_rate"] >= NEAR), "width"].max()
        near = rows.loc[~(rows["width"] <= far), "width"].min()
        words.append(f"{'no r' if np.isnan(near) else f'r = {near:.0f}'} (N = {samples})")
    axes[0].set(ylabel=r"rate relative to $r = \infty$", ylim=(0, None))
    style.legend_below(figure, axes)
    style.say(
        figure,
        f"Gaussian kernel: the median rate is at least {NEAR:g} of infinite width's from "
        f"{', '.join(words)} on.",
        f"{_networks(table)} a width: medians and ranges.",
    )
    return figure


@style.panel
def _relative_rates(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw median rates relative to infinite width, with their ranges, and what failed."""
    known = rows.dropna(subset="relative_rate")
    middle, unit = known["relative_rate"], known["infinite_rate"]
    bars = [middle - known["rate_min"] / unit, known["rate_max"] / unit - middle]
    bars = [part.clip(lower=0).fillna(0) for part in bars]
    look = LOOKS["gaussian"] | {"markersize": 3.5}
    label = "median rate, least to largest"
    ax.errorbar(known["width"], middle, yerr=bars, capsize=1.5, elinewidth=0.7, label=label, **look)
    for mask, marker, name in (
        (rows["converged"] < rows["networks"], "x", "a network does not converge"),
        (rows["diverged_networks"] > 0, "v", "a network diverges"),
    ):
        some = rows[mask]
        place = np.full(len(some), 0.03 if marker == "x" else 0.1)
        look = {"color": style.COLORS[2], "linestyle": "none", "markersize": 4}
        ax.plot(some["width"], place, marker, transform=ax.get_xaxis_transform(), label=name,
                **look)  # fmt: skip
    ax.axhline(1, **style.GUIDE)
    _width_axis(ax)


def _width_axis(ax: Axes) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    ax.set_xlabel("width $r$")


def kernel(tables: Tables) -> Figure:
    """Draw the error of the smallest eigenvalue over the width, with fits."""
    errors = tables["eigenvalue_errors"].query("when == 'start'").sort_values("width")
    slopes = tables["eigenvalue_slopes"].query("when == 'start'")
    kernels = _present(errors)
    if not kernels:
        return style.not_run()
    figure, axes = style.panels(len(kernels), height=3.9, sharey=True)
    looks = style.looks(sorted(errors["samples"].unique()))
    for ax, name in zip(axes, kernels, strict=True):
        for samples, rows in errors[errors["kernel"] == name].groupby("samples"):
            line = slopes.query("kernel == @name and samples == @samples")
            _eigenvalue_errors(ax, rows, line, looks[samples])
        r = np.array(sorted(errors["width"].unique()))
        ax.plot(r[r >= 16], 0.35 * (r[r >= 16] / 16) ** -0.5, label="$r^{-1/2}$", **style.GUIDE)
        ax.set_yscale("log")
        _width_axis(ax)
        style.legend_above(ax, f"{KERNELS[name]}: slope")
    axes[0].set_ylabel(r"$|\lambda_{\min}(\hat K) - \lambda_{\min}(K)|$ at the start")
    known = slopes["slope"].dropna()
    style.say(
        figure,
        "Over the width, the error of the smallest eigenvalue has slopes "
        f"{style.span(known)}; -0.50 is guaranteed.",
        f"{style.of_runs(errors['n'], 'data set')}: {style.averages(errors['n'])} of means over "
        "draws; fits over r of at least 8 N, with the range of their slopes.",
    )
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
    figure, (left, right) = style.panels(2, height=3.4)
    rates, found = tables["rates"], tables["thresholds"]
    finite = rates[np.isfinite(rates["width"])]
    _shares(left, finite[finite["kernel"] == "gaussian"])
    _thresholds(right, found)
    style.say(
        figure,
        _threshold_in_words(found),
        f"{_networks(rates)} a width, kernel and N; bars, 95 % intervals, on the left as if "
        "networks were independent.",
    )
    return figure


def _threshold_in_words(table: pd.DataFrame) -> str:
    known = table.dropna(subset="threshold") if len(table) else table
    if known.empty:
        return "At no N do some widths converge and others not."
    ratio = known["threshold"] / known["samples"]
    return (
        f"Half of the networks converge at a width r* of {style.span(ratio)} N; the theorem "
        "guarantees convergence from an unknown multiple of N² on."
    )


@style.panel
def _shares(ax: Axes, table: pd.DataFrame) -> None:
    looks = style.looks(sorted(table["samples"].unique()), skip=len(KERNELS))
    for samples, look in looks.items():
        rows = table[table["samples"] == samples].sort_values("width")
        share = rows["converged"] / rows["networks"]
        low, high = clopper_pearson(rows["converged"].to_numpy(), rows["networks"].to_numpy())
        bars = np.array([share - low, high - share]).clip(min=0)
        ax.errorbar(rows["width"], share, bars, capsize=1.5, elinewidth=0.7, markersize=3.5,
                    label=f"$N = {samples}$", **look)  # fmt: skip
        ax.plot([samples / 2], [-0.06], marker=2, color=look["color"], markersize=7, clip_on=False)
    _width_axis(ax)
    ax.set_ylabel("share of networks that converge")
    ax.set_ylim(-0.08, 1.05)
    style.legend_above(ax, "Gaussian kernel; ticks below: $2 r = N$", ncols=4, columnspacing=0.8)


def _thresholds(ax: Axes, table: pd.DataFrame) -> None:
    if table.empty or table["threshold"].isna().all():
        style.mark(ax, "no threshold:\nall networks converge, or none")
        return
    sizes = np.array(sorted(table["samples"].unique()), dtype=float)
    for index, name in enumerate(_present(table)):
        rows = table[table["kernel"] == name].dropna(subset=["threshold"]).sort_values("samples")
        bars = [rows["threshold"] - rows["low"], rows["high"] - rows["threshold"]]
        position = rows["samples"] * 1.05 ** (index - 1)
        ax.errorbar(position, rows["threshold"], yerr=bars, capsize=2, label=KERNELS[name],
                    **LOOKS[name])  # fmt: skip
    ax.plot(sizes, sizes / 2, **style.GUIDE)
    ax.plot(sizes, sizes**2, **style.GUIDE)
    ax.fill_between(sizes, sizes**2, 4 * sizes[-1] ** 2, color="0.93", zorder=0, lw=0)
    middle = sizes[len(sizes) // 2]
    style.label_guide(ax, "$2 r = N$", (sizes[0], sizes[0] / 2))
    text = "guaranteed from an unknown\nmultiple of $N^2$ on"
    ax.text(sizes[0], 2 * sizes[-1] ** 2, text, va="center")
    style.label_guide(ax, "$r = N^2$", (middle, middle**2))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(sizes, [f"{size:.0f}" for size in sizes])
    ax.set(xlabel="samples $N$", ylabel="width $r^*$, half converge")
    style.legend_above(ax, ncols=3, columnspacing=0.8)


def kappas(tables: Tables) -> Figure:
    """Draw kappa of features as drawn over their number, with its limit."""
    table = tables["kappas"]
    kernels = _present(table)
    if not kernels:
        return style.not_run()
    figure, axes = style.panels(len(kernels), sharey=True)
    words = []
    for ax, name in zip(axes, kernels, strict=True):
        rows = table[table["kernel"] == name]
        _kappas(ax, rows, LOOKS[name])
        ax.set_title(KERNELS[name])
        first = _first_within(rows)
        where = f"from r = {first:.0f} on" if first else "at no width on"
        words.append(f"{where} ({KERNELS[name]})")
    axes[0].set_ylabel(r"$\hat\kappa$ of features")
    counts = table.groupby(["kernel", "width"])["draw"].size()
    style.say(
        figure,
        f"All features are within one of the limit κ {', '.join(words)}.",
        f"{style.of_runs(counts, 'draw')} a width, of all data sets: dots; line, medians.",
    )
    return figure


def _kappas(ax: Axes, rows: pd.DataFrame, look: dict[str, Any]) -> None:
    ax.plot(rows["width"], rows["kappa"], ".", color=look["color"], alpha=0.25, markersize=3)
    ax.plot(rows.groupby("width")["kappa"].median(), **look | {"markersize": 3.5})
    limit = rows["limit"].iloc[0]
    for height, text in ((limit, r"limit $\kappa$"), (limit + 1, r"$\kappa + 1$")):
        ax.axhline(height, **style.GUIDE)
        ax.annotate(text, (1.0, height), xytext=(-2, 3), ha="right", color="0.2",
                    xycoords=("axes fraction", "data"), textcoords="offset points")  # fmt: skip
    ax.set_yscale("log", base=2)
    style.plain_numbers(ax)
    _width_axis(ax)


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
    figure, axes = style.panels(len(shown))
    for ax, alpha in zip(axes, shown, strict=True):
        _pl_panel(ax, table[table["size"] == alpha])
        ax.set_title(rf"$\alpha = {alpha:g}$")
    axes[0].set_ylabel(r"$\|\nabla L\|^2 / (2 L)$")
    style.legend_below(figure, axes)
    rows = table[table["size"].isin(shown)]
    inside = (rows["lower"] <= rows["quotient"]) & (rows["quotient"] <= rows["upper"])
    says = ", ".join(
        f"{alpha:g}" for alpha, own in rows.groupby("size") if (own["lower"] > 0).all()
    )
    style.say(
        figure,
        f"The quotient is within its proven bounds at {inside.sum()} of {len(rows)} steps; the "
        f"lower one is positive throughout at {f'alpha = {says}' if says else 'no alpha'}.",
        f"1 data set (seed {table['data_seed'].iloc[0]}), Gaussian kernel, infinite width, "
        f"N = {table['samples'].iloc[0]}.",
    )
    return figure


def _pl_panel(ax: Axes, rows: pd.DataFrame) -> None:
    looks: dict[str, dict[str, Any]] = {
        "upper": {"color": style.COLORS[2], "marker": "v"},
        "lower": {"color": style.COLORS[6], "linewidth": 4},
        "lower_ball": {"color": style.COLORS[1], "linestyle": "--"},
    }
    names = {
        "upper": r"bound $M(\|v\|)$",
        "lower": r"bound $m(\|v\|)$ at the points visited",
        "lower_ball": r"bound $m(\|v\|)$ for every residual of the norm",
    }
    for column, look in looks.items():
        positive = rows[rows[column] > 0]
        ax.plot(positive["step"], positive[column], label=names[column], **look)
    ax.plot(rows["step"], rows["quotient"], "o", color="black", zorder=5, label="measured")
    none = rows.loc[rows["lower"] <= 0, "step"]
    if len(none):
        text = f"$m = 0$ from step {none.min()} on"
        ax.text(0.97, 0.12, text, transform=ax.transAxes, ha="right", color="0.3")
    ax.set_xscale("symlog", linthresh=1)
    lowest, highest = rows["quotient"].min(), rows["upper"].max()
    floor = min(lowest, rows.loc[rows["lower_ball"] > 0, "lower_ball"].min())
    ax.set(yscale="log", xlabel="gradient step")
    ax.set_ylim(10 ** np.floor(np.log10(floor)), 10 ** np.ceil(np.log10(highest) + 0.2))


def embedding(tables: Tables) -> Figure:
    """Draw the left side of Eq. 15 and the measured rates over alpha and q."""
    figure, axes = style.grid(2, 2, 2.6, sharex="col", sharey="row")
    table = tables["sweep"]
    looks = _width_looks(table)
    for column, (name, xlabel) in enumerate(
        (("scaling", r"$\alpha$ of the scaling"), ("lifting", "$q$ of the lifting"))
    ):
        rows = table[table["embedding"] == name]
        _left_sides(axes[0, column], rows, looks)
        _sweep_rates(axes[1, column], rows, looks)
        axes[1, column].set_xlabel(xlabel)
    _onsets(axes[:, 0], tables["onsets"])
    axes[0, 0].set_ylabel("left side of Eq. 15")
    axes[1, 0].set_ylabel("rate of decay per gradient step")
    _name_marks(axes[0, 0], looks)
    style.legend_below(figure, axes[0, :1], columns=4)
    if len(table):
        finite = table[np.isfinite(table["width"])]
        style.say(
            figure,
            _where_proven(tables["onsets"]),
            f"{style.of_runs(finite.groupby(['embedding', 'size']).size(), 'network')} a point at "
            f"finite width and {style.count(table['data_seed'].nunique(), 'data set')} at "
            f"infinite; N = {table['samples'].iloc[0]}: medians; below, bars from least to "
            "largest.",
        )
    return figure


def _width_looks(table: pd.DataFrame) -> dict[float, dict[str, Any]]:
    return style.looks(sorted(table["width"].unique(), reverse=True))


def _where_proven(onsets: pd.DataFrame) -> str:
    """Say from which alpha on convergence is proven at infinite width, and observed."""
    limit = onsets[np.isinf(onsets["width"])] if len(onsets) else onsets
    proven, seen = limit["proven"].max(), limit["observed"].max()
    if np.isnan(proven) or np.isnan(seen):
        return "At infinite width, Theorem 2 applies at no alpha of the sweep."
    return (
        f"At infinite width and on every data set, Theorem 2 applies from alpha = {proven:g} on, "
        f"and every network converges from alpha = {seen:g} on, {np.log10(proven / seen):.1f} "
        "decades earlier."
    )


def _name_marks(ax: Axes, looks: dict[float, dict[str, Any]]) -> None:
    """Label lines by their width, and marks by what they are, without drawing anything."""
    for r, look in looks.items():
        ax.plot([], [], **look, label=r"$r = \infty$" if np.isinf(r) else f"$r = {r:.0f}$")
    grey: dict[str, Any] = {"color": "0.4", "linestyle": "none"}
    ax.plot([], [], **grey, marker="x", label="top: eigenvalue plugged in, not proven")
    ax.plot([], [], **grey, marker="o", markerfacecolor="white",
            label="below: not every network converged")  # fmt: skip


@style.panel
def _left_sides(ax: Axes, table: pd.DataFrame, looks: dict[float, dict[str, Any]]) -> None:
    for width, rows in table.groupby("width"):
        look = looks[width]
        medians = rows[np.isfinite(rows["left_side"])].groupby("size")["left_side"].median()
        ax.plot(medians, **look)
        if np.isinf(width) and len(medians):
            _power_law(ax, medians, table["embedding"].iloc[0])
        plug_in = rows.groupby("size")["plug_in"].median().dropna()
        ax.plot(plug_in, marker="x", ls="none", color=look["color"])
    for radius in table.loc[np.isinf(table["width"]), "radius"].dropna()[:1]:
        ax.axhline(radius, **style.GUIDE)
        ax.annotate(
            r"$R$ at $r = \infty$: Theorem 2 applies below", (0.02, radius), color="0.3",
            xycoords=("axes fraction", "data"), xytext=(0, -10), textcoords="offset points",
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
    guide = 0.3 * last * (np.array(sizes) / size) ** power
    ax.plot(sizes, guide, color="0.45", linewidth=1, linestyle=style.DASHES[2])
    style.label_guide(ax, label, (sizes[0], guide[0]))


@style.panel
def _sweep_rates(ax: Axes, table: pd.DataFrame, looks: dict[float, dict[str, Any]]) -> None:
    for width, rows in table.groupby("width"):
        groups = rows.groupby("size")
        middle, low, high = (groups["rate"].agg(how) for how in ("median", "min", "max"))
        look = looks[width]
        bars = [middle - low, high - middle]
        ax.errorbar(middle.index, middle, yerr=bars, capsize=1.5, elinewidth=0.7, **look)
        failing = middle[~groups["converged"].all()]
        ax.plot(failing, **look | {"linestyle": "none", "markerfacecolor": "white"}, zorder=3)
    ax.set(ylim=(0, None))


def _onsets(axes: np.ndarray, table: pd.DataFrame) -> None:
    """Shade from which alpha on Theorem 2 applies at infinite width, on every data set."""
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
        va="top", color="0.3",
    )  # fmt: skip


def _one_size(table: pd.DataFrame) -> pd.DataFrame:
    sizes = table["samples"].unique()
    return table[table["samples"] == (32 if 32 in sizes else max(sizes))]


def _present(table: pd.DataFrame) -> list[str]:
    return [name for name in KERNELS if name in set(table["kernel"])]
