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


def test_words_take_no_room_from_the_panels():
    with style.applied():
        plain, _ = style.panels(2)
        figure, (ax, _) = style.panels(2)
        ax.plot([1, 2], label="a line")
        style.say(figure, "Long. " * 60, "3 seeds.")
        style.legend_below(figure, [ax])
        heights = []
        for drawn in (plain, figure):
            style.frame(drawn, "data: some")
            drawn.draw_without_rendering()
            heights.append(drawn.axes[0].get_window_extent().height)
        assert figure.get_figheight() > plain.get_figheight() + 0.5
        assert figure.get_figwidth() == plain.get_figwidth() == style.WIDTH
    assert heights[0] == pytest.approx(heights[1], rel=0.05)
    assert style.words(figure)["sample"] == "3 seeds."


def test_a_legend_below_has_each_label_once():
    with style.applied():
        figure, axes = style.panels(2)
        for ax in axes:
            ax.plot([1, 2], label="one")
            ax.plot([2, 1], label="other")
        style.legend_below(figure, axes)
        style.legend_below(figure, [])  # nothing to label
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "other"]


def test_runs_are_drawn_one_by_one_in_the_order_of_their_axis():
    rows = pd.DataFrame({"seed": [0, 1, 0, 1], "x": [2, 2, 1, 1], "y": [1.0, 2.0, 3.0, 4.0]})
    with style.applied():
        _, (ax,) = style.panels()
        style.runs(ax, rows, "x", "y", "seed", "black")
        assert [line.get_xdata().tolist() for line in ax.lines] == [[1, 2], [1, 2]]
        assert [line.get_ydata().tolist() for line in ax.lines] == [[3, 1], [4, 2]]


def test_ordered_values_get_darker():
    looks = style.ordered([3, 1, 2])
    lightness = [np.dot(look["color"], (0.299, 0.587, 0.114)) for look in looks.values()]
    assert list(looks) == [1, 2, 3]
    assert lightness == sorted(lightness, reverse=True)
    assert len({look["marker"] for look in looks.values()}) == 3


def test_numbers_in_words():
    assert style.count(1, "seed") == "1 seed" and style.count(2, "seed") == "2 seeds"
    assert style.count(5, "process", "processes") == "5 processes"
    assert style.of_runs([3, 10, 3]) == "3 to 10 seeds" and style.of_runs([]) == "0 seeds"
    assert style.interval(-1.234, -2, -0.5) == "-1.23 [-2.00, -0.50]"
    assert style.interval(0.5, np.nan, np.nan) == style.interval(0.5, -np.inf, np.inf) == "0.50"
    assert style.span([0.2, 0.1]) == "0.10 to 0.20" and style.span([1.001, 1.0]) == "1.00"
    assert [style.side(low, low + 1, 0, "less", "more", "equal") for low in (-2, 1, -0.5)] == [
        "less", "more", "equal",
    ]  # fmt: skip


def test_no_intervals_are_promised_of_single_runs():
    assert "no intervals" in style.averages([1, 1]) and "no intervals" in style.averages([])
    assert style.averages([3]) == "means with 95 % intervals"
    assert "where there are several" in style.averages([1, 3])


def test_data_sets_are_named_for_people_with_their_copy():
    assert style.dataset("cifar10 (JPEG copy)") == "CIFAR-10 (JPEG copy)"
    assert style.dataset("one_sample") == "one sample"
