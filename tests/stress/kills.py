"""Kills: inside writes, of trainers, and of Snakemake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from resnet_limits.analysis import make_table
from resnet_limits.archive import record
from resnet_limits.claims import judge_study
from resnet_limits.drawing import draw_figure
from resnet_limits.layout import Layout
from resnet_limits.report import write_report
from resnet_limits.runs import read_record
from resnet_limits.spec import load_study
from resnet_limits.train import train
from tests.faults import killed, operations
from tests.stress.cases import (
    CPU,
    Campaign,
    quietly,
    require,
    require_same,
    run_forked,
    runs,
    training,
)  # fmt: skip

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
}


def inside(campaign: Campaign) -> None:
    """Kill inside writes: half of the cases while training, half in what follows."""
    _inside_trainings(campaign, campaign.count - campaign.count // 2)
    _inside_analysis(campaign, campaign.count // 2)


def _inside_trainings(campaign: Campaign, count: int) -> None:
    whole = {}
    for index, config in zip(range(count), cycle(runs())):
        name = f"{config.key}"
        if name not in whole:
            folder = campaign.fresh(f"whole{index}")
            whole[name] = folder, operations(training(config, folder))
        undisturbed, total = whole[name]
        moment = campaign.draw.randrange(total)
        with campaign.case(f"{name} killed before operation {moment} of {total}"):
            folder = campaign.fresh("killed")
            require(killed(training(config, folder), moment), "was not killed")
            left = {path.name for path in folder.iterdir()}
            run_forked(training(config, folder))
            require_same(folder, undisturbed)
            if "record.json" in left:
                require(read_record(folder / "record.json").timing.resumed == 0, "trained again")


def _inside_analysis(campaign: Campaign, count: int) -> None:
    spec = load_study("two_spirals")
    start = Layout(campaign.fresh("start") / "results", campaign.folder / "start/figures")
    for config in spec.runs("smoke"):
        run_forked(quietly(lambda: train(config, start.run(config.key), CPU, 1e9)))  # noqa: B023
    whole = campaign.fresh("whole")
    shutil.copytree(campaign.folder / "start", whole, dirs_exist_ok=True)
    for action in _steps(whole):
        run_forked(action)
    totals = [operations(action) for action in _steps(whole)]
    for _ in range(count):
        number = campaign.draw.randrange(len(totals))
        moment = campaign.draw.randrange(totals[number])
        with campaign.case(f"step {number} killed before operation {moment} of {totals[number]}"):
            folder = campaign.fresh("killed")
            shutil.copytree(whole, folder, dirs_exist_ok=True)
            require(killed(_steps(folder)[number], moment), "was not killed")
            for action in _steps(folder)[number:]:
                run_forked(action)
            require_same(folder, whole)


def _steps(folder: Path) -> list[Callable[[], object]]:
    """Return what is made of the finished runs of a study, step by step."""
    spec = load_study("two_spirals")
    layout, scale = Layout(folder / "results", folder / "figures"), "smoke"
    steps: list[Callable[[], object]] = [
        *(lambda t=table: make_table(spec.name, t, scale, layout) for table in spec.tables),  # type: ignore[misc]
        *(lambda f=name: draw_figure(spec.name, f, scale, layout) for name in ("rate", "depth")),  # type: ignore[misc]
    ]
    if not (folder / "figures").exists():  # the report shows all figures
        steps += [
            lambda f=name: draw_figure(spec.name, f, scale, layout)  # type: ignore[misc]
            for name in spec.figures
        ]
    steps += [
        lambda: judge_study(spec.name, scale, layout),
        lambda: write_report([spec.name], scale, layout),
        lambda: record(spec.name, [], [], scale, layout),
    ]
    return [quietly(step) for step in steps]


def trainers(campaign: Campaign) -> None:
    """Kill real processes at random moments after their first checkpoint, or before."""
    whole: dict[str, Path] = {}
    waiting = cycle(runs())
    while campaign.cases < campaign.count:
        config = next(waiting)
        settings = config.to_json()["settings"]
        if "backend" in settings:  # here, numba too
            settings["backend"] = "auto"
        text = json.dumps({**config.to_json(), "settings": settings})
        name = f"{config.key}"
        if name not in whole:
            whole[name] = campaign.fresh(f"whole{len(whole)}")
            require(_trainer(text, whole[name]).wait() == 0, "failed undisturbed")
        folder = campaign.fresh("killed")
        for _ in range(min(2, campaign.count - campaign.cases)):
            with campaign.case(f"{name} killed"):
                _kill_after_a_checkpoint(campaign, text, folder)
        with campaign.case(f"{name} continued"):
            campaign.cases -= 1  # not a kill
            require(_trainer(text, folder).wait() == 0, "failed when continued")
            require_same(folder, whole[name])


def _kill_after_a_checkpoint(campaign: Campaign, text: str, folder: Path) -> None:
    finished = (folder / "record.json").exists()
    process = _trainer(text, folder)
    deadline = time.monotonic() + 120
    while process.poll() is None and not (folder / "progress.jsonl").exists():
        require(time.monotonic() < deadline, "took too long to start")
        time.sleep(0.01)
    time.sleep(campaign.draw.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    process.wait()
    require(not finished or (folder / "record.json").exists(), "lost a finished run")


def _trainer(config: str, folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "resnet_limits.cli", "train", "--config", config]
    command += ["--output", str(folder), "--checkpoint-seconds", "0"]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True, **options
    )


RUN = Path("results/smoke/two_spirals/rate/constant")
SMOKE = ("--config", "scale=smoke")


def snakemakes(campaign: Campaign) -> None:
    """Kill Snakemake alone, let its trainer go on, and recover as docs/running.md says."""
    whole = _project(campaign, "whole")
    target = str(RUN / "record.json")
    require(_snakemake(whole, target).wait() == 0, "failed undisturbed")
    for _ in range(campaign.count):
        wait_for_the_end = campaign.draw.random() < 0.5
        with campaign.case(f"killed; trainer {'ended' if wait_for_the_end else 'lived'}"):
            project = _project(campaign, "killed")
            process = _snakemake(project, target)
            _wait_for((project / RUN / ".lock").exists)
            time.sleep(campaign.draw.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
            process.wait()
            finished = None
            if wait_for_the_end:
                _wait_for((project / target).exists)
                finished = (project / target).read_bytes()
            require(_snakemake(project, "--unlock").wait() == 0, "cannot be unlocked")
            again = _snakemake(project, target, "--rerun-incomplete")
            require(again.wait() == 0, "cannot be run again")
            require_same(project / RUN, whole / RUN)
            kept = finished in (None, (project / target).read_bytes())
            require(kept, "lost a finished run")


def _project(campaign: Campaign, name: str) -> Path:
    folder = campaign.fresh(name)
    for part in ("workflow", "profiles", "envs"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy(ROOT / "Snakefile", folder)
    return folder


def _snakemake(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments, *SMOKE]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        require(time.monotonic() < end, "took too long")
        time.sleep(0.02)
