"""The pipeline from outside: what a user types, and what a user sees."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from resnet_limits.provenance import public_names
from resnet_limits.spec import STUDIES, load_study, study_names

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
SMOKE = ("--config", "scale=smoke")
RUN = Path("results/smoke/two_spirals/rate/constant")


def snakemake(folder, *arguments, timeout=1800, package=None):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return run(folder, command, timeout, package)


def command(folder, *arguments, package=None):
    return run(folder, [sys.executable, "-m", "resnet_limits.cli", *arguments], 300, package)


def run(folder, command, timeout=300, package=None):
    """Run a command; ``package`` is a folder of sources to use instead of the installed ones."""
    environment = ENVIRONMENT | ({"PYTHONPATH": str(package)} if package else {})
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )


def copy_of_the_project(folder):
    """Copy the workflow, not the results."""
    for name in ("workflow", "profiles", "envs"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def copy_of_the_package(folder):
    """Copy the sources, for a test to edit."""
    shutil.copytree(
        ROOT / "src", folder, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
    )
    return folder / "resnet_limits"


@pytest.fixture
def project(tmp_path):
    return copy_of_the_project(tmp_path)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A project where the whole graph has run at smoke scale."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("smoke"))
    result = snakemake(folder, "all", *SMOKE)
    assert result.returncode == 0, result.stderr
    return folder


def hashes(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".pdf"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def jobs(result):
    """Names of the rules that ran."""
    return re.findall(r"^(?:local)?rule (\w+):", result.stderr, flags=re.MULTILINE)


def planned(folder, *arguments, package=None):
    """Names of the rules that a dry run lists."""
    return {rule for rule, _ in planned_jobs(folder, *arguments, package=package)}


def planned_jobs(folder, *arguments, package=None):
    """Rule and first output of every job that a dry run lists."""
    result = snakemake(folder, "-n", *arguments, package=package)
    assert result.returncode == 0, result.stderr
    pattern = r"^(?:local)?rule (\w+):\n(?:    input: .*\n)?(?:    output: ([^,\n]*))?"
    return set(re.findall(pattern, result.stdout, flags=re.MULTILINE))


def test_whole_graph_makes_report_claims_and_figures(smoke):
    page = (smoke / "results/smoke/report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page must need no other file"
    assert (smoke / "results/smoke/claims.csv").stat().st_size > 0
    for name in study_names():
        study = yaml.safe_load((STUDIES / name / "study.yaml").read_text())
        for figure in study["figures"]:
            for suffix in ("png", "pdf"):
                assert (smoke / f"figures/smoke/{name}/{figure}.{suffix}").stat().st_size > 1000
        claims = json.loads((smoke / f"results/smoke/{name}/claims.json").read_text())
        assert all(claim["verdict"] and claim["why"] for claim in claims)


def test_nothing_is_left_to_do(smoke):
    assert "Nothing to be done" in snakemake(smoke, "all", *SMOKE).stderr


def test_drawing_twice_gives_the_same_bytes(smoke):
    before = hashes(smoke / "figures")
    shutil.rmtree(smoke / "figures/smoke/two_spirals")
    result = snakemake(smoke, "figures", *SMOKE)
    assert set(jobs(result)) == {"plot", "figures"}
    assert hashes(smoke / "figures") == before


def test_snakemakes_own_report_has_captions(smoke):
    result = snakemake(smoke, "--report", "report.html", *SMOKE)
    assert result.returncode == 0, result.stderr
    page = (smoke / "report.html").read_text()
    assert "Test 0-1 error over the number of training points" in page
    paper = load_study("two_spirals").figures["rate"].paper
    assert f'"in the paper": "{paper}"' in page


@pytest.fixture
def archived(smoke):
    """The smoke project with two_spirals in its archive."""
    shutil.rmtree(smoke / "results/recorded", ignore_errors=True)
    shutil.rmtree(smoke / "figures/recorded", ignore_errors=True)
    result = command(smoke, "record", "two_spirals", "--scale", "smoke")
    assert result.returncode == 0, result.stderr
    return smoke


RECORDED = ("--config", "scale=recorded", "studies=[two_spirals]")


def test_recorded_scale_derives_everything_and_never_trains(archived):
    kept = {path.suffix for path in (archived / "results/recorded").rglob("*") if path.is_file()}
    assert kept == {".json", ".xz", ".lock"} or kept == {".json", ".xz", ""}
    figure = "figures/recorded/two_spirals/rate.png"
    assert set(jobs(snakemake(archived, figure, "--forceall"))) == {"table", "plot"}
    result = snakemake(archived, "all", *RECORDED)
    assert result.returncode == 0, result.stderr
    assert set(jobs(result)) <= {"table", "plot", "judge", "report_page", "all"}
    page = archived / "results/recorded/report-two_spirals.html"
    assert "scale smoke, commit" in page.read_text()
    for name in ("final", "rates"):
        tables = [
            archived / f"results/{s}/two_spirals/tables/{name}.csv" for s in ("smoke", "recorded")
        ]
        assert tables[0].read_bytes() == tables[1].read_bytes()


def test_an_incomplete_archive_is_shown_with_what_it_has(archived):
    shutil.rmtree(archived / "results/recorded")
    result = command(archived, "record", "two_spirals", "rate", "constant", "--scale", "smoke")
    assert result.returncode == 0, result.stderr
    result = snakemake(archived, "all", *RECORDED)
    assert result.returncode == 0, result.stderr
    page = (archived / "results/recorded/report-two_spirals.html").read_text()
    assert "1 of 2 runs" in page
    assert "depth: not recorded" in page
    claims = json.loads((archived / "results/recorded/two_spirals/claims.json").read_text())
    verdicts = {claim["id"]: claim["verdict"] for claim in claims}
    assert verdicts["depth"] == "not tested"


def test_finished_runs_alone_make_tables_at_any_scale(smoke, project):
    for name in ("constant", "removed"):
        run_folder = f"results/smoke/two_spirals/rate/{name}"
        shutil.copytree(smoke / run_folder, project / run_folder)
    finished = ("--config", "scale=smoke", "studies=[two_spirals]", "finished_only=true")
    result = snakemake(project, "all", *finished)
    assert result.returncode == 0, result.stderr
    assert "train" not in jobs(result)
    assert "depth: 0 of 2 runs" in (project / "results/smoke/report-two_spirals.html").read_text()


def test_a_mixture_of_scales_is_refused(archived):
    manifest = archived / "results/recorded/two_spirals/manifest.json"
    manifest.write_text(manifest.read_text().replace('"smoke"', '"paper"'))
    result = command(archived, "record", "two_spirals", "--scale", "smoke")
    assert_clear(result, ["manifest.json", "runs of scale paper", "--force"])


# What an edit of a file makes again, and of which studies.
EDITS = {
    "stats.py": ({"table", "plot", "judge"}, study_names()),
    "claims.py": ({"judge"}, study_names()),
    "power.py": ({"judge"}, study_names()),
    "style.py": ({"plot"}, study_names()),
    "wording.py": (set(), []),
    "studies/sorted_tau/paper_table1.csv": ({"table", "plot", "judge"}, ["sorted_tau"]),
    "studies/two_spirals/claims.yaml": ({"judge"}, ["two_spirals"]),
    "studies/two_spirals/plots.py": ({"plot"}, ["two_spirals"]),
    "studies/two_spirals/tables.py": ({"table", "plot", "judge"}, ["two_spirals"]),
    "studies/sorted_tau/dense_problems.py": (set(), []),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_again_what_it_can_change(smoke, tmp_path, name):
    rules, studies = EDITS[name]
    package = copy_of_the_package(tmp_path / "edited")
    edit(package / name)
    found = planned_jobs(smoke, "all", *SMOKE, package=package.parent)
    assert {rule for rule, _ in found} - {"all", "report_page"} == rules
    assert {re.split("/", output)[2] for rule, output in found if rule in rules} == set(studies)
    assert "report_page" in {rule for rule, _ in found}  # it says which sources have changed


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("report.css", "margin: 0;", "margin: 1px;"),
        ("report.js", "shown`", "are shown`"),
        ("studies/two_spirals/study.yaml", "We repeat", "Here we repeat"),
    ],
)
def test_an_edit_of_the_page_makes_it_again_and_nothing_else(smoke, tmp_path, file, old, new):
    package = copy_of_the_package(tmp_path / "edited")
    text = (package / file).read_text()
    assert old in text
    (package / file).write_text(text.replace(old, new))
    assert planned(smoke, "all", *SMOKE, package=package.parent) == {"report_page", "all"}


def test_an_edit_of_a_bound_makes_its_tables_again_and_trains_nothing(smoke, tmp_path):
    package = copy_of_the_package(tmp_path / "edited")
    edit(package / "studies/rff_width/bounds.py")
    found = planned_jobs(smoke, "all", *SMOKE, "studies=[rff_width]", package=package.parent)
    tables = {Path(output).stem for rule, output in found if rule == "table"}
    image_tables = public_names(package / "studies/rff_width/image_tables.py")
    assert tables == set(load_study("rff_width").tables) - image_tables
    assert {rule for rule, _ in found} == {"table", "plot", "judge", "report_page", "all"}


def edit(path):
    """Change what a file says, and not only its comments."""
    line = {".py": "EDITED = True", ".yaml": "# edited", ".csv": ""}[path.suffix]
    path.write_text(path.read_text() + f"\n{line}\n")


def test_comments_and_docstrings_make_nothing_again(smoke, tmp_path):
    package = copy_of_the_package(tmp_path / "edited")
    for name in ("stats.py", "train.py", "studies/two_spirals/tables.py"):
        text = (package / name).read_text()
        (package / name).write_text(text.replace('"""', '"""Edited. ', 1) + "\n# edited\n")
    result = snakemake(smoke, "-n", "all", *SMOKE, package=package.parent)
    assert "Nothing to be done" in result.stdout + result.stderr


def test_the_report_says_which_runs_other_sources_trained(smoke, tmp_path):
    package = copy_of_the_package(tmp_path / "edited")
    edit(package / "studies/two_spirals/problems.py")
    folder = tmp_path / "copy"
    shutil.copytree(smoke, folder)
    result = snakemake(folder, "all", *SMOKE, "studies=[two_spirals]", package=package.parent)
    assert result.returncode == 0, result.stderr
    assert set(jobs(result)) == {"report_page", "all"}
    assert "changed since" in (folder / "results/smoke/report-two_spirals.html").read_text()
    assert "changed since" not in (folder / "results/smoke/report.html").read_text()
    result = command(folder, "record", "two_spirals", "--scale", "smoke", package=package.parent)
    assert_clear(result, ["trained by other sources", "--force"])


def test_a_new_study_runs_to_a_verdict_and_passes_lint(project):
    package = copy_of_the_package(project / "src")
    (project / "tests").mkdir()
    result = command(project, "new-study", "deep_linear", package=package.parent)
    assert result.returncode == 0, result.stderr
    assert "deep_linear]" in (project / "workflow/config.yaml").read_text()
    command(project, "document", "deep_linear", package=package.parent)
    config = ("--config", "scale=smoke", "studies=[deep_linear]")
    result = snakemake(project, "all", *config, package=package.parent)
    assert result.returncode == 0, result.stderr
    (claim,) = json.loads((project / "results/smoke/deep_linear/claims.json").read_text())
    assert claim["verdict"] == "reproduced"
    written = [package / "studies/deep_linear", project / "tests/test_deep_linear.py"]
    shutil.copy(ROOT / "pyproject.toml", project)
    for lint in (["ruff", "check"], ["ruff", "format", "--check"]):
        result = run(project, [*lint, *map(str, written)])
        assert result.returncode == 0, result.stdout
    result = run(project, [sys.executable, "-m", "pytest", "-q", "tests"], package=package.parent)
    assert result.returncode == 0, result.stdout
    again = command(project, "new-study", "deep_linear", package=package.parent)
    assert_clear(again, ["deep_linear", "exists", "another name"])


def test_a_failed_job_says_why_on_the_console(smoke):
    path = smoke / RUN / "record.json"
    content = path.read_text()
    path.write_text(content[:200])
    result = snakemake(smoke, "results/smoke/two_spirals/tables/final.csv", "--force", *SMOKE)
    path.write_text(content)
    assert result.returncode != 0
    assert "not valid JSON" in result.stderr


def test_missing_or_changed_recorded_file_is_named(archived):
    folder = archived / "results/recorded/two_spirals/rate/constant"
    path = folder / "metrics.csv.xz"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    result = command(archived, "table", "two_spirals", "final", "--scale", "recorded")
    assert_clear(result, ["metrics.csv", "git checkout"])
    path.unlink()
    result = command(archived, "table", "two_spirals", "final", "--scale", "recorded")
    assert_clear(result, ["metrics.csv", "git checkout"])
    path.write_bytes(content)
    (folder / "record.json").unlink()
    result = snakemake(archived, "figures/recorded/two_spirals/rate.png", "--forceall")
    assert result.returncode != 0
    assert "record.json" in result.stderr
    assert "MissingInputException" in result.stderr


def test_damaged_record_loses_nothing_else(smoke):
    path = smoke / RUN / "record.json"
    content = path.read_text()
    path.write_text(content[:200])
    result = command(smoke, "table", "two_spirals", "final", "--scale", "smoke")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"{RUN}/record.json: not valid JSON" in result.stderr
    remedy = re.search(r"snakemake --cores 1 (--force .*record.json)", result.stderr).group(1)
    result = snakemake(smoke, *remedy.split(), *SMOKE)
    assert result.returncode == 0, result.stderr
    assert jobs(result) == ["train"]
    old, new = json.loads(content), json.loads(path.read_text())
    assert new["files"] == old["files"]  # the same numbers, to the last digit


MISTAKES = {
    "unknown scale": (["scale=papr"], ["scale", '"papr"', "did you mean 'paper'"]),
    "unknown key": (["scal=smoke"], ["scal: unknown key", "did you mean 'scale'"]),
    "wrong type": (["studies=two_spirals"], ["studies", '"two_spirals"', "list of studies"]),
    "no study": (["studies=[]"], ["studies", "list of studies"]),
    "study with a typo": (["studies=[two_spirls]"], ["two_spirls", "did you mean 'two_spirals'"]),
    "unknown device": (["device=gpu"], ["device", '"gpu"', "cuda"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_bad_configuration_is_one_clear_message(project, case):
    settings, words = MISTAKES[case]
    assert_clear(snakemake(project, "-n", "--config", *settings), words)


TARGETS = {
    "figures/smok/two_spirals/rate.png": ["'smok'", "did you mean 'smoke'"],
    "results/smok/two_spirals/tables/final.csv": ["'smok'", "did you mean 'smoke'"],
    "figures/smoke/two_spirls/rate.png": ["two_spirls", "did you mean 'two_spirals'"],
    "figures/smoke/two_spirals/rat.png": ["'rat'", "did you mean 'rate'"],
    "results/smoke/two_spirals/tables/finl.csv": ["'finl'", "did you mean 'final'"],
    "results/smoke/two_spirals/rate/constnt/record.json": ["'constnt'", "did you mean 'constant'"],
}


@pytest.mark.parametrize("target", TARGETS)
def test_target_with_a_typo_is_one_clear_message(project, target):
    assert_clear(snakemake(project, "-n", target), TARGETS[target])


def assert_clear(result, words):
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def test_typo_in_a_study_fails_the_dry_run(project):
    # A package of its own, since the mistake is in its data.
    package = copy_of_the_package(project / "src")
    path = package / "studies/two_spirals/study.yaml"
    path.write_text(path.read_text().replace("learning_rate:", "learning_rat:"))
    result = snakemake(project, "-n", package=package.parent)
    assert_clear(result, ["study.yaml", "learning_rat", "did you mean 'learning_rate'"])


@pytest.mark.parametrize("name", ["results", "figures"])
def test_unwritable_output_is_said_before_training(project, name):
    shutil.rmtree(project / name, ignore_errors=True)
    (project / name).write_text("in the way")
    assert_clear(snakemake(project, "all", *SMOKE), [f"{name}/ cannot be written"])


def slow_config(folder):
    """Return a configuration that trains for a few seconds, whatever the machine."""
    config = json.loads(
        command(folder, "config", "two_spirals", "depth", "depth10", "--scale", "smoke").stdout
    )
    config["settings"] |= {"steps": 1500, "n_train": [256], "probes": 30}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def trainer(folder, config, output):
    return subprocess.Popen(
        [sys.executable, "-m", "resnet_limits.cli", "train", "--config", config, "--output", output]
        + ["--checkpoint-seconds", "0.01"],
        cwd=folder,
        env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def image_config(folder):
    """Return a configuration that trains an image network for a few seconds."""
    arguments = ("sorted_tau", "resnet20", "resnet20_sorted_tau_seed0", "--scale", "smoke")
    config = json.loads(command(folder, "config", *arguments).stdout)
    config["settings"] |= {"epochs": 12, "schedule": {"kind": "cosine"}}
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(("configure", "kills"), [(slow_config, 2), (image_config, 5)])
def test_killed_training_ends_with_the_numbers_of_an_undisturbed_one(tmp_path, configure, kills):
    config = configure(tmp_path)
    assert trainer(tmp_path, config, "whole").wait() == 0
    moments = random.Random(0)
    for _ in range(kills):
        process = trainer(tmp_path, config, "killed")
        checkpoint = tmp_path / "killed/checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        wait_for(lambda: checkpoint.exists() and checkpoint.stat().st_mtime_ns > before)  # noqa: B023
        time.sleep(moments.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed/record.json").exists()
    assert trainer(tmp_path, config, "killed").wait() == 0
    whole, killed = (
        json.loads((tmp_path / name / "record.json").read_text()) for name in ("whole", "killed")
    )
    assert killed["timing"]["resumed"] >= 1
    assert killed["files"] == whole["files"]
    assert killed["outcome"] == whole["outcome"]


def test_a_run_that_finished_after_snakemake_was_killed_is_kept(project):
    """Kill Snakemake alone, let its trainer finish, recover as docs/running.md says."""
    target = str(RUN / "record.json")
    arguments = [sys.executable, "-m", "snakemake", "--cores", "1", target, *SMOKE]
    process = subprocess.Popen(arguments, cwd=project, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for((project / RUN / ".lock").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for((project / target).exists)
    finished = (project / target).read_bytes()
    snakemake(project, "--unlock", *SMOKE)
    result = snakemake(project, target, *SMOKE, "--rerun-incomplete")
    assert result.returncode == 0, result.stderr
    assert jobs(result) == ["train"]  # which Snakemake takes it for
    assert (project / target).read_bytes() == finished


def test_killed_snakemake_and_its_orphan(project, smoke):
    """Kill Snakemake alone: its trainer lives on, and a rerun waits for it or continues it."""
    arguments = [
        sys.executable,
        "-m",
        "snakemake",
        "--cores",
        "1",
        str(RUN / "record.json"),
        *SMOKE,
    ]
    process = subprocess.Popen(arguments, cwd=project, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for((project / RUN / ".lock").exists)
    process.send_signal(signal.SIGKILL)
    process.wait()
    snakemake(project, "--unlock", *SMOKE)
    result = snakemake(project, str(RUN / "record.json"), *SMOKE, "--rerun-incomplete")
    assert result.returncode == 0, result.stderr
    rerun, undisturbed = (
        json.loads((folder / RUN / "record.json").read_text()) for folder in (project, smoke)
    )
    assert rerun["files"] == undisturbed["files"]


PAPER_RUN = "results/paper/sorted_tau/resnet20/resnet20_vanilla_seed0/record.json"


def test_a_training_waits_for_its_data_set(project):
    assert planned(project, PAPER_RUN) == {"data_set", "train"}
    stamp = project / "results/data/cifar10.json"
    stamp.parent.mkdir(parents=True)
    stamp.write_text("{}")
    assert planned(project, PAPER_RUN) == {"train"}


def test_a_record_from_elsewhere_needs_no_data(project):
    for name in ("record.json", "metrics.csv"):
        path = project / PAPER_RUN.replace("record.json", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("copied")
    assert planned(project, PAPER_RUN) == set()
    os.utime(project / PAPER_RUN, (0, 0))  # as copies that keep their times
    (project / "results/data").mkdir()
    (project / "results/data/cifar10.json").write_text("{}")
    assert planned(project, PAPER_RUN) == set()


def test_a_cluster_gets_trainings_alone():
    files = [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]
    text = "\n".join(path.read_text() for path in files)
    rules = set(re.findall(r"^rule (\w+):", text, flags=re.MULTILINE))
    (local,) = re.findall(r"^localrules:\n((?:    \w+,\n)+)", text, flags=re.MULTILINE)
    assert rules - set(re.findall(r"\w+", local)) == {"train"}


def test_another_workflow_can_use_this_one_as_a_module(tmp_path):
    """As `snakedeploy deploy-workflow` writes it."""
    (tmp_path / "Snakefile").write_text(
        f"module replications:\n    snakefile: {str(ROOT / 'Snakefile')!r}\n    config: config\n"
        "use rule * from replications\n"
    )
    figure = "figures/smoke/two_spirals/start.png"
    assert planned(tmp_path, figure) == {"train", "table", "plot"}
    assert_clear(snakemake(tmp_path, "-n", "--config", "scale=papr"), ["did you mean 'paper'"])


def test_data_that_cannot_be_had_is_one_clear_message(project):
    """The data root cannot be written, so that no download is tried."""
    (project / "in_the_way").write_text("")
    result = snakemake(project, "data", "--config", "scale=paper", "data_root=in_the_way")
    assert_clear(result, ["in_the_way", "data_root"])
    assert not list((project / "results/data").glob("*.json"))


def test_scales_without_image_files_fetch_nothing(project):
    for scale in ("smoke", "quick", "recorded"):
        assert planned(project, "data", "--config", f"scale={scale}") == {"data"}


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cpu", 0)])
def test_image_trainings_ask_for_a_gpu_where_one_is_wanted(project, device, gpus):
    (project / "results/data").mkdir(parents=True)
    (project / "results/data/cifar10.json").write_text("{}")
    result = snakemake(project, "-n", PAPER_RUN, "--config", f"device={device}")
    assert f"gpu={gpus}," in result.stdout + result.stderr


def test_progress_shows_what_is_under_way(tmp_path):
    config, output = slow_config(tmp_path), "results/smoke/two_spirals/depth/depth10"
    process = trainer(tmp_path, config, output)
    try:
        wait_for(lambda: (tmp_path / output / "checkpoint.pt").exists())
        said = command(tmp_path, "progress").stdout
    finally:
        process.kill()
        process.wait()
    assert re.search(r"smoke/two_spirals/depth/depth10  step \d+/1500 .* left .* train_loss", said)


def test_tables_refuse_a_record_of_another_configuration(smoke):
    other = smoke / "other"
    shutil.copytree(smoke / "results", other / "results")
    target = other / RUN
    shutil.rmtree(target)
    shutil.copytree(other / "results/smoke/two_spirals/rate/removed", target)
    result = command(other, "table", "two_spirals", "final", "--scale", "smoke")
    assert result.returncode == 2
    assert f"{RUN}/record.json: record of another configuration" in result.stderr
    assert "field is removed, the study asks for constant" in result.stderr
