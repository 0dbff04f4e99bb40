"""The report page: what it says, and what a browser makes of it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import itertools
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from resnet_limits.claims import VERDICTS, Verdict, describe_bound, describe_test
from resnet_limits.errors import UserError
from resnet_limits.files import write_atomic
from resnet_limits.layout import Layout
from resnet_limits.report import Section, picture, render, write_report
from resnet_limits.spec import load_study, some_studies, study_names
from resnet_limits.wording import method, outcome, quantity, typeset

FIGURES = Path(__file__).parents[1] / "figures/recorded"
RUN = {
    "run": "rate/constant", "data": "spirals (0123abcd)", "state": "finished", "members": 70,
    "diverged": 1, "seconds": 12.5, "memory": 800, "device": "cpu, 1 thread",
    "engine": "compiled float32", "commit": "0123456789ab", "torch": "2.9", "current": False,
}  # fmt: skip


def planted(study):
    """Return a study's section with verdicts of all kinds, in turn."""
    kinds = itertools.cycle(VERDICTS)
    protocols = itertools.cycle(("paper", "truncated", "reduced"))
    claims = [_verdict(claim, next(kinds), next(protocols)) for claim in study.claims]
    figures = {name: picture(FIGURES / study.name / f"{name}.png") for name in study.figures}
    shown = {name: SMALL for name, table in study.tables.items() if table.shown}
    return Section(study, claims, figures, shown, [RUN, RUN | {"current": True}], ["rate: 1 of 2"])


SMALL = pd.DataFrame({"n_train": ["32", "64"], "test_error": ["0.5 [0.4, 0.6]", ""]})


def _verdict(claim, verdict, protocol):
    texts = {key: getattr(claim, key) for key in ("id", "statement", "kind", "where", "paper")}
    found = Verdict(
        **texts,
        figure=claim.figure,
        test=describe_test(claim),
        bound=describe_bound(claim.bound),
        exact=claim.exact,
        verdict=verdict,
        why="the whole interval is where it is",
        note=claim.note,
    )
    if verdict == "not tested":
        return found
    found = replace(found, estimate=-1.2e-7, protocol=protocol, data="digits; scale smoke")
    if claim.exact:
        return found
    n = 1 + len(claim.id)
    return replace(
        found, interval=(-0.52, 1.5), n=n, power=1 / n, power_at="-0.5", size=0.05,
        needed_n="12", p_value=0.01, sensitivity="bounds above -0.52", bound_range=(-0.52, None),
    )  # fmt: skip


@pytest.fixture(scope="module")
def sections():
    return [planted(load_study(name)) for name in study_names()]


@pytest.fixture(scope="module")
def html(sections):
    return render(sections, "smoke")


