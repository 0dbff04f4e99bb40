"""Records are whole, sealed, and of the configuration that is asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from resnet_limits.errors import UserError
from resnet_limits.layout import RunKey
from resnet_limits.runs import (
    collect,
    difference,
    read_record,
    read_run,
    with_protocol,
    write_record,
)
from resnet_limits.spec import load_study

pytestmark = pytest.mark.filterwarnings("error")

CONFIG = load_study("two_spirals").run(RunKey("smoke", "two_spirals", "rate", "constant"))
METRICS = pd.DataFrame({"step": [0, 0], "seed": [0, 1], "loss": [0.1, 1 / 3], "word": ["a,b", "é"]})


def content():
    return {
        "config": CONFIG.to_json(),
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
            "engine": "torch",
        },
        "timing": {"started": "now", "seconds": 1.0, "resumed": 0, "peak_memory_mb": 1.0},
    }


@pytest.fixture
def folder(tmp_path):
    write_record(tmp_path, content(), {"metrics": METRICS})
    return tmp_path


def test_round_trip_keeps_every_digit(folder):
    run = read_run(folder, CONFIG)
    pd.testing.assert_frame_equal(run.measurements(), METRICS, check_exact=True)
    assert run.settings == CONFIG.to_json()["settings"]
    assert run.record.config.key == CONFIG.key
    assert run.record.digest == CONFIG.digest


def test_a_run_knows_what_it_measured(folder):
    run = read_run(folder, CONFIG)
    assert run.has("metrics")
    assert not run.has("gram")
    with pytest.raises(UserError, match=r"gram.csv: missing"):
        run.measurements("gram")
    marks = ["diverged", "dataset", "protocol"]
    assert collect([run], ["depth"], "gram").columns.tolist() == ["depth", *marks]


def test_diverged_members_are_marked_in_tables(folder):
    table = collect([read_run(folder, CONFIG)], ["field"])
    assert table["diverged"].tolist() == [False, True]
    assert table["field"].unique() == ["constant"]
    assert table["dataset"].unique() == ["toy"]
    assert table["protocol"].unique() == ["reduced"]  # the scale smoke shortens training


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_truncated_record(folder, keep):
    path = folder / "record.json"
    path.write_text(path.read_text()[:keep])
    with pytest.raises(UserError, match=r"record.json: not valid JSON.*--force"):
        read_record(path)


EDITS = {
    "divergence": lambda r: r["outcome"].update(diverged=[]),
    "setting": lambda r: r["config"]["settings"].update(learning_rate=0.1),
    "cost": lambda r: r["timing"].update(seconds=0.5),
    "sources": lambda r: r["provenance"].update(sources="t"),
    "hash": lambda r: r["files"].update({"metrics.csv": "0"}),
    "seal": lambda r: r.update(seal="0"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_hand_edited_record(folder, edit):
    path = folder / "record.json"
    content = json.loads(path.read_text())
    EDITS[edit](content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"record.json: was changed.*--force"):
        read_record(path)


def test_the_order_of_keys_is_no_edit(folder):
    path = folder / "record.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(content.items()))))
    assert read_record(path).digest == CONFIG.digest


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"config": {}}', "config: lacks the key 'scale'"),
        ("[]", "a mapping of keys"),
        ("null", "a mapping of keys"),
        ('{"a": 1, "a": 2}', "duplicate key 'a'"),
        ('{"a": NaN}', "NaN is not a finite number"),
    ],
)
def test_record_of_another_form(folder, text, words):
    path = folder / "record.json"
    path.write_text(text)
    with pytest.raises(UserError, match=rf"record.json: .*{words}.*--force") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_a_record_that_is_no_text(folder):
    path = folder / "record.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"record.json: not UTF-8 text.*--force"):
        read_record(path)


def test_record_of_another_configuration_names_run_and_difference(folder):
    settings = CONFIG.settings.model_copy(update={"learning_rate": 0.5})
    with pytest.raises(UserError, match=r"learning_rate is 0.01, the study asks for 0.5\. Restore"):
        read_run(folder, replace(CONFIG, settings=settings))
    assert difference(CONFIG.to_json(), CONFIG.to_json()) == ""


def test_a_setting_that_came_or_went_is_named():
    old, new = {"run": "a", "settings": {"x": 1}}, {"run": "b", "settings": {"y": 2}}
    assert difference(old, new) == (
        "run is a, the study asks for b; x is 1, the study asks for none; "
        "y is absent, the study asks for 2"
    )


@pytest.mark.parametrize("harm", ["change", "remove", "replace by a folder"])
def test_changed_or_missing_measurements(folder, harm):
    run, path = read_run(folder, CONFIG), folder / "metrics.csv"
    text = path.read_text()
    path.unlink()
    if harm == "change":
        path.write_text(text.replace("0.1", "0.2"))
    elif harm == "replace by a folder":
        path.mkdir()
    words = "missing, though .* Copy the whole folder" if harm == "remove" else "not as"
    with pytest.raises(UserError, match=rf"metrics.csv: {words} .*--force .*record.json"):
        run.measurements()


def test_missing_record(tmp_path):
    with pytest.raises(UserError, match=r"record.json: no such record\. Run Snakemake to train it"):
        read_record(tmp_path / "record.json")


def test_what_json_cannot_hold_leaves_no_record(tmp_path):
    broken = content()
    broken["timing"]["seconds"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_record(tmp_path, broken, {"metrics": METRICS})
    assert not (tmp_path / "record.json").exists()


def test_a_table_without_protocols_is_of_the_farthest_one(folder):
    runs = {"rate": [read_run(folder, CONFIG)], "depth": []}
    assert runs["rate"][0].protocol[0] == "reduced"
    lost = with_protocol(pd.DataFrame({"a": [1, 2]}), runs)
    assert lost["protocol"].tolist() == ["reduced"] * 2
    assert lost["departures"].str.contains("steps 30").all()
    kept = with_protocol(pd.DataFrame({"a": [1], "protocol": ["reduced"]}), runs)
    assert kept["departures"].tolist() == lost["departures"].tolist()[:1]
