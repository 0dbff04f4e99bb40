"""How figures look, and how they are saved so that drawing twice gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("Agg")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.ticker import LogLocator, NullFormatter

from resnet_limits.files import hash_file, write_atomic

WIDTH = 9.0  # inches, of every figure
HEIGHT = 2.9  # inches, of a row of panels
FONT = 8.5  # points, of every word
LINE = 1.3 * FONT / 72  # inches from a line of words to the next
MARGIN = 0.05  # inches, around words
LETTERS = {"bold": 125, "normal": 140}  # that fit into a line of words
# Okabe and Ito's colours for every kind of colour vision, ordered from dark to light so that
# neighbours also differ in grey; markers and dashes differ as well.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), "-.", "--")
GUIDE: dict[str, Any] = {"color": "0.45", "linewidth": 1.0, "linestyle": (0, (6, 2)), "zorder": 1}

THIN: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.4, "zorder": 1.5}  # a single run's line
SIZES = (
    "font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize",
    "legend.fontsize", "legend.title_fontsize", "figure.titlesize",
)  # fmt: skip
MESSAGE, SAMPLE = "message", "sample"  # the words above the panels
DATASETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "digits": "scikit-learn's digits",
    "gaussian": "Gaussian samples",
    "mnist": "MNIST",
    "two_spirals": "Two Spirals",
}

P = ParamSpec("P")
Tables = Mapping[str, pd.DataFrame]  # what a figure is drawn from, by name


@contextmanager
def applied() -> Iterator[None]:
    """Draw in the project's style."""
    sizes: dict[Any, float] = dict.fromkeys(SIZES, FONT)
    with (
        sns.axes_style("ticks"),
        sns.plotting_context("paper"),
        mpl.rc_context(
            {
                **sizes,
                "figure.dpi": 100,
                "savefig.dpi": 200,
                "figure.constrained_layout.use": True,
                "axes.labelpad": 3.0,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": "0.9",
                "grid.linewidth": 0.6,
                "legend.edgecolor": "none",
                "legend.framealpha": 0.8,
                "legend.borderpad": 0.25,
                "legend.labelspacing": 0.3,
                "legend.handlelength": 2.0,
                "lines.markersize": 4.5,
                "lines.linewidth": 1.4,
                "pdf.fonttype": 42,
                "svg.hashsalt": "resnet-limits",
                "font.family": "DejaVu Sans",
            }
        ),
    ):
        yield
        plt.close("all")


