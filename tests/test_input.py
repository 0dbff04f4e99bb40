"""Whatever a user or a broken disk hands in: one line that names it, and exit status 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from resnet_limits import cli, spec, studies
from resnet_limits.files import named, write_atomic
from resnet_limits.layout import Layout, RunKey
from resnet_limits.runs import write_record
from resnet_limits.spec import load_study
from tests.faults import killed

pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).parents[1]
STUDY = load_study("two_spirals")
CONFIG = STUDY.run(RunKey("smoke", "two_spirals", "depth", "depth10")).to_json()
METRICS = pd.DataFrame({"step": [0, 20], "seed": [0, 0], "n_train": [64, 64], "test_error": 0.5})


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    """Run in an empty folder, and forget what was read of studies that tests have changed."""
    monkeypatch.chdir(tmp_path)
    load_study.cache_clear()
    yield
    load_study.cache_clear()


def refused(capsys, arguments, words=()):
    """Run a command that must fail; return its one line."""
    capsys.readouterr()
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    for word in [words] if isinstance(words, str) else words:
        assert word in error, error
    return error


COMMANDS = {
    "no command": ([], "required"),
    "unknown command": (["trian"], "trian"),
    "unknown option": (["report", "two_spirals", "--scal", "x", "--nothing"], "--scal"),
    "unknown scale": (["claims", "two_spirals", "--scale", "papr"], "papr"),
    "unknown study": (["claims", "two_spirls"], "did you mean 'two_spirals'"),
    "unknown experiment": (["config", "two_spirals", "rat", "constant"], "did you mean 'rate'"),
    "unknown run": (["config", "two_spirals", "rate", "constnt"], "did you mean 'constant'"),
    "unknown table": (["table", "two_spirals", "finl"], "did you mean 'final'"),
    "unknown figure": (["plot", "two_spirals", "rat"], "did you mean 'rate'"),
    "no table": (["plot", "two_spirals", "rate"], "run Snakemake"),
    "no verdicts": (["report", "two_spirals"], "run Snakemake"),
    "nothing to record": (["record", "two_spirals"], "no run has finished"),
    "recording the archive": (["record", "two_spirals", "--scale", "recorded"], "recorded"),
    "recording an unknown run": (["record", "two_spirals", "rate", "x"], "'x'"),
    "no study": (["report"], "study"),
    "a line break": (["claims", "two\nspirals"], "two"),
    "an unknown data set": (["data", "cifar11"], "cifar11"),
    "two data sets, one stamp": (["data", "digits", "mnist", "--stamp", "s.json"], "stamp"),
    "a stamp in the archive": (["data", "digits", "--stamp", "results/recorded/x"], "archive"),
    "schema of nothing": (["schema", "two_spirals", "rat"], "did you mean 'rate'"),
    "a study of a bad name": (["new-study", "Bad Name"], "Bad Name"),
    "a new study elsewhere": (["new-study", "deep_linear"], "not the project's folder"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(capsys, case):
    refused(capsys, *COMMANDS[case])


SECONDS = ["nan", "inf", "-inf", "-1", "1e999", "NaN", "twenty", ""]


@pytest.mark.parametrize("seconds", SECONDS)
def test_seconds(capsys, seconds):
    arguments = ["train", "--config", "{}", "--output", "out", f"--checkpoint-seconds={seconds}"]
    refused(capsys, arguments, "--checkpoint-seconds")


def setting(name, value):
    """Return a run's configuration with one setting changed, as JSON."""
    return json.dumps({**CONFIG, "settings": {**CONFIG["settings"], name: value}})


def key(name, value):
    return json.dumps({**CONFIG, name: value})


def words(old, new):
    text = json.dumps(CONFIG)
    assert old in text
    return text.replace(old, new, 1)


