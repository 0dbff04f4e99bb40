"""Records are whole, sealed, and of the configuration that is asked for."""

import json

import pandas as pd
import pytest
from resnet_limits.record import (
    collect,
    difference,
    hash_closure,
    read_record,
    read_run,
    write_record,
)

from resnet_limits import record
from resnet_limits.errors import UserError
from resnet_limits.spec import load_study

CONFIG = load_study("two_spirals").run("smoke", "rate", "constant")
METRICS = pd.DataFrame({"step": [0, 0], "seed": [0, 1], "loss": [0.1, 1 / 3]})


@pytest.fixture
def folder(tmp_path):
    content = {
        "config": CONFIG,
        "outcome": {
            "state": "finished",
            "steps": 3,
            "members": 2,
            "diverged": [{"seed": 1, "step": 2}],
        },
        "data": {"name": "toy", "hash": "0"},
        "provenance": {
            "commit": "c",
            "sources": "s",
            "versions": {},
            "device": "cpu",
            "threads": 1,
        },
        "timing": {"started": "now", "seconds": 1.0, "resumed": 0, "peak_memory_mb": 1.0},
    }
    write_record(tmp_path, content, {"metrics": METRICS})
    return tmp_path


def test_round_trip_keeps_every_digit(folder):
    run = read_run(folder, CONFIG)
    pd.testing.assert_frame_equal(run.measurements(), METRICS, check_exact=True)
    assert run.settings == CONFIG["settings"]


def test_diverged_members_are_marked_in_tables(folder):
    table = collect([read_run(folder, CONFIG)], ["field"])
    assert table["diverged"].tolist() == [False, True]
    assert table["field"].unique() == ["constant"]
    assert table["dataset"].unique() == ["toy"]


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_truncated_record(folder, keep):
    path = folder / "record.json"
    path.write_text(path.read_text()[:keep])
    with pytest.raises(UserError, match=r"record.json: not a whole record.*--force"):
        read_record(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda r: r["outcome"].update(diverged=[]),
        lambda r: r["config"]["settings"].update(learning_rate=0.1),
        lambda r: r["timing"].update(seconds=0.5),
    ],
)
def test_hand_edited_record(folder, edit):
    path = folder / "record.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"record.json: was changed.*--force"):
        read_record(path)


def test_record_of_another_form(folder):
    path = folder / "record.json"
    path.write_text('{"config": {}}')
    with pytest.raises(UserError, match=r"record.json: .*lacks.*--force"):
        read_record(path)


def test_record_of_another_configuration_names_run_and_difference(folder):
    wanted = CONFIG | {"settings": CONFIG["settings"] | {"learning_rate": 0.5}}
    with pytest.raises(UserError, match=r"learning_rate is 0.01, the study asks for 0.5"):
        read_run(folder, wanted)
    assert difference(CONFIG, CONFIG) == ""


def test_changed_or_missing_measurements(folder):
    run = read_run(folder, CONFIG)
    path = folder / "metrics.csv"
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(UserError, match=r"metrics.csv: .*record.json"):
        run.measurements()
    path.unlink()
    with pytest.raises(UserError, match=r"metrics.csv: .*record.json"):
        run.measurements()


def test_missing_record(tmp_path):
    with pytest.raises(UserError, match="run Snakemake"):
        read_record(tmp_path / "record.json")


SOURCES = {
    "train.py": "import json",
    "style.py": "",
    "models/used.py": "from resnet_limits.models import inner",
    "models/inner.py": "",
    "models/unused.py": "",
    "studies/s/experiments.py": "import resnet_limits.style\nimport resnet_limits.models.used",
    "studies/s/plots.py": "",
}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("train.py", True),
        ("studies/s/experiments.py", True),
        ("models/used.py", True),
        ("models/inner.py", True),
        ("models/unused.py", False),
        ("studies/s/plots.py", False),
        ("style.py", False),
    ],
)
def test_source_hash_covers_what_trains_and_not_what_draws(monkeypatch, tmp_path, name, counts):
    for path, content in SOURCES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.setattr(record, "PACKAGE", tmp_path)
    modules = [tmp_path / "train.py", tmp_path / "studies/s/experiments.py"]
    before = hash_closure(modules)
    (tmp_path / name).write_text(SOURCES[name] + "\n# changed")
    assert (hash_closure(modules) != before) == counts
