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

from resnet_limits.spec import STUDIES, study_names

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
SMOKE = ("--config", "scale=smoke")
RUN = Path("results/smoke/two_spirals/rate/constant")


def snakemake(folder, *arguments, timeout=600):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout
    )


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "resnet_limits.cli", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


def copy_of_the_project(folder):
    """Copy the workflow, not the results."""
    for name in ("Snakefile", "workflow", "envs", "results/recorded"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


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


def planned(folder, *arguments):
    """Names of the rules that a dry run lists."""
    result = snakemake(folder, "-n", *arguments)
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"^(?:local)?rule (\w+):", result.stdout, flags=re.MULTILINE))


def test_whole_graph_makes_report_claims_and_figures(smoke):
    page = (smoke / "results/smoke/report.html").read_text()
    assert "<script" not in page
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
    assert (
        "Test 0-1 error over the number of training points" in (smoke / "report.html").read_text()
    )


def test_recorded_scale_draws_and_never_trains(smoke):
    result = command(smoke, "record", "two_spirals", "--scale", "smoke", "--force")
    assert result.returncode == 0, result.stderr
    figure = "figures/recorded/two_spirals/rate.png"
    assert jobs(snakemake(smoke, figure, "--forceall")) == ["plot"]
    result = snakemake(smoke, "all", "--config", "scale=recorded", "studies=[two_spirals]")
    assert result.returncode == 0, result.stderr
    assert set(jobs(result)) <= {"plot", "report_page", "all"}
    assert "Recorded from scale smoke" in (smoke / "results/recorded/report.html").read_text()


def test_recording_does_not_replace_another_scale(smoke):
    command(smoke, "record", "two_spirals", "--scale", "smoke", "--force")
    manifest = smoke / "results/recorded/two_spirals/manifest.json"
    manifest.write_text(manifest.read_text().replace('"smoke"', '"paper"'))
    result = command(smoke, "record", "two_spirals", "--scale", "smoke")
    assert result.returncode == 2
    assert "scale paper is recorded; to replace it add --force" in result.stderr


def test_editing_claims_or_plots_makes_their_results_again(smoke):
    package = smoke / "edited"
    shutil.copytree(ROOT / "src", package, ignore=shutil.ignore_patterns("*.egg-info"))
    study = package / "resnet_limits/studies/two_spirals"
    for name, rules in (("claims.yaml", {"judge", "report_page"}), ("plots.py", {"plot"})):
        (study / name).write_text((study / name).read_text() + "\n# edited\n")
        result = subprocess.run(
            [sys.executable, "-m", "snakemake", "-n", "all", *SMOKE, "studies=[two_spirals]"],
            cwd=smoke,
            env=ENVIRONMENT | {"PYTHONPATH": str(package)},
            capture_output=True,
            text=True,
        )
        found = re.findall(r"^rule (\w+):", result.stdout, flags=re.MULTILINE)
        assert rules <= set(found), result.stdout
        assert "train" not in found


def test_a_failed_job_says_why_on_the_console(smoke):
    path = smoke / RUN / "record.json"
    content = path.read_text()
    path.write_text(content[:200])
    result = snakemake(smoke, "results/smoke/two_spirals/tables/final.csv", "--force", *SMOKE)
    path.write_text(content)
    assert result.returncode != 0
    assert "not a whole record" in result.stderr


def test_missing_or_changed_recorded_file_is_named(smoke):
    command(smoke, "record", "two_spirals", "--scale", "smoke", "--force")
    table = smoke / "results/recorded/two_spirals/tables/errors.csv"
    content = table.read_text()
    table.unlink()
    result = snakemake(smoke, "figures/recorded/two_spirals/rate.png", "--forceall")
    assert result.returncode != 0
    assert "errors.csv" in result.stderr
    assert "MissingInputException" in result.stderr
    table.write_text(content.replace("0", "1", 1))
    result = command(smoke, "report", "two_spirals", "--scale", "recorded")
    assert result.returncode == 2
    assert "errors.csv: missing, or not as it was recorded" in result.stderr


def test_damaged_record_loses_nothing_else(smoke):
    path = smoke / RUN / "record.json"
    content = path.read_text()
    path.write_text(content[:200])
    result = command(smoke, "table", "two_spirals", "final", "--scale", "smoke")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"{RUN}/record.json: not a whole record" in result.stderr
    remedy = re.search(r"snakemake --cores 1 (--force .*record.json)", result.stderr).group(1)
    result = snakemake(smoke, *remedy.split(), *SMOKE)
    assert result.returncode == 0, result.stderr
    assert jobs(result) == ["train"]
    old, new = json.loads(content), json.loads(path.read_text())
    assert new["files"] == old["files"]  # the same numbers, to the last digit


MISTAKES = {
    "unknown scale": (["scale=papr"], ["scale", "'papr'", "did you mean 'paper'"]),
    "unknown key": (["scal=smoke"], ["scal: unknown key", "did you mean 'scale'"]),
    "wrong type": (["studies=two_spirals"], ["studies", "'two_spirals'", "list of studies"]),
    "no study": (["studies=[]"], ["studies", "list of studies"]),
    "study with a typo": (["studies=[two_spirls]"], ["two_spirls", "did you mean 'two_spirals'"]),
    "unknown device": (["device=gpu"], ["device", "'gpu'", "cuda"]),
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
    package = project / "src"
    shutil.copytree(ROOT / "src", package, ignore=shutil.ignore_patterns("*.egg-info"))
    path = package / "resnet_limits/studies/two_spirals/study.yaml"
    path.write_text(path.read_text().replace("learning_rate:", "learning_rat:"))
    result = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n"],
        cwd=project,
        env=ENVIRONMENT | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
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
    shutil.copytree(other / "results/smoke/two_spirals/rate/per_step", target)
    result = command(other, "table", "two_spirals", "final", "--scale", "smoke")
    assert result.returncode == 2
    assert f"{RUN}/record.json: record of another configuration" in result.stderr
    assert "field is per_step, the study asks for constant" in result.stderr