HUGE = 10**12
CONFIGURATIONS = {
    "empty": ("{}", "lacks the key"),
    "cut": (json.dumps(CONFIG)[:-2], "not valid JSON"),
    "two documents": (json.dumps(CONFIG) + "{}", "not valid JSON"),
    "duplicate key": (words('"depth": 10', '"depth": 10, "depth": 20'), "duplicate key 'depth'"),
    "deep": ('{"settings": ' + "[" * 10**5 + "]" * 10**5 + "}", "not valid JSON"),
    "rather deep": ('{"settings": ' + "[" * 60 + "]" * 60 + "}", "levels deep"),
    "NaN": (words('"noise": 0.4', '"noise": NaN'), "NaN is not a finite number"),
    "Infinity": (words('"noise": 0.4', '"noise": Infinity'), "not a finite number"),
    "-Infinity": (words('"noise": 0.4', '"noise": -Infinity'), "not a finite number"),
    "1e999": (words('"noise": 0.4', '"noise": 1e999'), "1e999 is not a finite number"),
    "-1e999": (words('"noise": 0.4', '"noise": -1e999'), "not a finite number"),
    "digits": (words('"depth": 10', '"depth": ' + "9" * 5000), "not valid JSON"),
    "no settings": (key("settings", None), "settings"),
    "settings as a list": (key("settings", [1]), "settings"),
    "unknown key": (key("seetings", {}), "did you mean 'settings'"),
    "study as a number": (key("study", 3), "study"),
    "study elsewhere": (key("study", "../two_spirals"), "study"),
    "unknown scale": (key("scale", "papr"), "did you mean 'paper'"),
    "the archive's scale": (key("scale", "recorded"), "recorded"),
    "unknown setting": (setting("dept", 3), "did you mean 'depth'"),
    "zero depth": (setting("depth", 0), "depth"),
    "negative depth": (setting("depth", -1), "depth"),
    "depth in halves": (setting("depth", 1.5), "depth"),
    "depth as a float": (setting("depth", 10.0), "write 10"),
    "depth as text": (setting("depth", "10"), "depth"),
    "depth as truth": (setting("depth", True), "depth"),
    "depth as nothing": (setting("depth", None), "depth"),
    "depth as a list": (setting("depth", [10]), "depth"),
    "unknown field": (setting("field", "constnt"), "did you mean 'constant'"),
    "seed twice": (setting("seed", [0, 1, 0]), "given twice"),
    "seed twice, once a float": (setting("seed", [0, 0.0]), "seed"),
    "negative seed": (setting("seed", [-1]), "seed"),
    "no seed": (setting("seed", []), "seed"),
    "seeds in seeds": (setting("seed", [[0]]), "seed"),
    "size twice": (setting("n_train", [64, 64]), "given twice"),
    "no rate": (setting("learning_rate", 0), "learning_rate"),
    "rate as text": (setting("learning_rate", "1e-3"), "1.0e-3"),
    "huge rate": (setting("learning_rate", 10**400), "learning_rate"),
    "boundary of a size that is not trained": (setting("boundary_n", [3]), "leave it out"),
    "huge n_train": (setting("n_train", [HUGE]), ["n_train", "GB of memory"]),
    "huge n_test": (setting("n_test", HUGE), ["n_test", "GB of memory"]),
    "huge depth": (setting("depth", HUGE), ["depth", "GB of memory"]),
    "huge field": (setting("field_width", HUGE), ["field_width", "GB of memory"]),
    "huge head": (setting("head_width", HUGE), ["head_width", "GB of memory"]),
    "huge probes": (setting("probes", HUGE), ["probes", "GB of memory"]),
    "huge gram probes": (setting("gram_probes", HUGE), ["gram_probes", "GB of memory"]),
    "huge grid": (setting("boundary_grid", HUGE), ["boundary_grid", "GB of memory"]),
    "beyond 64 bits": (setting("depth", 10**30), ["depth", "too large"]),
    "steps beyond 64 bits": (setting("steps", 10**30), ["steps", "too large"]),
    "a seed beyond any float": (setting("seed", [0, 10**400]), ["seed", "too large"]),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configurations(capsys, tmp_path, case):
    text, wanted = CONFIGURATIONS[case]
    train = ["--output", tmp_path / "out"]
    refused(capsys, ["train", "--config", text, *train], wanted)
    (tmp_path / "run.json").write_text(text)
    assert "run.json" in refused(capsys, ["train", "--config", "run.json", *train], wanted) or (
        "GB of memory" in wanted
    )


def not_utf8(path):
    path.write_bytes(b'{"scale": "\xff"}')


def circular(path):
    path.symlink_to(path)


FILES = {
    "missing": (lambda _: None, "No such file"),
    "a folder": (Path.mkdir, "Is a directory"),
    "not UTF-8": (not_utf8, "not UTF-8"),
    "empty": (Path.touch, "not valid JSON"),
    "blank": (lambda path: path.write_text(" \n"), "not valid JSON"),
    "zeros": (lambda path: path.write_bytes(bytes(100)), "not valid JSON"),
    "a list": (lambda path: path.write_text("[1]"), "mapping"),
    "null": (lambda path: path.write_text("null"), "mapping"),
    "a number": (lambda path: path.write_text("1"), "mapping"),
    "a circle of links": (circular, "run.json"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_configurations(capsys, tmp_path, case):
    write, wanted = FILES[case]
    write(tmp_path / "run.json")
    line = refused(capsys, ["train", "--config", "run.json", "--output", "out"], wanted)
    assert "run.json" in line


OUTPUTS = {
    "the archive": "results/recorded/two_spirals/depth/depth10",
    "the archive, by a link": "link/two_spirals",
    "a file": "file",
    "in a file": "file/in/it",
}


@pytest.mark.parametrize("case", OUTPUTS)
def test_outputs(capsys, tmp_path, case):
    (tmp_path / "results/recorded").mkdir(parents=True)
    (tmp_path / "link").symlink_to("results/recorded")
    (tmp_path / "file").touch()
    arguments = ["train", "--config", json.dumps(CONFIG), "--output", OUTPUTS[case]]
    refused(capsys, arguments, OUTPUTS[case])
    assert not list((tmp_path / "results/recorded").iterdir())


def edited(file, old, new):
    """Change the first occurrence of some words in a file of the study."""

    def edit(folder):
        path = folder / file
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new, 1))

    return edit


def replaced(file, content):
    def edit(folder):
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return edit


def gone(file):
    return lambda folder: (folder / file).unlink()


def a_folder(file):
    def edit(folder):
        (folder / file).unlink()
        (folder / file).mkdir()

    return edit


RATE = "learning_rate: {value: 0.01"
STUDIES = {
    "empty": (replaced("study.yaml", ""), ["study.yaml", "mapping"]),
    "a list": (replaced("study.yaml", "- 1"), ["study.yaml", "mapping"]),
    "text": (replaced("study.yaml", "two spirals"), ["study.yaml", "mapping"]),
    "not UTF-8": (replaced("study.yaml", b"title: \xff"), ["study.yaml", "UTF-8"]),
    "zeros": (replaced("study.yaml", bytes(10)), ["study.yaml", "not valid YAML"]),
    "deep": (replaced("study.yaml", "[" * 10**4 + "]" * 10**4), ["study.yaml", "not valid YAML"]),
    "rather deep": (replaced("study.yaml", "[" * 60 + "]" * 60), ["study.yaml", "levels deep"]),
    "holds itself": (replaced("study.yaml", "title: &a [*a]"), ["study.yaml", "not valid YAML"]),
    "code": (replaced("study.yaml", "!!python/object/apply:os.getcwd []"), ["study.yaml"]),
    "a tab": (edited("study.yaml", "title:", "\ttitle:"), ["study.yaml", "line 1"]),
    "a folder": (a_folder("study.yaml"), ["study.yaml", "Is a directory"]),
    "duplicate key": (edited("study.yaml", "title:", "title: x\ntitle:"), ["duplicate key"]),
    "NaN": (edited("study.yaml", RATE, "learning_rate: {value: .nan"), [".nan", "line"]),
    "infinity": (edited("study.yaml", RATE, "learning_rate: {value: .inf"), "learning_rate"),
    "1e999": (edited("study.yaml", RATE, "learning_rate: {value: 1.0e+999"), ["line", "finite"]),
    "text for a number": (edited("study.yaml", RATE, "learning_rate: {value: 1e-3"), "1.0e-3"),
    "unknown source": (edited("study.yaml", "source: paper", "source: papr"), "'paper'"),
    "seed twice": (edited("study.yaml", "seed: [0, 1, 2]", "seed: [0, 1, 0]"), "keep one"),
    "unknown problem": (edited("study.yaml", "SpiralsProblem", "SpiralProblem"), "SpiralProblem"),
    "unknown table": (edited("study.yaml", "tables: [", "tables: [nothing, "), "nothing"),
    "no memory": (
        edited("study.yaml", "mem_mb: 1500", "mem_mb: 1"), ["study.yaml", "mem_mb", "raise it"]
    ),
    "a grid that never fits": (
        edited("study.yaml", "n_train: {grid: [", "n_train: {grid: [1000000000, "),
        ["study.yaml", "n_train", "mem_mb"],
    ),
    "claims: empty": (replaced("claims.yaml", ""), ["claims.yaml", "list"]),
    "claims: gone": (gone("claims.yaml"), ["claims.yaml", "no such file"]),
    "claims: NaN": (edited("claims.yaml", "below: -0.5", "below: .nan"), ["claims.yaml", "line"]),
    "claims: infinity": (edited("claims.yaml", "below: -0.5", "below: .inf"), ["below", "finite"]),
    "claims: -infinity": (edited("claims.yaml", "below: -0.5", "below: -.inf"), "finite"),
    "claims: 1e999": (edited("claims.yaml", "below: -0.5", "below: 1.0e+999"), "finite"),
    "claims: the wrong way": (
        edited("claims.yaml", "below: -0.5", "below: -0.5, above: 0"), "not less than below"
    ),
    "claims: no bound": (edited("claims.yaml", "below: -0.5, ", ""), "above or below"),
    "claims: unknown test": (edited("claims.yaml", "test: slope", "test: slop"), "did you mean"),
    "problems: syntax": (
        edited("problems.py", "class SpiralsProblem", "class SpiralsProblem("), "problems.py:"
    ),
    "problems: gone": (gone("problems.py"), "SpiralsProblem"),
    "problems: renamed": (edited("problems.py", "class SpiralsProblem", "class S"), "problems.py"),
    "problems: not UTF-8": (replaced("problems.py", b"x = '\xff'"), ["problems.py", "UTF-8"]),
    "problems: zeros": (replaced("problems.py", bytes(10)), "problems.py"),
    "problems: too deep": (replaced("problems.py", "(" * 5000), "problems.py"),
    "tables: no function": (edited("tables.py", "def final(", "def finl("), ["tables.py", "final"]),
    "plots: no function": (edited("plots.py", "def rate(", "def rat("), ["plots.py", "rate"]),
    "plots: indented": (edited("plots.py", "def rate(", "  def rate("), "plots.py:"),
}  # fmt: skip


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A study's files, which are read in place of the installed ones."""
    shutil.copytree(spec.STUDIES / "two_spirals", tmp_path / "studies" / "two_spirals")
    monkeypatch.setattr(spec, "STUDIES", tmp_path / "studies")
    return tmp_path / "studies" / "two_spirals"


@pytest.mark.parametrize("case", STUDIES)
def test_studies(capsys, copied, case):
    edit, wanted = STUDIES[case]
    edit(copied)
    refused(capsys, ["config", "two_spirals", "rate", "constant", "--scale", "smoke"], wanted)


MODULES = {
    "an import": ("import nothing_of_this_name", ["problems.py:1", "ModuleNotFoundError"]),
    "an error": ("x = 1\ny = x / 0", ["problems.py:2", "ZeroDivisionError"]),
    "an error of lines": ("raise ValueError('a\\nb')", ["problems.py:1", "ValueError"]),
}


@pytest.mark.parametrize("case", MODULES)
def test_modules_that_cannot_be_imported(capsys, tmp_path, monkeypatch, case):
    code, wanted = MODULES[case]
    name = f"broken{sorted(MODULES).index(case)}"
    folder = tmp_path / "studies" / name
    shutil.copytree(spec.STUDIES / "two_spirals", folder)
    monkeypatch.setattr(spec, "STUDIES", tmp_path / "studies")
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path / "studies")])
    monkeypatch.setattr(spec, "training_digest", lambda _: "")
    path = folder / "problems.py"
    path.write_text(f"{code}\n\n\nclass SpiralsProblem: ...\n")
    text = json.dumps({**CONFIG, "study": name})
    refused(capsys, ["train", "--config", text, "--output", "out"], wanted)


