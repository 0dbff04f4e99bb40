"""Error bars, looks and panels of figures."""

import numpy as np
import pandas as pd
import pytest

from resnet_limits import style

POINTS = pd.DataFrame(
    {"mean": [2.0, 1.0, 1.0], "low": [1.5, -3.0, np.nan], "high": [3.0, 5, np.nan]}
)


def test_error_bars_reach_the_ends_of_intervals():
    below, above = style.interval_bars(POINTS)
    assert below[:2].tolist() == pytest.approx([0.5, 0.9])  # down to a tenth of the mean
    assert above[:2].tolist() == [1.0, 4.0]
    assert np.isnan([below[2], above[2]]).all()


def test_error_bars_end_at_the_floor():
    assert style.interval_bars(POINTS, floor=0.25)[0, 1] == 0.75
    # A mean below the floor has no bar that would reach above it.
    assert style.interval_bars(POINTS, floor=1.5)[0, 1] == 0


def test_looks_are_told_apart_and_can_skip_the_first():
    looks = style.looks("abcdefg")
    for key in ("color", "marker", "linestyle"):
        assert len({look[key] for look in looks.values()}) == 7
    assert list(style.looks("bc", skip=1).values()) == [looks["b"], looks["c"]]


def test_a_panel_without_rows_says_so():
    @style.panel
    def draw(ax, rows):
        ax.plot(rows["mean"])

    with style.applied():
        _, (full, empty) = style.panels(2)
        draw(full, POINTS)
        draw(empty, POINTS[:0])
        assert (len(full.lines), len(full.texts)) == (1, 0)
        assert (len(empty.lines), len(empty.texts)) == (0, 1)
        assert empty.texts[0].get_text() == "not run at this scale"


def test_a_figure_of_an_empty_table_is_saved(tmp_path):
    with style.applied():
        tables = {
            "empty": pd.DataFrame(columns=["dataset"]),
            "full": POINTS.assign(dataset="mnist"),
        }
        style.save(style.not_run(), tmp_path / "figure", tables, [], "smoke")
    assert (tmp_path / "figure.png").stat().st_size > 0
