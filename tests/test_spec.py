"""Studies are read strictly, and what they ask for is resolved."""

import shutil

import pytest
import yaml
from resnet_limits.document import with_generated_part
from resnet_limits.schemas import read_yaml, schema

from resnet_limits.errors import UserError
from resnet_limits.spec import STUDIES, TRAINED_SCALES, Study, load_study, run_id, study_names


@pytest.fixture
def edited(tmp_path):
    """Return a function that copies two_spirals, changes its study.yaml and reads it."""

    def edit(change):
        folder = tmp_path / "two_spirals"
        shutil.copytree(STUDIES / "two_spirals", folder)
        document = yaml.safe_load((folder / "study.yaml").read_text())
        change(document)
        (folder / "study.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
        return Study("two_spirals", folder)

    return edit


def setting(document, name):
    return document["experiments"]["rate"]["settings"][name]


CASES = {
    "unknown key": (
        lambda d: d.update(experimets={}),
        ["experimets", "unknown key", "experiments"],
    ),
    "unknown key deep": (
        lambda d: setting(d, "steps").update(sourse="paper"),
        ["experiments.rate.settings.steps.sourse", "source"],
    ),
    "unknown setting": (
        lambda d: d["experiments"]["rate"]["settings"].update(
            learning_rte={"value": 1, "source": "paper"}
        ),
        ["learning_rte", "learning_rate"],
    ),
    "missing setting": (
        lambda d: d["experiments"]["rate"]["settings"].pop("noise"),
        ["noise", "add it"],
    ),
    "wrong type": (
        lambda d: setting(d, "steps").update(value="many"),
        ["rate.settings.steps", "integer"],
    ),
    "number as text": (
        lambda d: setting(d, "learning_rate").update(value="1e-3"),
        ["learning_rate", "write 0.001", "write 0.001"],
    ),
    "negative rate": (
        lambda d: setting(d, "learning_rate").update(value=-0.1),
        ["learning_rate", "-0.1", "minimum"],
    ),
    "empty grid": (lambda d: setting(d, "seed").update(grid=[]), ["seed", "at least one"]),
    "grid in an override": (
        lambda d: d["scales"]["smoke"]["rate"].update(seed=3),
        ["scales.smoke.rate.seed", "list"],
    ),
    "empty override": (
        lambda d: d["scales"]["smoke"]["rate"].update(seed=[]),
        ["seed", "at least one"],
    ),
    "typo in an override": (
        lambda d: d["scales"]["smoke"]["rate"].update(setps=3),
        ["scales.smoke.rate", "setps", "steps"],
    ),
    "override of paper": (lambda d: d["scales"].update(paper={}), ["scales.paper", "unknown key"]),
    "unknown source": (
        lambda d: setting(d, "steps").update(source="hearsay"),
        ["hearsay", "assumed"],
    ),
    "no value": (lambda d: setting(d, "steps").pop("value"), ["rate.settings.steps", "value"]),
    "value twice": (lambda d: setting(d, "seed").update(grid=[0, 0, 1]), ["seed", "non-unique"]),
    "value twice in an override": (
        lambda d: d["scales"]["smoke"]["rate"].update(seed=[0, 0]),
        ["scales.smoke.rate.seed", "stands twice"],
    ),
    "unknown batch axis": (
        lambda d: d["experiments"]["rate"].update(batch=["seeds"]),
        ["seeds", "seed"],
    ),
    "unknown table": (lambda d: d["figures"]["rate"].update(tables=["finl"]), ["finl", "final"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named_with_file_key_and_remedy(edited, case):
    change, words = CASES[case]
    with pytest.raises(UserError) as caught:
        edited(change)
    for word in ["study.yaml", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {x: 1}\nmerged:\n  <<: *base\n  x: 2\n")
    assert read_yaml(path)["merged"] == {"x": 2}
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(UserError, match=r"'a' stands twice.*line 3"):
        read_yaml(path)


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'two_spirals'"):
        load_study("two_spirls")
    with pytest.raises(UserError, match="did you mean 'rate'"):
        load_study("two_spirals").experiment("rat", "quick")


def test_grid_axes_make_runs_and_batched_axes_do_not():
    runs = load_study("two_spirals").experiment("depth", "paper").runs()
    assert list(runs) == ["depth10", "depth20", "depth40", "depth80"]
    settings = runs["depth20"]["settings"]
    assert settings["depth"] == 20
    assert len(settings["seed"]) == 20


def test_run_ids_are_readable():
    assert run_id({"activation": "gelu", "depth": 64, "seed": 0}) == "gelu_depth64_seed0"
    assert run_id({}) == "all"


def test_paper_scale_is_the_protocol_and_others_override_it():
    study = load_study("two_spirals")
    assert study.experiment("rate", "paper").settings["steps"] == 1000
    assert study.experiment("rate", "smoke").settings["steps"] < 1000
    for key, value in study.experiments["rate"]["settings"].items():
        wanted = value.get("grid", value.get("value"))
        assert study.experiment("rate", "paper").settings[key] == wanted


@pytest.mark.parametrize("name", study_names())
def test_every_study_is_whole(name):
    study = load_study(name)
    assert study.claims
    for scale in TRAINED_SCALES:
        runs = list(study.runs(scale))
        assert len({(run["experiment"], run["run"]) for run in runs}) == len(runs)
        for run in runs:
            study.check_config(run, "a run")


@pytest.mark.parametrize("name", study_names())
def test_readme_shows_the_settings_as_they_are(name):
    study = load_study(name)
    text = (study.folder / "README.md").read_text()
    assert with_generated_part(text, study) == text, f"run `resnet-limits document {name}`"


def test_a_configuration_by_hand_is_checked_like_the_study():
    study = load_study("two_spirals")
    config = study.run("smoke", "rate", "constant")
    for change, word in (({"steps": -1}, "steps"), ({"stepz": 1}, "stepz"), ({"seed": []}, "seed")):
        broken = config | {"settings": config["settings"] | change}
        with pytest.raises(UserError, match=word):
            study.check_config(broken, "--config")


def test_a_scale_can_leave_an_experiment_out(edited):
    study = edited(lambda d: d["scales"]["smoke"].update(depth="not run"))
    assert study.experiment("depth", "smoke").runs() == {}
    assert study.experiment("depth", "paper").runs()
    assert study.experiment("rate", "smoke").runs()


def test_only_not_run_leaves_an_experiment_out(edited):
    with pytest.raises(UserError, match=r"scales.smoke.depth.*not run"):
        edited(lambda d: d["scales"]["smoke"].update(depth="no"))


def test_a_problem_can_be_in_any_module_of_the_study():
    study = load_study("weight_smoothness")
    assert study.builder("large_depth") == ("experiments", "large_depth")
    assert study.builder("cifar") == ("images", "cifar")


def test_included_settings_are_those_of_the_shared_schema():
    shared, study = schema("classification"), load_study("sorted_tau")
    rules = study.problem_schema("resnet20")
    assert {key: rules[key] for key in shared} == shared
    assert set(rules) - set(shared) == {"network", "method"}
    assert "include" in yaml.safe_load((study.folder / "schema.yaml").read_text())["resnet"]
