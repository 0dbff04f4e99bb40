# Needs workflow/config.yaml. Makes: the validated configuration, and the functions by which
# rules find their inputs. Whatever is wrong with a configuration or a study ends here.
import json
import shlex
import sys
import tempfile
from pathlib import Path

try:
    from resnet_limits.devices import has_gpu
    from resnet_limits.errors import UserError, require_known
    from resnet_limits.files import hash_file
    from resnet_limits.recorded import manifest
    from resnet_limits.schemas import schema, validate
    from resnet_limits.spec import SCALES, load_study, study_names
except ImportError as error:
    sys.exit(f"Error: {error}: install the project first: pip install -e .")


def for_users(function):
    """End with a function's UserError alone: Snakemake would add tracebacks of the workflow."""

    def wrapped(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            sys.exit(f"Error: {error}")

    return wrapped


@for_users
def check_configuration():
    validate(config, schema("config"), "workflow/config.yaml or --config")
    for name in config["studies"]:
        require_known(name, study_names(), "workflow/config.yaml or --config: studies:")
    for name in config["studies"]:
        load_study(name).claims
        if config["scale"] == "recorded":
            manifest(Path("results"), name)
    root = Path(config["data_root"])
    if root != Path("data") and not root.is_dir():
        raise UserError(
            f"workflow/config.yaml or --config: data_root: {root} is no folder; make it."
        )


def check_writable(folder):
    """Fail before anything is trained if results could not be kept."""
    try:
        Path(folder).mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        sys.exit(
            f"Error: {folder}/ cannot be written ({error.strerror}): make it a folder of yours, "
            "or run in a copy of the project elsewhere."
        )


check_configuration()
for folder in ("results", "figures"):
    check_writable(folder)

SCALE = config["scale"]
STUDIES = config["studies"]

# The command belongs to the Python that runs Snakemake, even if its environment is not activated.
shell.prefix(f'export PATH="$PATH:{Path(sys.executable).parent}"; ')


# Ends every command: its output goes to the log, and on failure also to the user.
LOGGED = " > {log:q} 2>&1 || {{ tail -n 20 {log:q} >&2; exit 1; }}"
# Nothing makes the scale `recorded`. A typo in another is named by the input functions.
TRAINED = "(?!recorded/)[^/]+"


wildcard_constraints:
    scale="[^/]+",
    study="[^/]+",
    dataset="[^/]+",
    experiment="[^/]+",
    run="[^/]+",
    table="[^/]+",
    figure="[^/]+",


@for_users
def study_of(wildcards):
    return load_study(wildcards.study)


@for_users
def run_config(wildcards):
    return study_of(wildcards).run(wildcards.scale, wildcards.experiment, wildcards.run)


def resource(name):
    @for_users
    def look_up(wildcards):
        study = study_of(wildcards)
        return study.experiment(wildcards.experiment, wildcards.scale).resources[name]

    return look_up


def gpus(wildcards):
    """Ask for a GPU unless the configuration or, for `auto`, this machine rules it out."""
    wanted = config["device"] == "cuda" or (config["device"] == "auto" and has_gpu())
    return resource("gpu")(wildcards) if wanted else 0


def stamp(run):
    """The stamp of a run's data set; none for data that come with a package or are drawn."""
    dataset = run["settings"].get("dataset", "digits")
    return [] if dataset == "digits" else [f"results/data/{dataset}.json"]


def stamp_for_run(wildcards):
    """A finished run that was copied from elsewhere needs no data here."""
    run = run_config(wildcards)
    record = Path("results/{scale}/{study}/{experiment}/{run}/record.json".format(**run))
    return [path for path in stamp(run) if Path(path).exists() or not record.exists()]


@for_users
def stamps():
    if SCALE == "recorded":
        return []
    runs = (run for study in STUDIES for run in load_study(study).runs(SCALE))
    return sorted({path for run in runs for path in stamp(run)})


@for_users
def records_for_table(wildcards):
    study = study_of(wildcards)
    require_known(wildcards.table, study.tables, f"{wildcards.study}: table")
    return [
        "results/{scale}/{study}/{experiment}/{run}/record.json".format(**config)
        for experiment in study.tables[wildcards.table]["experiments"]
        for config in study.runs(wildcards.scale, experiment)
    ]


@for_users
def tables_for_figure(wildcards):
    require_known(wildcards.scale, SCALES, "scale")
    study = study_of(wildcards)
    require_known(wildcards.figure, study.figures, f"{wildcards.study}: figure")
    return tables_of(wildcards, study.figures[wildcards.figure]["tables"])


@for_users
def tables_for_claims(wildcards):
    return tables_of(wildcards, sorted({claim["table"] for claim in study_of(wildcards).claims}))


def tables_of(wildcards, names):
    folder = f"results/{wildcards.scale}/{wildcards.study}/tables"
    return [f"{folder}/{name}.csv" for name in names]


def hash_of(module):
    """Hash a study's module, such as tables.py and image_tables.py, so that editing it makes again
    what it made."""

    @for_users
    def look_up(wildcards):
        return "".join(map(hash_file, sorted(study_of(wildcards).folder.glob(f"*{module}"))))

    return look_up


@for_users
def caption(wildcards):
    return study_of(wildcards).figures[wildcards.figure]["caption"]


def table_files():
    return [
        f"results/{SCALE}/{study}/tables/{table}.csv"
        for study in STUDIES
        for table in load_study(study).tables
    ]


def figure_files():
    return [
        f"figures/{SCALE}/{study}/{figure}.{suffix}"
        for study in STUDIES
        for figure in load_study(study).figures
        for suffix in ("png", "pdf")
    ]


def claim_files():
    return [f"results/{SCALE}/{study}/claims.json" for study in STUDIES]
