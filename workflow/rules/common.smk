# Needs workflow/config.yaml. Makes: the validated configuration, and the functions by which
# rules find their inputs. Whatever is wrong with a configuration or a study ends here.
import json
import shlex
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

try:
    from resnet_limits.archive import archived_keys
    from resnet_limits.devices import has_gpu
    from resnet_limits.documents import read_yaml
    from resnet_limits.errors import UserError, require_known
    from resnet_limits.layout import RECORDED, Layout, RunKey
    from resnet_limits.settings import build, to_json
    from resnet_limits.spec import load_study, report_sources, some_studies, study_names
    from resnet_limits.study_files import SCALES, Configuration
except ImportError as error:
    sys.exit(f"Error: {error}: install the project first: pip install -e .")

LAYOUT = Layout()
ANY_RUN = RunKey("{scale}", "{study}", "{experiment}", "{run}")


def for_users(function):
    """End with a function's UserError alone: Snakemake would add tracebacks of the workflow."""

    def wrapped(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            sys.exit(f"Error: {error}")

    return wrapped


@for_users
def read_defaults():
    """Read workflow/config.yaml, here or, where another workflow uses this one, beside the rules.

    The directive `configfile:` says a mistake in many lines or, of a duplicate key, not at all.
    """
    path = Path("workflow/config.yaml")
    if not path.exists():
        with suppress(FileNotFoundError):  # said in one line below
            path = Path(workflow.source_path("../config.yaml"))
    defaults = read_yaml(path)
    if not isinstance(defaults, dict):
        raise UserError(f"{path}: not a mapping of keys to values; write some, as `scale: quick`.")
    return defaults


@for_users
def check_configuration():
    where = "workflow/config.yaml or --config"
    checked = build(Configuration, {**read_defaults(), **config}, where)
    for name in checked.studies:
        require_known(name, study_names(), f"{where}: studies:")
        load_study(name)  # checks every file of the study
    root = Path(checked.data_root)
    if root != Path("data") and not root.is_dir():
        raise UserError(f"{where}: data_root: {root} is not a folder; make it.")
    return checked


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


CONFIGURATION = check_configuration()
for folder in ("results", "figures"):
    check_writable(folder)

SCALE = CONFIGURATION.scale
STUDIES = CONFIGURATION.studies
# In names of files about several studies: which ones, if not all.
SOME = some_studies(STUDIES)

# The command belongs to the Python that runs Snakemake, even if its environment is not activated.
shell.prefix(f'export PATH="$PATH:{Path(sys.executable).parent}"; ')


# Ends every command: its output goes to the log, and on failure also to the user.
LOGGED = " > {log:q} 2>&1 || {{ tail -n 20 {log:q} >&2; exit 1; }}"
# Nothing trains the scale `recorded`. A typo in another is named by the input functions.
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
    key = RunKey(wildcards.scale, wildcards.study, wildcards.experiment, wildcards.run)
    return study_of(wildcards).run(key)


def resource(name):
    @for_users
    def look_up(wildcards):
        study = study_of(wildcards)
        return getattr(study.experiment(wildcards.experiment, wildcards.scale).resources, name)

    return look_up


def gpus(wildcards):
    """Ask for a GPU unless the configuration or, for `auto`, this machine rules it out."""
    device = CONFIGURATION.device
    wanted = device == "cuda" or (device == "auto" and has_gpu())
    return resource("gpu")(wildcards) if wanted else 0


def stamp(run):
    """The stamp of a run's data set; none for data that come with a package or are drawn."""
    dataset = getattr(run.settings, "dataset", "digits")
    return [] if dataset == "digits" else [LAYOUT.stamp(dataset)]


def stamp_for_run(wildcards):
    """A finished run that was copied from elsewhere needs no data here."""
    run = run_config(wildcards)
    finished = LAYOUT.record(run.key).exists()
    return [path for path in stamp(run) if path.exists() or not finished]


@for_users
def stamps():
    if SCALE == RECORDED:
        return []
    runs = (run for study in STUDIES for run in load_study(study).runs(SCALE))
    return sorted({path for run in runs for path in stamp(run)})


@for_users
def records_for_table(wildcards):
    study = study_of(wildcards)
    require_known(wildcards.table, study.tables, f"{wildcards.study}: table")
    require_known(wildcards.scale, SCALES, "scale")
    experiments = study.tables[wildcards.table].experiments
    return [path for name in experiments for path in records(study, name, wildcards.scale)]


def records(study, experiment, scale):
    """The records that a table of an experiment waits for, or that are there."""
    if scale == RECORDED:
        return [LAYOUT.record(key) for key in archived_keys(study.name, experiment, LAYOUT)]
    paths = [LAYOUT.record(run.key) for run in study.runs(scale, experiment)]
    return [path for path in paths if path.exists() or not CONFIGURATION.finished_only]


@for_users
def tables_for_figure(wildcards):
    require_known(wildcards.scale, SCALES, "scale")
    study = study_of(wildcards)
    require_known(wildcards.figure, study.figures, f"{wildcards.study}: figure")
    return tables_of(wildcards, study.figures[wildcards.figure].tables)


@for_users
def tables_for_claims(wildcards):
    return tables_of(wildcards, sorted({claim.table for claim in study_of(wildcards).claims}))


def tables_of(wildcards, names):
    return [LAYOUT.table(wildcards.scale, wildcards.study, name) for name in names]


def sources_of(role):
    """Digest whatever makes a table or a figure, so that an edit makes it again."""

    @for_users
    def look_up(wildcards):
        name = getattr(wildcards, {"tables": "table", "plots": "figure"}[role])
        return study_of(wildcards).analysis_sources(role, name)

    return look_up


@for_users
def sources_of_claims(wildcards):
    return study_of(wildcards).claims_sources()


@for_users
def sources_of_report(_):
    return report_sources(STUDIES)


@for_users
def caption(wildcards):
    return study_of(wildcards).figures[wildcards.figure].caption


@for_users
def figure_labels(wildcards):
    """What the menu of Snakemake's report says of a figure."""
    paper = study_of(wildcards).figures[wildcards.figure].paper
    return {"figure": wildcards.figure, "in the paper": paper or "-"}


def table_files():
    return [
        LAYOUT.table(SCALE, study, table) for study in STUDIES for table in load_study(study).tables
    ]


def figure_files():
    return [
        LAYOUT.figure(SCALE, study, figure, suffix)
        for study in STUDIES
        for figure in load_study(study).figures
        for suffix in ("png", "pdf")
    ]


def claim_files():
    return [LAYOUT.claims(SCALE, study) for study in STUDIES]