class Page(HTMLParser):
    """What a page's HTML holds: tags with their attributes, in order, and headings' levels."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def headings(self):
        return [int(name[1]) for name, _ in self.tags if re.fullmatch(r"h[1-6]", name)]


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_every_figure_is_there_once_and_the_page_is_small(html, page):
    images = page.all("img")
    figures = [name for study in study_names() for name in load_study(study).figures]
    assert len(images) == len(figures)
    assert html.count("base64,") == len(images)
    assert len(html) < 5e6
    assert sum(image.get("loading") == "lazy" for image in images) == len(images) - 4


def test_a_figure_keeps_its_looks_in_fewer_bytes():
    path = FIGURES / "two_spirals/theory.png"
    found = picture(path)
    content = base64.b64decode(found.data.removeprefix("data:image/png;base64,"))
    assert len(content) < path.stat().st_size / 2
    one, other = (
        np.asarray(Image.open(f).convert("RGB"), int) for f in (path, io.BytesIO(content))
    )
    assert np.abs(one - other).max() < 32
    assert (one.shape[0] // 2, one.shape[1] // 2) == (found.height, found.width)


def test_nothing_is_loaded_and_every_link_leads_somewhere(page):
    anchors = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert not [name for name, count in Counter(anchors).items() if count > 1]
    links = {attributes["href"] for attributes in page.all("a")}
    assert links <= {f"#{name}" for name in anchors}
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not page.all("link")
    for study in study_names():
        assert {f"{study}.{claim.id}" for claim in load_study(study).claims} <= set(anchors)


def test_the_page_is_in_order_for_screen_readers(page):
    levels = page.headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    captions = {f.caption for s in study_names() for f in load_study(s).figures.values()}
    assert {image["alt"] for image in page.all("img")} == captions
    assert all("scope" in head for head in page.all("th"))
    tables = len(page.all("table"))
    assert len(page.all("caption")) == len(page.all("thead")) == tables > 0


def test_only_the_pages_own_script_may_run(html):
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    assert hashlib.sha256(script.encode()).digest() == base64.b64decode(
        re.search(r"script-src 'sha256-([^']*)'", html)[1]
    )
    assert "default-src 'none'" in html


def test_the_story_counts_verdicts_and_names_what_failed(sections, html):
    section = next(s for s in sections if s.study.name == "two_spirals")
    counts = Counter(verdict.verdict for verdict in section.verdicts("claim"))
    total = sum(counts.values())
    assert f"Of the paper&#39;s {total} claims, {counts['reproduced']} are reproduced" in html
    assert str(typeset(section.study.document.story)) in html
    failed = next(v for v in section.verdicts("claim") if v.verdict == "not reproduced")
    assert f'<li><a href="#two_spirals.{failed.id}">' in html


def test_a_page_about_some_studies_names_the_others(sections, html):
    assert "Not all studies are here" not in html
    html = render(sections[:1], "smoke", ["Sorted tau", "Two Spirals"])
    assert "Not all studies are here; left out: Sorted tau, Two Spirals." in html


def test_texts_are_escaped(sections):
    claim = replace(sections[0].claims[0], statement="<b>1 < 2</b>")
    html = render([replace(sections[0], claims=[claim])], "smoke")
    assert "<b>1 < 2" not in html
    assert "&lt;b&gt;1 &lt; 2" in html


# Words


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("r^(-1/2) at n >= q^8", "r<sup>−1/2</sup> at n ≥ q<sup>8</sup>"),
        ("||T_{k+1}|| / ||T_k||", "‖T<sub>k+1</sub>‖ / ‖T<sub>k</sub>‖"),
        ("(1 - eta mu)^k L(0)", "(1 − η μ)<sup>k</sup> L(0)"),
        ("L(0) exp(-c t) beta^2", "L(0) exp(−c t) β<sup>2</sup>"),
        ("1e-08 and 2.5e+10", "10<sup>−8</sup> and 2.5 × 10<sup>10</sup>"),
        ("-0.5 to -.1, 95 %, i.i.d.", "−0.5 to −.1, 95\N{NO-BREAK SPACE}%, i.i.d."),
        ("the 0-1 error of ResNet-20", "the 0-1 error of ResNet-20"),
        ("n_train, by_step", "points, by step"),
        ("a < b & <i>", "a &lt; b &amp; &lt;i&gt;"),
    ],
)
def test_formulas_are_typeset(text, html):
    assert typeset(text, {"n_train": "points"}) == html


def test_notes_link_the_claims_that_they_mention(html):
    assert 'lack at the start already (<a href="#two_spirals.start_limit">' in html


def test_every_test_is_told_in_words():
    """Each name in a claim's test has a meaning, and no name of a column is left."""
    for name in study_names():
        study = load_study(name)
        for claim in study.claims:
            words = study.tables[claim.table].words
            for text in (quantity(claim, words), method(claim, words)):
                assert not re.search(r"\w_\w", text), text
    spirals = load_study("two_spirals")
    claim = next(claim for claim in spirals.claims if claim.id == "field_removed")
    assert method(claim, spirals.tables["final"].words) == (
        "Difference of test error, without residual part minus with trained residual part, paired "
        "by number of training points and seed; one value for each seed. Student's 95 % one-sided "
        "limits must lie within the bound."
    )


def test_the_words_of_a_table_are_those_of_its_claims():
    for name in study_names():
        study = load_study(name)
        used = {table: set() for table in study.tables}
        for claim in study.claims:
            told = [*claim.arguments.values(), *claim.replicates]
            used[claim.table] |= {str(v) for value in told for v in np.atleast_1d(value)}
        for table, spec in study.tables.items():
            assert set(spec.words) <= used[table] or spec.shown, (name, table)