def panels(count: int = 1, height: float = HEIGHT, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels side by side, ``height`` in inches."""
    figure, axes = grid(1, count, height, **options)
    return figure, list(axes[0])


def grid(
    rows: int, columns: int, height: float = HEIGHT, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels, ``(rows, columns)``, ``height`` inches a row."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, **options)


def say(figure: Figure, message: str, sample: str) -> None:
    """Write above the panels what a figure shows, and what it was measured on.

    Parameters
    ----------
    figure
        It grows by the lines of words when it is saved.
    message
        One sentence, of the tables' numbers.
    sample
        How many runs there are, and what lines, points and bars are of them.
    """
    for gid, text, weight in ((MESSAGE, message, "bold"), (SAMPLE, sample, "normal")):
        whole = text.replace(" = ", "\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")
        lines = textwrap.fill(whole, LETTERS[weight], break_on_hyphens=False)
        figure.text(0, 0, lines, gid=gid, weight=weight, va="top", linespacing=1.2)


def words(figure: Figure) -> dict[str, str]:
    """Return what `say` wrote: ``message`` and ``sample``, if anything."""
    return {str(text.get_gid()): text.get_text() for text in figure.texts if text.get_gid()}


def count(number: float, thing: str, things: str = "") -> str:
    """Return ``1 seed`` or ``10 seeds``; ``things`` where the plural has no mere s."""
    return f"{number:.0f} {thing if number == 1 else things or thing + 's'}"


def of_runs(numbers: Iterable[float], thing: str = "seed") -> str:
    """Return how many runs there are of each point: ``10 seeds``, or ``3 to 10 seeds``."""
    found = sorted(set(numbers))
    if not found:
        return f"0 {thing}s"
    least = f"{found[0]:.0f} to " if len(found) > 1 else ""
    return least + count(found[-1], thing)


def averages(numbers: Iterable[float]) -> str:
    """Return what points are of so many runs each: a caption must not promise what is not drawn."""
    found = set(numbers)
    if max(found, default=0) < 2:
        return "one run each, so no intervals"
    return f"means with 95 % intervals{' where there are several runs' if 1 in found else ''}"


def interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """Return ``-1.29 [-1.61, -0.97]``; without the interval where it is not known."""
    text = f"{value:.{digits}f}"
    known = math.isfinite(low) and math.isfinite(high)
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]" if known else text


def span(values: Iterable[float], digits: int = 2) -> str:
    """Return ``-1.00 to -0.98``, from the least to the largest; one number where they are alike."""
    found = list(values)
    if not found:
        return "unknown"
    ends = list(dict.fromkeys(f"{end:.{digits}f}" for end in (min(found), max(found))))
    return " to ".join(ends)


def side(low: float, high: float, bound: float, below: str, above: str, neither: str) -> str:
    """Return the words for an interval that is below a bound, above it, or neither."""
    return below if high < bound else above if low > bound else neither


def dataset(name: str) -> str:
    """Return a data set's name for people, with what its record says of the copy."""
    first, *rest = name.split(" ")
    return " ".join([DATASETS.get(first, first.replace("_", " ")), *rest])


NOT_RUN = "not run at this scale"
ALL_DIVERGED = "every run diverged"
LARGEST = 1e100  # on an axis


def not_run() -> Figure:
    """Return a figure that says that the scale leaves it out."""
    return notice(NOT_RUN)


def notice(text: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure, (ax,) = panels(height=0.6)
    mark(ax, text)
    return figure


def mark_not_run(ax: Axes) -> None:
    """Say in a panel that the scale leaves it out."""
    mark(ax, NOT_RUN)


def mark(ax: Axes, text: str) -> None:
    """Say in a panel why there is nothing to draw."""
    ax.text(0.5, 0.5, text, ha="center", transform=ax.transAxes)
    ax.set_axis_off()


def drawable(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out numbers so large that an axis would have no ticks: those of a run that diverges."""
    numbers = table.select_dtypes("float")
    beyond = (numbers.abs() > LARGEST) & np.isfinite(numbers)
    return table.assign(**numbers.mask(beyond))


def nothing_to_draw(tables: Iterable[pd.DataFrame]) -> str:
    """Say why tables have nothing to draw, in words; empty if they do have something."""
    filled = [table for table in tables if not table.empty]
    if not filled:
        return NOT_RUN
    diverged = all("diverged" in table and table["diverged"].all() for table in filled)
    return ALL_DIVERGED if diverged else ""


def panel(
    draw: Callable[Concatenate[Axes, pd.DataFrame, P], None],
) -> Callable[Concatenate[Axes, pd.DataFrame, P], None]:
    """Decorate a function that draws rows into a panel.

    Without rows, or where all are of runs that diverged, the panel says so.
    """

    @wraps(draw)
    def drawn(ax: Axes, rows: pd.DataFrame, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if why := nothing_to_draw([rows]):
            mark(ax, why)
        else:
            draw(ax, rows, *args, **kwargs)

    return drawn


def legend_below(figure: Figure, axes: Iterable[Axes], title: str = "", columns: int = 4) -> None:
    """Put one legend for some panels below all of them, each label once.

    Parameters
    ----------
    figure, axes
        The figure, which grows by the legend when it is saved, and the panels with labels.
    title
        What the labels are of.
    columns
        Most labels in a row.
    """
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        handles, labels = list(found.values()), list(found)
        legend = figure.legend(
            handles, labels, title=title or None, loc="lower center", ncols=columns
        )
        legend.set_gid(f"{math.ceil(len(found) / columns) + bool(title)} rows")


def legend_above(ax: Axes, title: str = "", **options: Any) -> None:
    """Put a panel's legend above it, in the place of its title, where it hides nothing."""
    above: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    if ax.get_legend_handles_labels()[0]:
        ax.legend(title=title or None, **above, **options)


def label_guide(ax: Axes, text: str, point: tuple[float, float]) -> None:
    """Write what a guide line means just below it."""
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    offset: dict[str, Any] = {"xytext": (2, -9), "textcoords": "offset points"}
    ax.annotate(text, point, color="0.2", bbox=box, **offset)


def plain_numbers(ax: Axes) -> None:
    """Write 0.1 for 10^-1 on a log axis of at most five decades; of less than two, also at 2, 5."""
    low, high = ax.get_ylim()
    if high > 1e5 * low:
        return
    ax.yaxis.set_major_formatter("{x:g}")
    if high < 100 * low:
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.yaxis.set_minor_formatter("{x:g}")
    else:
        ax.yaxis.set_minor_formatter(NullFormatter())


def looks(names: Sequence[Any], skip: int = 0) -> dict[Any, dict[str, Any]]:
    """Give each name a colour, a marker and dashes of its own, leaving out the first ``skip``."""
    return {
        name: {
            "color": COLORS[index % len(COLORS)],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index % len(DASHES)],
        }
        for index, name in enumerate(names, start=skip)
    }


def interval_bars(points: pd.DataFrame, floor: float | None = None) -> np.ndarray:
    """Return the lengths of error bars below and above each mean, shape ``(2, points)``.

    Parameters
    ----------
    points
        Columns ``mean``, ``low`` and ``high``; a mean without an interval gets no bar.
    floor
        Where bars end that reach 0 or less, since a log axis has no 0; by default a tenth of the
        mean.
    """
    low = points["low"].clip(lower=points["mean"] / 10 if floor is None else floor)
    bars = np.array([points["mean"] - low, points["high"] - points["mean"]])
    return bars.clip(min=0)


def points(
    ax: Axes,
    x: Any,
    table: pd.DataFrame,
    look: Mapping[str, Any],
    floor: float | None = None,
    **options: Any,
) -> None:
    """Draw means with their intervals as bars, from a table as `interval_bars` takes."""
    ax.errorbar(x, table["mean"], interval_bars(table, floor), capsize=2, elinewidth=1.0,
                **{**look, **options})  # fmt: skip


def runs(
    ax: Axes, rows: pd.DataFrame, x: str, y: str, by: str | list[str], color: Any, **options: Any
) -> None:
    """Draw each run's line thinly, to lie under what is drawn of them all."""
    for _, run in rows.groupby(by):
        run = run.sort_values(x)
        ax.plot(run[x], run[y], **{**THIN, "color": color, **options})


def ordered(
    values: Iterable[float], palette: str = "viridis_r", lightest: float = 0.25
) -> dict[float, dict[str, Any]]:
    """Give ordered values, such as sizes, colours of falling lightness, markers and dashes.

    The palette is used from its share ``lightest`` on, below which it would hardly show.
    """
    unique = sorted(set(values))
    shares = np.linspace(1, lightest, max(2, len(unique)))
    colors = dict(zip(reversed(unique), mpl.colormaps[palette](shares)[:, :3], strict=False))
    return {value: look | {"color": tuple(colors[value])} for value, look in looks(unique).items()}


def shades(values: Iterable[float]) -> dict[float, dict[str, Any]]:
    """Do what `ordered` does in greys, for a figure whose colours mean something else."""
    return ordered(values, "Greys", 0.45)


def save(
    figure: Figure,
    stem: Path,
    tables: Tables,
    paths: Sequence[Path],
    scale: str,
) -> None:
    """Write ``<stem>.png`` and ``<stem>.pdf`` with their origin below and in the metadata.

    Parameters
    ----------
    figure
        What was drawn.
    stem
        Path without suffix.
    tables, paths
        What it was drawn from; the data sets' names are shown, the files' hashes embedded.
    scale
        The tables' scale, as it is to be shown.
    """
    names = [table["dataset"].dropna() for table in tables.values() if len(table)]
    datasets = ", ".join(map(dataset, sorted(set().union(*names))))
    frame(figure, f"data: {datasets}   scale: {scale}" if datasets else f"scale: {scale}")
    content = hashlib.sha256("".join(map(hash_file, paths)).encode()).hexdigest()
    subject = f"scale {scale}; tables {content}"
    # No dates and no program versions: the same tables give the same bytes.
    _write(figure, stem.with_suffix(".png"), {"Description": subject, "Software": None})
    figure.set_layout_engine("none")  # laid out already; once more takes as long as drawing
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    _write(figure, stem.with_suffix(".pdf"), {"Subject": subject, **undated})


def frame(figure: Figure, origin: str) -> None:
    """Put words above, and legend and origin below the panels, which keep their size."""
    texts = {text.get_gid(): text for text in figure.texts if text.get_gid()}
    heights = {gid: _height(text.get_text().count("\n") + 1) for gid, text in texts.items()}
    legends = [_height(1.2 * _rows(legend)) for legend in figure.legends]
    above, below = sum(heights.values()), sum(legends) + _height(1)
    height = figure.get_figheight() + above + below
    figure.set_figheight(height)
    top = height - MARGIN
    for gid, text in texts.items():
        text.set_position((MARGIN / WIDTH, top / height))
        top -= heights[gid]
    figure.text(1 - MARGIN / WIDTH, MARGIN / height, origin, ha="right", color="0.35")
    bottom = _height(1)
    for legend, needed in zip(figure.legends, legends, strict=True):
        legend.set_bbox_to_anchor((0, bottom / height, 1, needed / height), figure.transFigure)
        bottom += needed
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, below / height, 1, 1 - (above + below) / height))


def _height(lines: float) -> float:
    """Return the height of lines of words, in inches."""
    return lines * LINE + MARGIN


def _rows(legend: Legend) -> int:
    """Return how many rows `legend_below` gave a legend."""
    return int((legend.get_gid() or "1").split()[0])


def _write(figure: Figure, path: Path, metadata: dict[str, str | None]) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], metadata=metadata)
    write_atomic(path, content.getvalue())
    print(path)
