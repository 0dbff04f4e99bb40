"""The archive keeps raw runs whole, of one scale, and says what it lacks."""

from __future__ import annotations

import itertools
import json
import lzma
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from resnet_limits import archive
from resnet_limits import runs as runs_module
from resnet_limits.analysis import finished_runs
from resnet_limits.archive import (
    archived_keys,
    archived_runs,
    completeness,
    read_manifest,
    record,
    refuse_archive,
)
from resnet_limits.errors import UserError
from resnet_limits.files import hash_bytes, write_atomic
from resnet_limits.layout import Layout
from resnet_limits.provenance import digest
from resnet_limits.runs import read_run, write_record
from resnet_limits.spec import RunConfig, Study, load_study
from tests.faults import killed

pytestmark = pytest.mark.filterwarnings("error")

STUDY = load_study("two_spirals")
DEPTHS = [10, 20, 40, 80]
NAMES = [f"depth{depth}" for depth in DEPTHS]
GIT = "`git checkout -- results/recorded`"
METRICS = pd.DataFrame({"step": [0, 0, 30], "seed": [0, 1, 0], "loss": [0.1, 1 / 3, float("inf")]})


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "results", tmp_path / "figures")


def finish(layout, experiment="depth", runs=NAMES, scale="paper", sources=None, commit="c0"):
    """Write records of finished runs."""
    configs = STUDY.experiment(experiment, scale).runs()
    for index, name in enumerate(runs):
        content = {
            "config": configs[name].to_json(),
            "outcome": {"state": "finished", "steps": 30, "members": 2, "diverged": []},
            "data": {"name": "two_spirals", "hash": "0"},
            "provenance": {
                "commit": commit,
                "sources": sources or STUDY.sources(experiment),
                "versions": {"torch": "2"},
                "device": "cpu",
                "threads": 1,
                "engine": "torch",
            },
            "timing": {"started": commit, "seconds": 1.0, "resumed": 0, "peak_memory_mb": 1.0},
        }
        tables = {"metrics": METRICS.assign(loss=METRICS["loss"] + index), "bounds": METRICS[:1]}
        write_record(layout.run(configs[name].key), content, tables)


def keep(layout, experiments=("depth",), runs=(), scale="paper", force=False):
    record("two_spirals", experiments, runs, scale, layout, force)


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name != ".lock"
    }


def archived(layout):
    return contents(layout.study("recorded", "two_spirals"))


def test_a_run_comes_back_as_it_was(layout):
    finish(layout)
    keep(layout)
    found = finished_runs(STUDY, "depth", "recorded", layout)
    trained = finished_runs(STUDY, "depth", "paper", layout)
    assert [run.record for run in found] == [run.record for run in trained]
    for one, other in zip(found, trained, strict=True):
        assert one.content("metrics.csv") == (other.folder / "metrics.csv").read_bytes()
        pd.testing.assert_frame_equal(one.measurements(), other.measurements(), check_exact=True)
        assert one.measurements("bounds").shape == (1, 3)
    assert sorted(path.name for path in found[0].folder.iterdir()) == [
        "bounds.csv.xz", "metrics.csv.xz", "record.json",
    ]  # fmt: skip


def test_the_same_runs_are_the_same_bytes(layout):
    finish(layout)
    keep(layout)
    first = archived(layout)
    keep(layout)
    assert archived(layout) == first
    shutil.rmtree(layout.study("recorded", "two_spirals"))
    for name in NAMES:  # one by one, in another order
        keep(layout, runs=[name])
    assert archived(layout) == first


def test_the_archive_grows_run_by_run(layout):
    finish(layout, runs=["depth80"], commit="c8")
    keep(layout)
    assert completeness(STUDY, "depth", layout) == "1 of 4 runs"
    finish(layout, runs=["depth10"], commit="c1")
    keep(layout, runs=["depth10"])
    assert completeness(STUDY, "depth", layout) == "2 of 4 runs"
    assert [key.run for key in archived_keys("two_spirals", "depth", layout)] == [
        "depth10",
        "depth80",
    ]
    finish(layout)
    keep(layout)
    assert completeness(STUDY, "depth", layout) == ""
    kept = read_manifest("two_spirals", layout).experiments["depth"]
    assert (kept.scale, kept.commits, list(kept.runs)) == ("paper", ["c0"], NAMES)


