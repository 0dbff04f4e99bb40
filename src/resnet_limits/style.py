"""How figures look, and how they are saved so that drawing twice gives the same bytes."""

from __future__ import annotations

import hashlib
import io
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
from matplotlib.ticker import LogLocator, NullFormatter

from resnet_limits.files import hash_file, write_atomic

WIDTH = 5.5  # inches; a page's text width
HEIGHT = 3.4
# Okabe and Ito's colours for every kind of colour vision, ordered from dark to light so that
# neighbours also differ in grey; markers and dashes differ as well.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), "-.", "--")
GUIDE: dict[str, Any] = {"color": "0.45", "linewidth": 1.0, "linestyle": (0, (6, 2)), "zorder": 1}

P = ParamSpec("P")
Tables = Mapping[str, pd.DataFrame]  # what a figure is drawn from, by name


@contextmanager
def applied() -> Iterator[None]:
    """Draw in the project's style."""
    with (
        sns.axes_style("ticks"),
        sns.plotting_context("paper"),
        mpl.rc_context(
            {
                "figure.dpi": 100,
                "savefig.dpi": 200,
                "figure.constrained_layout.use": True,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": "0.9",
                "grid.linewidth": 0.6,
                "legend.frameon": False,
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


def panels(
    count: int = 1, width: float = WIDTH, height: float = HEIGHT, **options: Any
) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure and its axes side by side, sizes in inches."""
    figure, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False, **options)
    return figure, axes[0]


NOT_RUN = "not run at this scale"
ALL_DIVERGED = "every run diverged"
LARGEST = 1e100  # on an axis


def not_run() -> Figure:
    """Return a figure that says that the scale leaves it out."""
    return notice(NOT_RUN)


def notice(text: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure, (ax,) = panels(width=4.0, height=1.0)
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


def legend_once(axes: Iterable[Axes], **options: Any) -> None:
    """Put a legend into the first panel that has anything to label."""
    for ax in axes:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(**options)
            return


def label_guide(ax: Axes, text: str, point: tuple[float, float]) -> None:
    """Write what a guide line means just below it."""
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    offset: dict[str, Any] = {"xytext": (2, -9), "textcoords": "offset points"}
    ax.annotate(text, point, fontsize=6.5, color="0.2", bbox=box, **offset)


def plain_numbers(ax: Axes) -> None:
    """Write 0.1 for 10^-1 on a log axis; where there are few decades, also at 2 and 5."""
    low, high = ax.get_ylim()
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


def ordered(
    values: Iterable[float], palette: str = "viridis_r"
) -> dict[float, tuple[float, float, float]]:
    """Give ordered values, such as sizes, colours of falling lightness."""
    unique = sorted(set(values))
    colors = sns.color_palette(palette, len(unique) + 1)[1:]
    return dict(zip(unique, colors, strict=True))


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
    datasets = sorted(set().union(*names))
    origin = f"data: {', '.join(datasets)}   scale: {scale}"
    figure.supxlabel(origin, fontsize=6, color="0.4", x=0.995, ha="right")
    content = hashlib.sha256("".join(map(hash_file, paths)).encode()).hexdigest()
    subject = f"scale {scale}; tables {content}"
    # No dates and no program versions: the same tables give the same bytes.
    _write(figure, stem.with_suffix(".png"), {"Description": subject, "Software": None})
    figure.set_layout_engine("none")  # laid out already; once more takes as long as drawing
    undated = {"CreationDate": None, "Creator": None, "Producer": None}
    _write(figure, stem.with_suffix(".pdf"), {"Subject": subject, **undated})


def _write(figure: Figure, path: Path, metadata: dict[str, str | None]) -> None:
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], metadata=metadata)
    write_atomic(path, content.getvalue())
    print(path)
