"""Studies are read strictly, and what they ask for is resolved."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from resnet_limits.documents import read_yaml
from resnet_limits.errors import UserError
from resnet_limits.layout import RunKey
from resnet_limits.settings import build
from resnet_limits.settings_table import with_generated_part
from resnet_limits.spec import STUDIES, Study, load_study, run_id, study_names
from resnet_limits.stats import TESTS, parameters
from resnet_limits.study_files import ARGUMENTS, TRAINED_SCALES, Configuration

pytestmark = pytest.mark.filterwarnings("error")

SMOKE = RunKey("smoke", "two_spirals", "rate", "constant")


@pytest.fixture
def edited(tmp_path):
    """Return a function that copies two_spirals, changes one of its files and reads it."""

    def edit(change, name="study.yaml"):
        folder = tmp_path / "two_spirals"
        shutil.copytree(STUDIES / "two_spirals", folder)
        document = yaml.safe_load((folder / name).read_text())
        change(document)
        (folder / name).write_text(yaml.safe_dump(document, sort_keys=False))
        return Study("two_spirals", folder)

    return edit


def setting(document, name):
    return document["experiments"]["rate"]["settings"][name]


CASES = {
    "unknown key": (
        lambda d: d.update(experimets={}),
        ["experimets", "unknown key", "experiments"],
    ),
    "missing key": (lambda d: d.pop("tables"), ["lacks the key 'tables'; add it"]),
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
        ["rate at scale paper", "steps", "a whole number"],
    ),
    "number as text": (
        lambda d: setting(d, "learning_rate").update(value="1e-3"),
        ["learning_rate", "write 0.001"],
    ),
    "negative rate": (
        lambda d: setting(d, "learning_rate").update(value=-0.1),
        ["learning_rate", "-0.1", "above 0"],
    ),
    "empty grid": (lambda d: setting(d, "seed").update(grid=[]), ["seed", "at least one"]),
    "grid of one value": (lambda d: setting(d, "seed").update(grid=3), ["seed.grid", "a list"]),
    "grid in an override": (
        lambda d: d["scales"]["smoke"]["rate"].update(seed=3),
        ["scales.smoke.rate.seed", "list"],
    ),
    "empty override": (
        lambda d: d["scales"]["smoke"]["rate"].update(seed=[]),
        ["seed", "at least one"],
    ),
    "wrong override": (
        lambda d: d["scales"]["smoke"]["rate"].update(steps=-1),
        ["rate at scale smoke", "steps: -1", "above 0"],
    ),
    "settings that do not fit each other": (
        lambda d: d["scales"]["smoke"]["rate"].update(n_train=[32, 64]),
        ["rate at scale smoke", "boundary_n: 128 is not among n_train", "leave it out"],
    ),
    "typo in an override": (
        lambda d: d["scales"]["smoke"]["rate"].update(setps=3),
        ["scales.smoke.rate", "setps", "steps"],
    ),
    "override of no experiment": (
        lambda d: d["scales"]["smoke"].update(rat={}),
        ["scales.smoke", "'rat'", "did you mean 'rate'"],
    ),
    "override of paper": (
        lambda d: d["scales"].update(paper={}),
        ["scales.paper", '"paper"', "smoke"],
    ),
    "unknown scale": (
        lambda d: d["scales"].update(smok={}),
        ["scales.smok", "did you mean 'smoke'"],
    ),
    "unknown source": (
        lambda d: setting(d, "steps").update(source="hearsay"),
        ["steps.source", "hearsay", "assumed"],
    ),
    "no value": (lambda d: setting(d, "steps").pop("value"), ["rate.settings.steps", "value"]),
    "value and grid": (
        lambda d: setting(d, "steps").update(grid=[1]),
        ["rate.settings.steps", "exactly one of the keys value, grid"],
    ),
    "value twice": (
        lambda d: setting(d, "seed").update(grid=[0, 0, 1]),
        ["experiments.rate.settings.seed", "duplicate value 0; keep one"],
    ),
    "value twice in an override": (
        lambda d: d["scales"]["smoke"]["rate"].update(seed=[0, 0]),
        ["scales.smoke.rate.seed", "duplicate value 0; keep one"],
    ),
    "unknown table": (lambda d: d["figures"]["rate"].update(tables=["finl"]), ["finl", "final"]),
    "unknown headline": (lambda d: d.update(headline_figure="rat"), ["headline_figure", "'rate'"]),
    "no story": (lambda d: d.pop("story"), ["story"]),
    "figure of no tables": (
        lambda d: d["figures"]["rate"].update(tables=[]),
        ["figures.rate.tables", "at least one"],
    ),
    "unknown experiment": (
        lambda d: d["tables"]["final"].update(experiments=["rat"]),
        ["tables.final", "'rat'", "did you mean 'rate'"],
    ),
    "table without a function": (
        lambda d: d["tables"].update(finals=d["tables"]["final"]),
        ["tables.py", "'finals'", "write it"],
    ),
    "figure without a function": (
        lambda d: d["figures"].update(rates=d["figures"]["rate"]),
        ["plots.py", "'rates'", "write it"],
    ),
    "problem without a class": (
        lambda d: d["experiments"]["rate"].update(problem="SpiralProblem"),
        ["problems.py", "'SpiralProblem'"],
    ),
    "problem of another name": (
        lambda d: d["experiments"]["rate"].update(problem="Spirals"),
        ["rate.problem", '"Spirals"', "give a word of the form"],
    ),
    "name with a capital": (
        lambda d: d["tables"].update(Final=d["tables"]["final"]),
        ["Final"],
    ),
    "reserved name": (
        lambda d: d["experiments"].update(tables=d["experiments"]["rate"]),
        ["cannot be called tables", "rename it"],
    ),
    "no threads": (
        lambda d: d["experiments"]["rate"]["resources"].update(threads=0),
        ["rate.resources.threads: 0", "at least 1"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named_with_file_key_and_remedy(edited, case):
    change, words = CASES[case]
    assert_named(lambda: edited(change), ["two_spirals/", *words])


def assert_named(read, words):
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert "Input should" not in message  # pydantic's own words


CLAIMS = {
    "unknown key": (lambda c: c.update(tabel="final"), ["tabel", "did you mean 'table'"]),
    "missing key": (lambda c: c.pop("bound"), ["lacks the key 'bound'"]),
    "unknown table": (lambda c: c.update(table="finl"), ["'finl'", "did you mean 'final'"]),
    "unknown figure": (lambda c: c.update(figure="rat"), ["'rat'", "did you mean 'rate'"]),
    "unknown test": (lambda c: c.update(test="slop"), ["'slop'", "did you mean 'slope'"]),
    "unknown argument": (
        lambda c: c.update(test="mean", arguments={"vlaue": "x"}),
        ["'vlaue'", "did you mean 'value'"],
    ),
    "unknown kind": (lambda c: c.update(kind="chek"), ["chek", "did you mean 'check'"]),
    "empty bound": (lambda c: c.update(bound={}), ["bound", "needs the key above or below"]),
    "bound reversed": (
        lambda c: c.update(bound={"above": 2, "below": 1}),
        ["bound", "above 2 is not less than below 1"],
    ),
    "bound of nobody": (
        lambda c: c.update(bound={"above": 1, "source": "mine"}),
        ["bound.source", "mine"],
    ),
    "exact with an interval": (
        lambda c: c.update(exact=True),
        ["exact", "the test value"],
    ),
    "replicates of a regression": (
        lambda c: c.update(replicate="seed"),
        ["replicate", "is for equivalence, mean"],
    ),
    "slopes of no replicate": (
        lambda c: c.update(test="slope", arguments={"x": "n", "y": "e", "per": "replicate"}),
        ["replicate", "both or neither"],
    ),
    "no published runs": (
        lambda c: c.update(test="equivalence", arguments={"value": "test_error"}),
        ["reference", "needs one"],
    ),
    "effect of nobody": (lambda c: c.update(effect=-1.0), ["effect_source", "is missing"]),
    "effect outside the bound": (
        lambda c: c.update(effect=1.0, effect_source="Table 1"),
        ["effect", "within the bound"],
    ),
    "unknown file of published runs": (
        lambda c: c.update(
            test="equivalence",
            arguments={"value": "test_error"},
            reference={"file": "no.csv", "select": {}, "mean": "m", "sd": "s", "n": "n"},
        ),
        ["reference.file: no.csv", "put it there"],
    ),
    "bound as text": (lambda c: c.update(bound={"above": "1e-3"}), ["bound.above", "write 0.001"]),
    "no observations": (lambda c: c.update(least_n=0), ["least_n: 0", "at least 1"]),
}


@pytest.mark.parametrize("case", CLAIMS)
def test_a_mistake_in_a_claim_is_named(edited, case):
    change, words = CLAIMS[case]
    words = ["two_spirals/claims.yaml: ", load_study("two_spirals").claims[2].id, *words]
    assert_named(lambda: edited(lambda claims: change(claims[2]), "claims.yaml"), words)


def test_claims_have_ids_of_their_own(edited):
    words = ["claims.yaml", "duplicate id", "rename one"]
    assert_named(lambda: edited(lambda c: c.append(c[0]), "claims.yaml"), words)


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\t", "a: 1\na: 2\n", "[" * 5000])
def test_what_is_no_study_is_named(tmp_path, text):
    folder = tmp_path / "two_spirals"
    shutil.copytree(STUDIES / "two_spirals", folder)
    (folder / "study.yaml").write_text(text)
    assert_named(lambda: Study("two_spirals", folder), [f"{folder / 'study.yaml'}: "])


def test_the_arguments_of_every_test_are_known():
    found = {name: parameters(name) for name in TESTS}
    assert found == ARGUMENTS


def test_a_duplicate_key_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &base {x: 1}\nmerged:\n  <<: *base\n  x: 2\n")
    assert read_yaml(path)["merged"] == {"x": 2}
    path.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(UserError, match=r"a.yaml: .*duplicate key 'a'; keep one.*line 3"):
        read_yaml(path)


def test_unknown_names_come_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'two_spirals'"):
        load_study("two_spirls")
    with pytest.raises(UserError, match="did you mean 'rate'"):
        load_study("two_spirals").experiment("rat", "quick")


def test_grid_axes_make_runs_and_batched_axes_do_not():
    runs = load_study("two_spirals").experiment("depth", "paper").runs()
    assert list(runs) == ["depth10", "depth20", "depth40", "depth80"]
    settings = runs["depth20"].settings
    assert settings.depth == 20
    assert len(settings.seed) == 20


def test_run_ids_are_readable():
    assert run_id({"activation": "gelu", "depth": 64, "seed": 0}) == "gelu_depth64_seed0"
    assert run_id({}) == "all"


def test_paper_scale_is_the_protocol_and_others_override_it():
    study = load_study("two_spirals")
    assert study.experiment("rate", "paper").settings["steps"] == 1000
    assert study.experiment("rate", "smoke").settings["steps"] < 1000
    for key, source in study.experiments["rate"].settings.items():
        assert study.experiment("rate", "paper").settings[key] == source.content


@pytest.mark.parametrize("name", study_names())
def test_every_study_is_whole(name):
    study = load_study(name)
    assert study.claims
    for scale in TRAINED_SCALES:
        runs = list(study.runs(scale))
        assert len({run.key for run in runs}) == len(runs)
        assert len({run.digest for run in runs}) == len(runs)
        for run in runs:
            assert study.run(run.key) == run
            assert study.config(json.loads(json.dumps(run.to_json())), "a run") == run


@pytest.mark.parametrize("name", study_names())
def test_readme_shows_the_settings_as_they_are(name):
    study = load_study(name)
    text = (study.folder / "README.md").read_text()
    assert with_generated_part(text, study) == text, f"run `resnet-limits document {name}`"


def test_a_configuration_by_hand_is_checked_like_the_study():
    study = load_study("two_spirals")
    config = study.run(SMOKE).to_json()
    for change, word in (({"steps": -1}, "steps"), ({"stepz": 1}, "stepz"), ({"seed": []}, "seed")):
        broken = config | {"settings": config["settings"] | change}
        with pytest.raises(UserError, match=f"^--config: settings.{word}: "):
            study.config(broken, "--config")


def test_a_scale_can_leave_an_experiment_out(edited):
    study = edited(lambda d: d["scales"]["smoke"].update(depth="not run"))
    assert study.experiment("depth", "smoke").runs() == {}
    assert study.experiment("depth", "paper").runs()
    assert study.experiment("rate", "smoke").runs()


def test_only_not_run_leaves_an_experiment_out(edited):
    with pytest.raises(UserError, match=r"scales.smoke.depth.*not run"):
        edited(lambda d: d["scales"]["smoke"].update(depth="no"))


def test_names_are_found_in_any_module_of_their_role():
    study = load_study("weight_smoothness")
    assert study.problem_module("large_depth").name == "problems.py"
    assert study.problem_module("cifar").name == "image_problems.py"


def test_a_name_that_two_modules_define_is_refused(tmp_path):
    folder = tmp_path / "two_spirals"
    shutil.copytree(STUDIES / "two_spirals", folder)
    (folder / "other_problems.py").write_text("class SpiralsProblem: ...\n")
    words = ["other_problems.py and problems.py both define 'SpiralsProblem'; rename one"]
    assert_named(lambda: Study("two_spirals", folder), words)


def test_problem_and_settings_are_found_by_name():
    from resnet_limits.studies.two_spirals.problems import SpiralsProblem
    from resnet_limits.studies.two_spirals.settings import SpiralsSettings

    study = load_study("two_spirals")
    assert study.load("problems", "SpiralsProblem") is SpiralsProblem
    assert study.settings_class("rate") is SpiralsSettings


def test_the_same_settings_are_one_configuration():
    study = load_study("two_spirals")
    config = study.run(SMOKE)
    written = config.to_json()
    written["settings"] = dict(reversed(written["settings"].items())) | {"learning_rate": 1e-2}
    assert study.config(written, "--config").digest == config.digest
    written["settings"] |= {"learning_rate": 1.5e-2}
    assert study.config(written, "--config").digest != config.digest
    assert study.config(written | {"run": "frozen"}, "--config").digest != config.digest


WRONG = {
    "scale": ("paperr", 'scale: "paperr" is not allowed; did you mean'),
    "studies": ([], "studies: [] is not allowed; give a list with at least one value"),
    "device": ("gpu", 'device: "gpu" is not allowed'),
    "finished_only": ("yes", 'finished_only: "yes" is not allowed; give true or false'),
    "data_root": ("", "data_root: "),
    "scal": ("smoke", "scal: unknown key; did you mean 'scale'"),
}


def test_every_key_of_the_configuration_is_explained_with_its_default():
    folder = STUDIES.parents[2] / "workflow"
    defaults = yaml.safe_load((folder / "config.yaml").read_text())
    page = (folder / "README.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", page, flags=re.MULTILINE))
    wanted = {key: f"`{yaml.safe_dump(value).split()[0]}`" for key, value in defaults.items()}
    assert told == wanted | {"studies": "all four"}
    assert told.keys() == Configuration.model_fields.keys()


@pytest.mark.parametrize("key", WRONG)
def test_a_mistake_in_the_configuration_is_named(key):
    value, words = WRONG[key]
    file = "workflow/config.yaml"
    config = yaml.safe_load((STUDIES.parents[2] / file).read_text())
    build(Configuration, config, file)
    assert_named(lambda: build(Configuration, config | {key: value}, file), [f"{file}: {words}"])


@pytest.mark.slow
def test_studies_are_read_without_torch_and_pandas():
    code = (
        "import sys; from resnet_limits.spec import load_study, study_names\n"
        "for name in study_names(): load_study(name).claims_sources()\n"
        "print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pandas", "scipy"} & set(run.stdout.split())
