"""Settings are typed, and what is wrong with them is told in one line."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import yaml
from pydantic import ValidationError

from resnet_limits.classification_settings import PIXELS
from resnet_limits.data.sources import SETS
from resnet_limits.errors import UserError
from resnet_limits.settings import axes, build, description, json_schema, to_json
from resnet_limits.spec import STUDIES, load_study, study_names
from resnet_limits.studies.rff_width.settings import (
    BlockNetworkSettings,
    FlowSettings,
    WidthSettings,
)
from resnet_limits.studies.sorted_tau.settings import (
    CostSettings,
    ExpansionSettings,
    ResNetSettings,
)
from resnet_limits.studies.two_spirals.settings import SpiralsSettings
from resnet_limits.studies.weight_smoothness.settings import (
    DeepConvolutionSettings,
    KinkSettings,
    LargeDepthSettings,
    LongTimeSettings,
)
from resnet_limits.study_files import TRAINED_SCALES

pytestmark = pytest.mark.filterwarnings("error")

STUDIES_BY_NAME = {name: load_study(name) for name in study_names()}
EXPERIMENTS = [(study, name) for study in STUDIES_BY_NAME.values() for name in study.experiments]
EVERY_CLASS = list(dict.fromkeys(study.settings_class(name) for study, name in EXPERIMENTS))
STEP = {"kind": "step", "milestones": [1], "factor": 0.1}


def example(settings_class):
    """Return the settings of the first run of the class at scale smoke, as JSON has them."""
    for study, experiment in EXPERIMENTS:
        if study.settings_class(experiment) is settings_class:
            return to_json(next(study.runs("smoke", experiment)).settings)
    raise KeyError(settings_class)


@pytest.mark.parametrize("scale", TRAINED_SCALES)
@pytest.mark.parametrize(("study", "experiment"), EXPERIMENTS, ids=lambda x: getattr(x, "name", x))
def test_the_settings_of_every_run_survive_json(study, experiment, scale):
    settings_class = study.settings_class(experiment)
    for run in study.runs(scale, experiment):
        assert type(run.settings) is settings_class
        plain = json.loads(json.dumps(to_json(run.settings)))
        assert build(settings_class, plain, "record.json") == run.settings


def replaced(**changes):
    return lambda settings: settings | changes


def without(name):
    return lambda settings: {key: value for key, value in settings.items() if key != name}


def nested(name, **changes):
    return lambda settings: settings | {name: settings[name] | changes}


MISTAKES = {
    "unknown key": (
        SpiralsSettings,
        replaced(learning_rte=0.1),
        ["learning_rte: unknown key", "did you mean 'learning_rate'"],
    ),
    "missing key": (SpiralsSettings, without("noise"), ["lacks the key 'noise'; add it"]),
    "not a number": (SpiralsSettings, replaced(noise=math.nan), ["noise: NaN", "a finite number"]),
    "infinity": (SpiralsSettings, replaced(learning_rate=math.inf), ["learning_rate", "finite"]),
    "float for a count": (SpiralsSettings, replaced(steps=10.0), ["steps: 10.0", "write 10."]),
    "fraction for a count": (SpiralsSettings, replaced(steps=10.5), ["steps", "a whole number."]),
    "bool for a count": (SpiralsSettings, replaced(steps=True), ["steps: true", "whole number"]),
    "bool for a rate": (SpiralsSettings, replaced(noise=False), ["noise: false", "a number"]),
    "text for a count": (SpiralsSettings, replaced(steps="many"), ["steps", "whole number."]),
    "text for a rate": (
        SpiralsSettings,
        replaced(learning_rate="1e-3"),
        ["learning_rate", "write 0.001 without quotes", "1.0e-3"],
    ),
    "text for a small rate": (
        SpiralsSettings,
        replaced(learning_rate="1e-9"),
        ["write 1.0e-09 without quotes"],
    ),
    "list for a number": (SpiralsSettings, replaced(steps=[1]), ["steps: [1]", "whole number"]),
    "nothing": (SpiralsSettings, replaced(steps=None), ["steps: null", "whole number"]),
    "out of bounds": (
        SpiralsSettings,
        replaced(learning_rate=-0.1),
        ["learning_rate: -0.1", "above 0", "It is: learning rate of Adam"],
    ),
    "below a bound": (SpiralsSettings, replaced(n_test=1), ["n_test: 1", "at least 2"]),
    "unknown word": (
        SpiralsSettings,
        replaced(field="frosen"),
        ['field: "frosen"', "did you mean 'frozen'", "per_step"],
    ),
    "wrong constant": (SpiralsSettings, replaced(dimension=3), ["dimension: 3", "give 2."]),
    "seed twice": (SpiralsSettings, replaced(seed=[0, 1, 0]), ["seed: 0 is given twice", "leave"]),
    "empty axis": (SpiralsSettings, replaced(seed=[]), ["seed: []", "at least one value"]),
    "wrong point": (SpiralsSettings, replaced(n_train=[32, 1]), ["n_train: 1", "at least 2"]),
    "float in an axis": (SpiralsSettings, replaced(seed=[0, 1.0]), ["seed: 1.0", "write 1."]),
    "boundary of a size not trained": (
        SpiralsSettings,
        replaced(boundary_n=[32, 33]),
        ["boundary_n: 33 is not among n_train", "leave it out"],
    ),
    "plain value for a list": (SpiralsSettings, replaced(boundary_n=32), ["boundary_n", "a list"]),
    "Gram matrices of no size": (
        SpiralsSettings,
        replaced(gram_n_max=31),
        ["gram_n_max: 31", "at least 32, or 0"],
    ),
    "more inputs than width": (
        ExpansionSettings,
        replaced(width=4),
        ["width: 4 is less than dimension", "at least 8"],
    ),
    "time after the last step": (
        LargeDepthSettings,
        replaced(times=[5, 99999]),
        ["times: 99999 is after the end of training (steps: 40)", "leave it out"],
    ),
    "time after the last of many steps": (
        LongTimeSettings,
        replaced(times=[201]),
        ["times: 201 is after the end of training (steps: 200)", "leave it out"],
    ),
    "no times": (LongTimeSettings, replaced(times=[]), ["times: []", "at least one value"]),
    "limit is no multiple": (
        LargeDepthSettings,
        replaced(limit_depth=63),
        ["limit_depth: 63 is not a proper multiple of depth 2", "or 0"],
    ),
    "limit is a depth": (
        LargeDepthSettings,
        replaced(limit_depth=16),
        ["limit_depth: 16 is not a proper multiple of depth 16", "larger"],
    ),
    "odd depth": (KinkSettings, replaced(depth=[4, 7]), ["depth: 7", "a multiple of 2"]),
    "target below the input": (
        KinkSettings,
        replaced(target=[0.5, 2.0]),
        ["target: 0.5 is not above the input 1.0", "give a larger one"],
    ),
    "epoch after the last": (
        DeepConvolutionSettings,
        replaced(measured=[0, 5]),
        ["measured: 5 is after the end of training (epochs: 1)", "leave it out"],
    ),
    "channels that numba cannot do": (
        DeepConvolutionSettings,
        replaced(backend="numba", channels=8),
        ["channels: 8 is not a multiple of 16", "backend auto"],
    ),
    "precision that numba cannot do": (
        DeepConvolutionSettings,
        lambda s: nested("precision", cpu="auto")(s) | {"backend": "numba"},
        ["precision.cpu: numba computes in float32", "give float32"],
    ),
    "images too small to be pooled": (
        DeepConvolutionSettings,
        replaced(size=11),
        ["size: 11", "at least 12"],
    ),
    "images larger than the input": (
        ResNetSettings,
        replaced(dataset="cifar10", size=16),
        ["size: 16 is less than the 32 pixels", "at least 32"],
    ),
    "batch larger than the data": (
        ResNetSettings,
        replaced(batch=201),
        ["batch: 201 is more than the 200 training images", "at most as many"],
    ),
    "milestone after the last epoch": (
        ResNetSettings,
        replaced(schedule=STEP | {"milestones": [1, 2]}),
        ["schedule.milestones: 2 is at or after the end of training (epochs: 2)", "leave it out"],
    ),
    "a stop after the last epoch": (
        ResNetSettings,
        replaced(stop_after=3),
        ["stop_after: 3 is after the end of training (epochs: 2)", "0 for all"],
    ),
    "milestones out of order": (
        ResNetSettings,
        replaced(epochs=9, schedule=STEP | {"milestones": [3, 2]}),
        ["schedule.milestones: [3, 2] does not increase", "sort it"],
    ),
    "milestone twice": (
        ResNetSettings,
        replaced(epochs=9, schedule=STEP | {"milestones": [2, 2]}),
        ["schedule.milestones: 2 is given twice", "leave one out"],
    ),
    "steps without a factor": (
        ResNetSettings,
        replaced(schedule={"kind": "step", "milestones": [1]}),
        ["schedule: lacks the key 'factor'; add it"],
    ),
    "factor out of bounds": (
        ResNetSettings,
        nested("schedule", factor=0),
        ["schedule.factor: 0", "above 0"],
    ),
    "cosine with steps": (
        ResNetSettings,
        nested("schedule", kind="cosine"),
        ["schedule.milestones: a cosine schedule has neither milestones nor factor", "leave"],
    ),
    "unknown schedule": (
        ResNetSettings,
        nested("schedule", kind="stop"),
        ['schedule.kind: "stop"', "did you mean 'step'"],
    ),
    "schedule without a kind": (
        ResNetSettings,
        replaced(schedule={}),
        ["schedule: lacks the key 'kind'; add it"],
    ),
    "schedule of one word": (
        ResNetSettings,
        replaced(schedule="cosine"),
        ['schedule: "cosine"', "a mapping of keys"],
    ),
    "unknown key in a schedule": (
        ResNetSettings,
        nested("schedule", milestone=[1]),
        ["schedule.milestone: unknown key", "did you mean 'milestones'"],
    ),
    "unknown key in the augmentation": (
        ResNetSettings,
        nested("augmentation", flp=True),
        ["augmentation.flp: unknown key", "did you mean 'flip'"],
    ),
    "missing key in the precision": (
        CostSettings,
        replaced(precision={"cpu": "auto"}),
        ["precision: lacks the key 'cuda'; add it"],
    ),
    "number for a switch": (
        ResNetSettings,
        nested("augmentation", flip=1),
        ["augmentation.flip: 1", "true or false"],
    ),
    "momentum of 1": (ResNetSettings, replaced(momentum=1), ["momentum: 1", "below 1"]),
    "too much jitter": (WidthSettings, replaced(jitter=0.5), ["jitter: 0.5", "at most 0.49"]),
    "axis twice as float": (WidthSettings, replaced(alpha=[1, 1.0]), ["alpha: 1.0 is given twice"]),
    "states without room": (
        WidthSettings,
        replaced(embedding="lifting", dimension=5, states=[4, 8]),
        ["states: 4 is less than dimension", "at least 5"],
    ),
    "input of another size": (FlowSettings, replaced(size=32), ["size: 32", "give 28."]),
    "cosine for a flow": (
        FlowSettings,
        replaced(schedule={"kind": "cosine"}),
        ['schedule.kind: "cosine"', "give step."],
    ),
    "unknown residuals": (
        BlockNetworkSettings,
        replaced(model="rkh"),
        ['model: "rkh"', "did you mean 'rkhs'"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_place_key_and_remedy(mistake):
    settings_class, change, words = MISTAKES[mistake]
    settings = example(settings_class)
    build(settings_class, settings, "study.yaml")
    with pytest.raises(UserError) as caught:
        build(settings_class, change(settings), "study.yaml")
    message = str(caught.value)
    assert message.startswith("study.yaml: ")
    assert message.endswith(".")
    assert "\n" not in message
    for word in words:
        assert word in message


def check_value(settings_class, name, value, where):
    """Build otherwise valid settings with one other value."""
    build(settings_class, example(settings_class) | {name: value}, where)


def test_the_key_is_joined_to_the_keys_of_where():
    with pytest.raises(UserError, match=r"^study.yaml: rate.settings.steps: 0 is not allowed"):
        check_value(SpiralsSettings, "steps", 0, "study.yaml: rate.settings")


def test_the_number_that_a_message_asks_for_is_one_in_yaml():
    for text in ("1e-3", "1e-9", "2E20", "1_000", " 5 "):
        with pytest.raises(UserError) as caught:
            check_value(SpiralsSettings, "learning_rate", text, "study.yaml")
        written = str(caught.value).partition("write ")[2].partition(" ")[0]
        assert yaml.safe_load(written) == float(text)


def test_one_value_is_checked_without_the_others():
    check_value(SpiralsSettings, "steps", 5, "study.yaml")
    check_value(ResNetSettings, "schedule", STEP, "study.yaml")
    for name, value in (("steps", 5.0), ("stepz", 5), ("seed", []), ("seed", [0, 0])):
        with pytest.raises(UserError, match=f"study.yaml: {name}: "):
            check_value(SpiralsSettings, name, value, "study.yaml")
    with pytest.raises(UserError, match="schedule: lacks the key 'factor'"):
        check_value(ResNetSettings, "schedule", {"kind": "step", "milestones": []}, "study.yaml")


def test_an_axis_takes_a_list_or_a_point():
    check_value(SpiralsSettings, "seed", [0, 1], "study.yaml")
    check_value(SpiralsSettings, "seed", 1, "study.yaml")
    with pytest.raises(UserError, match="seed: -1"):
        check_value(SpiralsSettings, "seed", -1, "study.yaml")
    settings = build(SpiralsSettings, example(SpiralsSettings) | {"seed": 1}, "study.yaml")
    assert settings.seed == (1,)
    assert to_json(settings)["seed"] == [1]


def test_what_a_run_trains_together_follows_from_the_types():
    assert {cls.__name__: axes(cls) for cls in EVERY_CLASS if axes(cls)} == {
        "SpiralsSettings": ("n_train", "seed"),
        "ParticleSettings": ("beta", "n_train", "seed"),
        "SolversSettings": ("depth", "seed"),
        "ExpansionSettings": ("activation", "start", "weight_scale", "depth", "seed"),
        "GradientsSettings": ("activation", "start", "weight_scale", "depth", "seed"),
        "LargeDepthSettings": ("depth",),
        "KinkSettings": ("depth", "activation", "target"),
        "PublishedSettings": ("activation", "init", "batch_norm"),
        "WidthSettings": ("alpha", "states", "width", "draw"),
    }


def test_whole_and_real_numbers_are_one_configuration():
    values = example(WidthSettings)
    whole = build(WidthSettings, values | {"spacing": 2, "alpha": [1]}, "study.yaml")
    real = build(WidthSettings, values | {"spacing": 2.0, "alpha": [1.0]}, "study.yaml")
    assert json.dumps(to_json(whole)) == json.dumps(to_json(real))


def test_settings_cannot_be_changed():
    settings = build(SpiralsSettings, example(SpiralsSettings), "study.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        settings.steps = 5


@pytest.mark.parametrize("settings_class", EVERY_CLASS, ids=lambda cls: cls.__name__)
def test_every_setting_is_described(settings_class):
    schema = json_schema(settings_class)
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == set(settings_class.model_fields)
    for name in settings_class.model_fields:
        assert description(settings_class, name)
        assert schema["properties"][name]["description"] == description(settings_class, name)
    for name in axes(settings_class):
        rules = schema["properties"][name]
        assert (rules["type"], rules["minItems"], rules["uniqueItems"]) == ("array", 1, True)


def test_sizes_are_those_of_the_data_sets():
    assert {name: PIXELS[name] for name in SETS} == {n: s.shape[0] for n, s in SETS.items()}


@pytest.mark.slow
def test_settings_import_nothing_that_trains():
    modules = ["resnet_limits.settings", "resnet_limits.classification_settings"]
    modules += [
        f"resnet_limits.studies.{path.parent.name}.settings"
        for path in STUDIES.glob("*/settings.py")
    ]
    assert len(modules) == 2 + len(STUDIES_BY_NAME)
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pandas"} & set(run.stdout.split())