def test_verdicts_are_counted_in_a_sentence(sections):
    found = [replace(sections[0].claims[0], verdict=v) for v in (*VERDICTS[:2], VERDICTS[0])]
    counted = "Of the paper's 3 claims, 2 are reproduced and 1 is not reproduced."
    assert outcome(found, "the paper's", "claim") == counted
    assert outcome(found[:1], "our own", "check") == "Of our own 1 check, 1 is reproduced."
    assert outcome([], "our own", "check") == ""


def test_statements_can_be_understood_alone():
    for name in study_names():
        for claim in load_study(name).claims:
            assert not re.match(r"The same\b|And\b|It\b|Both\b", claim.statement), claim.id


# Files


def test_the_report_of_some_studies_leaves_that_of_all_alone():
    layout, names = Layout(), study_names()
    assert layout.report("quick", some_studies(names)).name == "report.html"
    assert layout.report("quick", some_studies(names[::-1])).name == "report.html"
    assert layout.report("quick", some_studies(["two_spirals"])).name == "report-two_spirals.html"
    two = some_studies(["two_spirals", "rff_width"])
    assert layout.all_claims("quick", two).name == "claims-rff_width-two_spirals.csv"


def test_verdicts_on_other_claims_are_refused(tmp_path):
    layout = Layout(tmp_path)
    write_atomic(layout.claims("smoke", "two_spirals"), "[]")
    with pytest.raises(UserError, match=r"claims\.json: its claims are not those of claims\.yaml"):
        write_report(["two_spirals"], "smoke", layout)