def test_commits_are_those_of_all_runs(layout):
    finish(layout, runs=["depth10"], commit="c1")
    keep(layout)
    finish(layout, runs=["depth20"], commit="c2")
    keep(layout, runs=["depth20"])
    assert read_manifest("two_spirals", layout).experiments["depth"].commits == ["c1", "c2"]


def test_a_whole_study_is_kept_at_once(layout):
    finish(layout)
    finish(layout, "rate", ["constant"])
    keep(layout, experiments=())
    assert list(read_manifest("two_spirals", layout).experiments) == ["rate", "depth"]
    assert completeness(STUDY, "rate", layout) == "1 of 4 runs"


def test_an_empty_archive_says_so(layout):
    assert completeness(STUDY, "depth", layout) == "not recorded"
    assert archived_runs("two_spirals", "depth", layout) == []


def refuses(layout, words, **options):
    """Assert that recording fails in one line, and leaves the archive as it was."""
    before = archived(layout)
    with pytest.raises(UserError, match=words) as caught:
        keep(layout, **options)
    assert "\n" not in str(caught.value)
    assert archived(layout) == before


def test_a_mixture_of_scales_is_refused(layout):
    finish(layout)
    finish(layout, scale="quick")
    finish(layout, "rate", ["constant"], scale="quick")
    keep(layout)
    words = "manifest.json: depth holds runs of scale paper, .* to replace them add --force"
    refuses(layout, words, scale="quick")
    refuses(layout, words, scale="quick", experiments=())  # nor is the other experiment kept
    keep(layout, scale="quick", runs=["depth20"], force=True)
    kept = read_manifest("two_spirals", layout).experiments["depth"]
    assert (kept.scale, list(kept.runs)) == ("quick", ["depth20"])
    folder = layout.study("recorded", "two_spirals") / "depth"
    assert [path.name for path in folder.iterdir()] == ["depth20"]


def test_other_sources_are_refused_unless_forced_and_then_marked(layout):
    finish(layout)
    finish(layout, runs=["depth20"], sources="old")
    refuses(layout, r"paper/two_spirals/depth/depth20/record.json: was trained by other .*--force")
    keep(layout, force=True)
    assert completeness(STUDY, "depth", layout) == "1 trained by other sources"
    keep(layout, runs=["depth10"])  # the mark stays
    assert read_manifest("two_spirals", layout).experiments["depth"].other_sources == ["depth20"]
    finish(layout)
    keep(layout, runs=["depth20"])
    assert completeness(STUDY, "depth", layout) == ""


