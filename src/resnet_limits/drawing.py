"""Tidy tables to figures."""

from __future__ import annotations

from resnet_limits import style
from resnet_limits.analysis import read_table
from resnet_limits.archive import read_manifest
from resnet_limits.errors import require_known
from resnet_limits.layout import RECORDED, Layout
from resnet_limits.spec import Study, load_study


def draw_figure(study: str, figure: str, scale: str, layout: Layout) -> None:
    """Draw one of a study's figures from its tables, as PNG and PDF."""
    spec = load_study(study)
    require_known(figure, spec.figures, f"{study}: figure")
    names = spec.figures[figure].tables
    tables = {name: style.drawable(read_table(study, name, scale, layout)) for name in names}
    paths = [layout.table(scale, study, name) for name in names]
    with style.applied():
        plot = spec.load("plots", figure)
        why = style.nothing_to_draw(tables.values())
        drawn = style.notice(why) if why else plot(tables)
        target = layout.figure(scale, study, figure).with_suffix("")
        style.save(drawn, target, tables, paths, scale_label(spec, figure, scale, layout))


def scale_label(spec: Study, figure: str, scale: str, layout: Layout) -> str:
    """Return the scale, and of recorded runs the scales that they were trained at."""
    if scale != RECORDED:
        return scale
    kept = read_manifest(spec.name, layout).experiments
    names = [
        name for table in spec.figures[figure].tables for name in spec.tables[table].experiments
    ]
    scales = sorted({kept[name].scale for name in names if name in kept})
    return f"{', '.join(scales)} (recorded)" if scales else RECORDED