# In a browser

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
SHOWN = "claims => claims.filter(c => !c.hidden).map(c => c.id)"
ALL = "table.claims tbody"
# The smallest contrast of any text with what is behind it (WCAG 2), and that text.
CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => numbers(color).slice(0, 3)
    .map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    const color = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
    return (numbers(color)[3] ?? 1) > 0 ? color : behind(element.parentElement);
  };
  const written = [...document.body.querySelectorAll("*")].filter((element) =>
    [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
    && element.tagName !== "SCRIPT");
  return written.map((element) => {
    const pair = [getComputedStyle(element).color, behind(element)].map(luminance);
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    return [contrast, element.outerHTML.slice(0, 80)];
  }).sort((one, other) => one[0] - other[0])[0];
}"""


@pytest.fixture(scope="module")
def browser():
    """A browser that is installed; without one these tests say nothing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of these browsers is installed: {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(sections, tmp_path_factory):
    """A page whose pictures have their sizes and no content, so that it opens quickly."""
    small = [
        replace(s, figures={n: replace(p, data=EMPTY) for n, p in s.figures.items()})
        for s in sections
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(small, "smoke"), "utf-8")
    return path.as_uri()


@pytest.fixture
def opened(browser, address):
    """Open the page in a window; whatever it says on the console or asks of a network fails."""
    with contextlib.ExitStack() as stack:
        said = []

        def open_(width=1280, scheme="light", fragment="", **options):
            size = {"width": width, "height": 800}
            context = browser.new_context(viewport=size, color_scheme=scheme, **options)
            stack.callback(context.close)
            window = context.new_page()
            window.on("console", lambda message: said.append(message.text))
            window.on("pageerror", lambda error: said.append(str(error)))
            window.on("request", lambda request: said.append(request.url[:80]))
            window.goto(address + fragment)
            return window

        yield open_
        others = [text for text in said if not text.startswith(("data:", address))]
        assert not others


@pytest.mark.slow
def test_each_filter_shows_what_it_says(opened):
    window = opened()
    every = window.eval_on_selector_all(ALL, SHOWN)
    for name in ("study", "kind", "verdict", "protocol"):
        chosen = window.eval_on_selector(f"select[name={name}]", "s => s.options[2].value")
        window.select_option(f"select[name={name}]", chosen)
        shown = window.eval_on_selector_all(ALL, SHOWN)
        values = window.eval_on_selector_all(ALL, f"all => all.map(c => [c.id, c.dataset.{name}])")
        assert shown == [claim for claim, value in values if value == chosen]
        assert 0 < len(shown) < len(every)
        assert window.inner_text("output") == f"{len(shown)} of {len(every)} shown"
        window.click("text=Show all")
        assert window.eval_on_selector_all(ALL, SHOWN) == every


@pytest.mark.slow
def test_filters_add_up_and_counts_lead_to_them(opened, sections):
    window = opened()
    verdicts = next(s for s in sections if s.study.name == "sorted_tau").verdicts("claim")
    window.click('#sorted_tau a[data-verdict="inconclusive"]')
    shown = window.eval_on_selector_all(ALL, SHOWN)
    assert shown == [f"sorted_tau.{v.id}" for v in verdicts if v.verdict == "inconclusive"]


def column(window, key):
    """The values of a column, in the order of the table; None where there is none."""
    index = window.eval_on_selector(f"th[data-key={key}]", "head => head.cellIndex")
    cell = f"all => all.map(c => c.rows[0].cells[{index}].dataset.value)"
    return [float(v) if v else None for v in window.eval_on_selector_all(ALL, cell)]


@pytest.mark.slow
def test_each_column_sorts_up_and_down_and_empty_cells_come_last(opened):
    window = opened()
    for key in ("verdict", "n", "power", "protocol"):
        before = column(window, key)
        head = window.locator(f"th[data-key={key}]")
        for direction in ("ascending", "descending"):
            head.locator("button").click()
            known = sorted((v for v in before if v is not None), reverse=direction == "descending")
            assert column(window, key) == known + [None] * (len(before) - len(known))
            assert head.get_attribute("aria-sort") == direction
        window.select_option("select[name=order]", "")
        assert column(window, key) == before
        assert window.locator("[aria-sort]").count() == 0


@pytest.mark.slow
def test_a_link_to_a_claim_shows_it_whatever_is_filtered(opened, sections):
    claim = f"{sections[0].study.name}.{sections[0].claims[5].id}"
    window = opened(fragment=f"#{claim}")
    details = window.locator(f"[id='{claim}'] details")
    assert details.get_attribute("open") is not None
    window.select_option("select[name=study]", sections[1].study.name)
    assert not window.locator(f"[id='{claim}']").is_visible()
    window.evaluate("location.hash = ''")
    window.evaluate(f"location.hash = '{claim}'")
    window.wait_for_selector(f"[id='{claim}']", state="visible")


@pytest.mark.slow
def test_the_way_back_is_always_in_sight(opened):
    window = opened(fragment="#evidence")
    window.wait_for_function("scrollY > 1000")
    box = window.locator("nav a").first.bounding_box()
    assert 0 <= box["y"] < 50
    window.click("nav >> text=Top")
    window.wait_for_function("scrollY === 0")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(opened, scheme):
    window = opened(scheme=scheme)
    window.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    contrast, where = window.evaluate(CONTRAST)
    assert contrast >= 4.5, where


@pytest.mark.slow
def test_a_narrow_window_cuts_nothing(opened):
    window = opened(width=390)
    window.eval_on_selector_all("details", "all => all.forEach(d => d.open = true)")
    assert window.evaluate("document.documentElement.scrollWidth") == 390
    beyond = "all => all.filter(e => e.getBoundingClientRect().right > 390).length"
    assert window.eval_on_selector_all("table.claims *, table.runs *, img", beyond) == 0
    first = window.locator(f"{ALL} >> nth=0")
    verdict, claim = (first.locator(part).bounding_box() for part in (".verdict", "th"))
    assert verdict["y"] + verdict["height"] <= claim["y"] + 1


@pytest.mark.slow
def test_without_scripts_the_table_is_whole(opened, sections):
    window = opened(java_script_enabled=False)
    assert not window.locator("#filters").is_visible()
    assert window.locator(ALL).count() == sum(len(section.claims) for section in sections)
    assert window.locator(f"{ALL} >> nth=-1").is_visible()


@pytest.mark.slow
def test_print_leaves_controls_out_and_details_in(opened):
    window = opened()
    window.emulate_media(media="print")
    assert not window.locator("nav").is_visible()
    assert not window.locator("#filters").is_visible()
    assert window.locator(f"{ALL} details dl >> nth=0").bounding_box()["height"] > 20