MISTAKES = {
    "nothing has finished": ({"scale": "laptop"}, "laptop/two_spirals: no run has finished"),
    "the archive itself": ({"scale": "recorded"}, "--scale recorded: name the scale to take"),
    "unknown experiment": ({"experiments": ["dept"]}, "experiment 'dept' .*did you mean 'depth'"),
    "unknown run": ({"runs": ["depth11"]}, "run 'depth11' does not exist; did you mean 'depth10'"),
    "run not finished": ({"runs": ["depth80"]}, r"depth80/record.json: no such record"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named(layout, case):
    options, words = MISTAKES[case]
    finish(layout, runs=["depth10"])
    refuses(layout, words, **options)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_run_is_not_kept_and_leaves_the_archive_as_it_was(layout):
    finish(layout)
    keep(layout)
    finish(layout, commit="c9")
    key = STUDY.experiment("depth", "paper").runs()["depth80"].key
    damage(layout.run(key) / "bounds.csv")
    refuses(layout, r"depth80/bounds.csv: not as .*--force .*paper/.*record.json")
    damage(layout.record(key))
    refuses(layout, r"depth80/record.json: .*--force")


def read_all(layout):
    for run in archived_runs("two_spirals", "depth", layout):
        run.measurements()


@pytest.mark.parametrize("harm", [damage, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["depth/depth20/record.json", "depth/depth20/metrics.csv.xz"])
def test_damage_to_the_archive_is_named_with_gits_remedy(layout, harm, file):
    finish(layout)
    keep(layout)
    path = layout.study("recorded", "two_spirals") / file
    harm(path)
    with pytest.raises(UserError, match=r"recorded/two_spirals/depth/depth20/\w") as caught:
        read_all(layout)
    message = str(caught.value)
    assert message.endswith(f"Restore it with {GIT}.")
    assert message.count(str(path.parent)) == 1
    assert "snakemake" not in message


@pytest.mark.parametrize("content", ["", "{}", '{"experiments": {"depth": {}}}', "\x00"])
def test_a_damaged_manifest_is_named_with_gits_remedy(layout, content):
    finish(layout)
    keep(layout)
    layout.manifest("two_spirals").write_text(content)
    for read in (read_all, keep, lambda layout: completeness(STUDY, "depth", layout)):
        with pytest.raises(UserError, match=f"manifest.json: .*{GIT}"):
            read(layout)


def test_another_whole_record_in_a_runs_place_is_noticed(layout):
    finish(layout)
    keep(layout)
    folder = layout.study("recorded", "two_spirals") / "depth"
    shutil.copy(folder / "depth10" / "record.json", folder / "depth20" / "record.json")
    with pytest.raises(UserError, match=f"depth20/record.json: not the record that the .*{GIT}"):
        read_all(layout)
    with pytest.raises(UserError, match=f"depth20/record.json: not the record that the .*{GIT}"):
        completeness(STUDY, "depth", layout)


def test_a_changed_grid_and_changed_settings_are_said(layout, monkeypatch):
    finish(layout)
    keep(layout)
    grid = STUDY.experiment("depth", "paper").runs()

    def changed(*_):
        longer = grid["depth80"].settings.model_copy(update={"steps": 2000})
        runs = {
            **{name: grid[name] for name in ("depth10", "depth20")},
            "depth80": RunConfig(grid["depth80"].key, longer),
            "depth160": replace(grid["depth80"], key=replace(grid["depth80"].key, run="depth160")),
        }
        return SimpleNamespace(runs=lambda: runs)

    monkeypatch.setattr(Study, "experiment", changed)
    assert completeness(STUDY, "depth", layout) == (
        "3 of 4 runs; 2 of other settings than study.yaml now asks for"
    )


def test_a_run_that_study_yaml_no_longer_asks_for_is_still_read(layout, monkeypatch):
    finish(layout)
    keep(layout)
    monkeypatch.setattr(Study, "experiment", None)
    assert len(archived_runs("two_spirals", "depth", layout)) == 4


def test_a_kill_at_any_moment_loses_nothing(layout, tmp_path):
    finish(layout, commit="old")
    keep(layout)
    finish(layout, runs=["depth20", "depth40"], commit="new")
    start, old = tmp_path / "start", archived(layout)
    shutil.copytree(layout.results, start)
    commits = []
    for moment in itertools.count():
        shutil.rmtree(layout.results)
        shutil.copytree(start, layout.results)
        if not killed(lambda: keep(layout, runs=["depth20", "depth40"]), moment):
            break
        keep(layout, runs=["depth10"])  # whatever is recorded next tidies up
        runs = archived_runs("two_spirals", "depth", layout)
        commits.append([run.record.provenance.commit for run in runs])
        read_all(layout)
        assert sorted(path.name for path in runs[0].folder.parent.iterdir()) == NAMES
        assert commits[-1] != ["old"] * 4 or archived(layout) == old
    # All the old runs, and from some moment on all the new ones, never a mixture.
    first = commits.index(["old", "new", "new", "old"])
    assert commits[:first] == [["old"] * 4] * first
    assert commits[first:] == [["old", "new", "new", "old"]] * (moment - first)
    assert 10 < first < moment - 2


def test_a_full_disk_leaves_the_archive_as_it_was(layout, monkeypatch):
    finish(layout, commit="old")
    keep(layout)
    before = archived(layout)
    finish(layout, commit="new")

    def full(path, content):
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device", str(path))
        write_atomic(path, content)

    monkeypatch.setattr(archive, "write_atomic", full)
    with pytest.raises(OSError, match=r"No space left.*manifest.json"):
        keep(layout)
    assert archived(layout) == before
    read_all(layout)


PATHS = ["results/recorded/two_spirals/rate/all", "results/recorded", "link/x",
         "other/results/recorded/two_spirals/x", "kept/two_spirals/rate/all",
         "results/smoke/../recorded/x"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_nothing_else_writes_into_the_archive(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for folder in ("results/recorded", "results/smoke", "kept/two_spirals"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "link").symlink_to("results/recorded")
    (tmp_path / "kept/two_spirals/manifest.json").write_text("{}")
    for given in (Path(path), tmp_path / path):
        with pytest.raises(UserError, match="belongs to the archive"):
            refuse_archive(given)
    for allowed in ("results/smoke/two_spirals/rate/all", "recorded/x", "kept/other/rate"):
        refuse_archive(Path(allowed))


def test_the_archive_may_itself_be_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("elsewhere", "results"):
        (tmp_path / folder).mkdir()
    (tmp_path / "results/recorded").symlink_to(tmp_path / "elsewhere")
    for path in ("elsewhere/x", "results/recorded/x"):
        with pytest.raises(UserError, match="belongs to the archive"):
            refuse_archive(Path(path))


HOSTILE = {
    "experiment": lambda kept: {"../../../../precious": kept},
    "run": lambda kept: {"depth": {**kept, "runs": {"../../../precious": "seal"}}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_manifest_names_folders_of_its_own_only(layout, tmp_path, case):
    finish(layout)
    keep(layout)
    (tmp_path / "precious").mkdir()
    path = layout.manifest("two_spirals")
    kept = json.loads(path.read_text())["experiments"]["depth"]
    path.write_text(json.dumps({"experiments": HOSTILE[case](kept)}))
    with pytest.raises(UserError, match=r"manifest.json: .*precious"):
        keep(layout)
    assert (tmp_path / "precious").is_dir()


def test_a_record_names_files_beside_it_only(layout, tmp_path):
    finish(layout)
    path = layout.run(STUDY.experiment("depth", "paper").runs()["depth10"].key) / "record.json"
    content = json.loads(path.read_text())
    (tmp_path / "precious.csv").write_text("")
    content["files"] = {"../../../../../precious.csv": hash_bytes(b"")}
    body = {key: value for key, value in content.items() if key != "seal"}
    path.write_text(json.dumps({**body, "seal": digest(body)}))
    with pytest.raises(UserError, match=r"record.json: .*precious"):
        keep(layout)
    assert [p.name for p in tmp_path.iterdir() if "precious" in p.name] == ["precious.csv"]


def test_a_record_that_was_copied_alone_asks_for_the_rest(layout):
    finish(layout)
    key = STUDY.experiment("depth", "paper").runs()["depth80"].key
    for path in layout.run(key).glob("*.csv"):
        path.unlink()
    folder = f"paper/{key.study}/{key.experiment}/{key.run}"
    refuses(layout, rf"missing, though .* Copy the whole folder \S*{folder} from where .*trained")
    assert not layout.manifest("two_spirals").exists()


def test_measurements_that_unpack_to_gigabytes_are_not_read(layout, monkeypatch):
    finish(layout)
    keep(layout)
    run = archived_runs("two_spirals", "depth", layout)[0]
    monkeypatch.setattr(runs_module, "LARGEST_FILE", 2**20)
    (run.folder / "metrics.csv.xz").write_bytes(lzma.compress(bytes(2**24)))
    with pytest.raises(UserError, match=r"metrics.csv: not as"):
        run.content("metrics.csv")
    assert len(runs_module.unpack(lzma.compress(bytes(2**24)))) == 2**20


def test_the_manifest_is_plain_json(layout):
    finish(layout)
    keep(layout)
    content = json.loads(layout.manifest("two_spirals").read_text())
    kept = content["experiments"]["depth"]
    config = STUDY.experiment("depth", "paper").runs()["depth10"]
    assert kept["runs"]["depth10"] == read_run(layout.run(config.key), config).record.seal