@pytest.fixture
def results(tmp_path):
    """Records of finished runs, their table and the study's verdicts."""
    layout = Layout(tmp_path / "results", tmp_path / "figures")
    for config in STUDY.runs("smoke", "depth"):
        record = {
            "config": config.to_json(),
            "outcome": {"state": "finished", "steps": 20, "members": 3, "diverged": []},
            "data": {"name": "two_spirals", "hash": "0"},
            "provenance": {
                "commit": "c", "sources": STUDY.sources("depth"), "versions": {}, "device": "cpu",
                "threads": 1, "engine": "torch",
            },
            "timing": {"started": "", "seconds": 1.0, "resumed": 0, "peak_memory_mb": 1.0},
        }  # fmt: skip
        write_record(layout.run(config.key), record, {"metrics": METRICS})
    for table in STUDY.tables:
        assert cli.main(["table", "two_spirals", table, "--scale", "smoke"]) == 0
    assert cli.main(["claims", "two_spirals", "--scale", "smoke"]) == 0
    assert cli.main(["record", "two_spirals", "--scale", "smoke"]) == 0
    return tmp_path / "results"


RUN = "smoke/two_spirals/depth/depth10"
KEPT = "recorded/two_spirals/depth/depth10"
MANIFEST = "recorded/two_spirals/manifest.json"
VERDICTS = "smoke/two_spirals/claims.json"
TABLE = ["table", "two_spirals", "depths", "--scale", "smoke"]
RECORDED = ["table", "two_spirals", "depths", "--scale", "recorded"]
REPORT = ["report", "two_spirals", "--scale", "smoke"]
PLOT = ["plot", "two_spirals", "depth", "--scale", "smoke"]
RECORD = ["record", "two_spirals", "--scale", "smoke"]


