"""The pictures in the repository are those that the archive and the present code give."""

from importlib import metadata
from pathlib import Path

import pytest
from matplotlib.testing.compare import compare_images
from PIL import Image

from resnet_limits.analysis import make_table
from resnet_limits.drawing import draw_figure
from resnet_limits.layout import MANIFEST, RECORDED, Layout
from resnet_limits.spec import load_study, study_names

ROOT = Path(__file__).parents[1]
KEPT = Layout(ROOT / "results", ROOT / "figures")
FIGURES = [(study, figure) for study in study_names() for figure in load_study(study).figures]
CHEAP = {  # drawn in a second or two each
    ("two_spirals", "depth"),
    ("two_spirals", "solvers"),
    ("sorted_tau", "remainder"),
    ("weight_smoothness", "relu_counterexample"),
}
DRAWING = ("matplotlib", "numpy", "pandas", "pillow", "scipy", "seaborn", "statsmodels")
# Root mean square over the pixels' 0 to 255: letters of another version differ by less, a line
# that moved by more.
TOLERANCE = 8


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """Folders of their own, with the archive's runs."""
    folder = tmp_path_factory.mktemp("project")
    made = Layout(folder / "results", folder / "figures")
    for study in study_names():
        archive, target = (place.study(RECORDED, study) for place in (KEPT, made))
        target.mkdir(parents=True)
        for path in archive.iterdir():
            if path.name in load_study(study).experiments or path.name == MANIFEST:
                (target / path.name).symlink_to(path)
    return made


def by_cost(cells):
    return [
        pytest.param(*cell, marks=[] if cell in CHEAP else [pytest.mark.slow]) for cell in cells
    ]


@pytest.mark.parametrize(("study", "figure"), by_cost(FIGURES))
def test_a_figure_in_the_repository_is_up_to_date(layout, study, figure):
    for table in load_study(study).figures[figure].tables:
        if not layout.table(RECORDED, study, table).exists():
            make_table(study, table, RECORDED, layout)
    draw_figure(study, figure, RECORDED, layout)
    kept, drawn = (place.figure(RECORDED, study, figure) for place in (KEPT, layout))
    if has_locked_versions() and tables_of(kept) == tables_of(drawn):
        assert kept.read_bytes() == drawn.read_bytes()
    else:  # other versions draw other letters, another processor rounds the last digit otherwise
        assert compare_images(kept, drawn, TOLERANCE) is None


def tables_of(figure):
    """Return what a figure's metadata say of the tables that it was drawn from."""
    with Image.open(figure) as image:
        return image.text["Description"]


def has_locked_versions():
    lines = (ROOT / "envs/requirements.lock").read_text().splitlines()
    locked = dict(line.split()[0].split("==") for line in lines if "==" in line)
    return all(locked[name] == metadata.version(name) for name in DRAWING)


def test_the_repository_has_all_figures_and_no_others():
    kept = {(path.parent.name, path.stem) for path in (KEPT.figures / RECORDED).glob("*/*.png")}
    assert kept == set(FIGURES)