def cut(file):
    def edit(folder):
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) * 2 // 3])

    return edit


RESULTS = {
    "record: empty": (replaced(f"{RUN}/record.json", ""), TABLE, "--force"),
    "record: cut": (cut(f"{RUN}/record.json"), TABLE, "--force"),
    "record: null": (replaced(f"{RUN}/record.json", "null"), TABLE, "--force"),
    "record: a list": (replaced(f"{RUN}/record.json", "[]"), TABLE, "--force"),
    "record: not UTF-8": (replaced(f"{RUN}/record.json", b"\xff"), TABLE, "UTF-8"),
    "record: zeros": (replaced(f"{RUN}/record.json", bytes(100)), TABLE, "--force"),
    "record: deep": (replaced(f"{RUN}/record.json", "[" * 10**5), TABLE, "--force"),
    "record: a folder": (a_folder(f"{RUN}/record.json"), TABLE, "--force"),
    "record: NaN": (edited(f"{RUN}/record.json", '"seconds": 1.0', '"seconds": NaN'), TABLE, "NaN"),
    "record: twice": (edited(f"{RUN}/record.json", '"steps"', '"steps": 1, "steps"'), TABLE, "dup"),
    "record: edited": (edited(f"{RUN}/record.json", '"members": 3', '"members": 2'), TABLE, "chan"),
    "measurements: cut": (cut(f"{RUN}/metrics.csv"), TABLE, "metrics.csv"),
    "measurements: gone": (gone(f"{RUN}/metrics.csv"), TABLE, "metrics.csv"),
    "measurements: a folder": (a_folder(f"{RUN}/metrics.csv"), TABLE, "metrics.csv"),
    "measurements: kept": (cut(f"{RUN}/metrics.csv"), RECORD, "metrics.csv"),
    "kept record: cut": (cut(f"{KEPT}/record.json"), RECORDED, "git checkout"),
    "kept record: gone": (gone(f"{KEPT}/record.json"), RECORDED, "git checkout"),
    "kept measurements: cut": (cut(f"{KEPT}/metrics.csv.xz"), RECORDED, "git checkout"),
    "kept measurements: gone": (gone(f"{KEPT}/metrics.csv.xz"), RECORDED, "git checkout"),
    "kept measurements: zeros": (replaced(f"{KEPT}/metrics.csv.xz", bytes(99)), RECORDED, "git"),
    "manifest: empty": (replaced(MANIFEST, ""), RECORDED, "git checkout"),
    "manifest: cut": (cut(MANIFEST), RECORDED, "git checkout"),
    "manifest: null": (replaced(MANIFEST, "null"), RECORDED, "git checkout"),
    "manifest: a folder": (a_folder(MANIFEST), RECORDED, "manifest.json"),
    "manifest: not UTF-8": (replaced(MANIFEST, b"\xff"), RECORDED, "UTF-8"),
    "manifest: to be added to": (cut(MANIFEST), RECORD, "git checkout"),
    "manifest: of elsewhere": (edited(MANIFEST, '"depth10"', '"../x"'), RECORDED, "../x"),
    "manifest: unknown run": (edited(MANIFEST, '"depth10"', '"depth11"'), RECORDED, "depth11"),
    "verdicts: empty": (replaced(VERDICTS, ""), REPORT, "claims.json"),
    "verdicts: cut": (cut(VERDICTS), REPORT, "claims.json"),
    "verdicts: null": (replaced(VERDICTS, "null"), REPORT, "claims.json"),
    "verdicts: words": (replaced(VERDICTS, '["a"]'), REPORT, "claims.json"),
    "verdicts: of another form": (replaced(VERDICTS, '[{"id": "rate"}]'), REPORT, "claims.json"),
    "verdicts: not UTF-8": (replaced(VERDICTS, b"\xff"), REPORT, "claims.json"),
    "verdicts: gone": (gone(VERDICTS), REPORT, "claims.json"),
    "verdicts: a folder": (a_folder(VERDICTS), REPORT, "claims.json"),
    "table: cut": (cut("smoke/two_spirals/tables/depths.csv"), PLOT, "changed"),
    "table: gone": (gone("smoke/two_spirals/tables/depths.csv"), PLOT, "missing"),
    "table: no digest": (gone("smoke/two_spirals/tables/depths.csv.sha256"), PLOT, "missing"),
    "table: a folder": (a_folder("smoke/two_spirals/tables/depths.csv"), PLOT, "depths.csv"),
    "table: digest not UTF-8": (
        replaced("smoke/two_spirals/tables/depths.csv.sha256", b"\xff"), PLOT, "depths.csv"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RESULTS)
def test_results(capsys, results, case):
    edit, command, wanted = RESULTS[case]
    edit(results)
    assert "results" in refused(capsys, command, wanted)


LINE = {"step": 3, "steps": 20, "seconds": 1.5, "pid": 1, "median": {"loss": 0.5}}
BROKEN_LINES = {
    "half a line": json.dumps(LINE).encode()[:20],
    "nothing": b"",
    "zeros": bytes(100),
    "not UTF-8": b"\xff\xfe",
    "a list": b"[]",
    "null": b"null",
    "deep": b"[" * 10**5,
    "no keys": b"{}",
    "no steps": json.dumps({**LINE, "steps": 0}).encode(),
    "words for numbers": json.dumps({**LINE, "step": "three"}).encode(),
    "NaN": json.dumps({**LINE, "seconds": float("nan")}).encode(),
}


@pytest.mark.parametrize("case", BROKEN_LINES)
@pytest.mark.parametrize("before", [b"", json.dumps(LINE).encode() + b"\n"], ids=["alone", "last"])
def test_progress_passes_over_broken_lines(capsys, tmp_path, case, before):
    folder = tmp_path / RUN.replace("smoke", "results/smoke", 1)
    folder.mkdir(parents=True)
    (folder / "progress.jsonl").write_bytes(before + BROKEN_LINES[case])
    assert cli.main(["progress"]) == 0
    said = capsys.readouterr().out
    assert ("step 3/20" in said) == bool(before)


def test_progress_of_a_folder_and_of_a_diverged_run(capsys, tmp_path):
    folder = tmp_path / "results/smoke/a/b"
    (folder / "one" / "progress.jsonl").mkdir(parents=True)
    (folder / "two").mkdir()
    (folder / "two" / "progress.jsonl").write_text(json.dumps({**LINE, "median": {"loss": "inf"}}))
    assert cli.main(["progress"]) == 0
    assert "loss inf" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named():
    command = [sys.executable, "-m", "resnet_limits.cli", "config", "two_spirals", "rate", "frozen"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "resnet-limits config: output: No space left on device\n"


def test_a_write_removes_what_dead_processes_left_of_it(tmp_path):
    def dead():
        write_atomic(tmp_path / "a.csv", "new")

    assert killed(dead, 1)
    (left,) = tmp_path.iterdir()
    ours, other = tmp_path / f".a.csv.{os.getppid()}", tmp_path / f".b.csv{left.suffix}"
    for path in (ours, other):
        path.write_text("of a living process, and of another file")
    write_atomic(tmp_path / "a.csv", "new")
    assert set(tmp_path.iterdir()) == {tmp_path / "a.csv", ours, other}


def test_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="No space left") as caught, named(Path("progress.jsonl")):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == "progress.jsonl"


CONFIG_FILES = {
    "empty": (b"", "mapping"),
    "a list": (b"- 1", "mapping"),
    "not UTF-8": (b"scale: \xff", "UTF-8"),
    "half a list": (b"studies: [", "not valid YAML"),
    "duplicate key": (b"scale: smoke\nscale: quick", "duplicate key 'scale'"),
    "NaN": (b"scale: .nan", ".nan is not a finite number"),
    "gone": (None, "no such file"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIG_FILES)
def test_files_of_the_workflow(tmp_path, case):
    content, wanted = CONFIG_FILES[case]
    for name in ("workflow", "profiles", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    path = tmp_path / "workflow/config.yaml"
    path.write_bytes(content or b"")
    if content is None:
        path.unlink()
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "-n"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("Error: workflow/config.yaml: ")
    assert wanted in said[0]


def test_there_are_at_least_a_hundred_cases():
    tables = (COMMANDS, SECONDS, CONFIGURATIONS, FILES, OUTPUTS, STUDIES, MODULES, RESULTS)
    assert sum(map(len, tables)) >= 100
