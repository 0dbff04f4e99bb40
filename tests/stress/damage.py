"""Damaged files, and settings that make no sense."""

from __future__ import annotations

import io
import json
import resource
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from resnet_limits.checkpoint import Checkpoint, read_marks
from resnet_limits.data.images import load_images
from resnet_limits.errors import UserError
from resnet_limits.layout import Layout
from resnet_limits.settings import to_json
from resnet_limits.spec import load_study, study_names
from resnet_limits.train import fit, read_config
from tests.faults import forked, killed, operations
from tests.problems import CONFIG, SOURCES, Quadratic
from tests.stress.cases import (
    CPU,
    Campaign,
    command,
    contents,
    quietly,
    require,
    require_one_line,
    run_forked,
    train,
)  # fmt: skip

BLOCK = 512
MEMORY = 2**30  # more than an archive may ever take


def damages(campaign: Campaign) -> None:
    """Damage checkpoints, results and image archives: two fifths, two fifths and one fifth."""
    count = campaign.count
    _checkpoints(campaign, 2 * count // 5)
    _results(campaign, 2 * count // 5)
    _images(campaign, count - 2 * (2 * count // 5))


def harm(content: bytes, draw: Random) -> bytes:
    """Cut, flip a bit, zero a block, repeat a block, insert junk, or leave nothing."""
    place = draw.randrange(len(content))
    block = content[place : place + BLOCK]
    harms: list[Callable[[], bytes]] = [
        lambda: content[:place],
        lambda: content[: place // BLOCK * BLOCK],
        lambda: flipped(content, place, draw.randrange(8)),
        lambda: content[:place] + bytes(len(block)) + content[place + len(block) :],
        lambda: content[:place] + block + content[place:],
        lambda: content[:place] + draw.randbytes(8) + content[place:],
        lambda: draw.randbytes(len(content)),
        lambda: b"",
    ]
    return draw.choice(harms)()


def flipped(content: bytes, place: int, bit: int) -> bytes:
    """Return bytes of which one bit is another."""
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def _checkpoints(campaign: Campaign, count: int) -> None:
    folder = campaign.fresh("checkpoint")
    action = quietly(lambda: fit(Quadratic(), CONFIG, SOURCES, folder, -1))
    run_forked(action)
    undisturbed = (folder / "metrics.csv").read_bytes()
    campaign.fresh("checkpoint")
    total = operations(action)
    campaign.fresh("checkpoint")
    require(killed(action, total // 2), "was not killed")
    path = folder / "checkpoint.pt"
    whole, problem = path.read_bytes(), Quadratic()
    cuts = [whole[:cut] for cut in range(0, len(whole), BLOCK)]
    for number in range(count):
        if number < min(len(cuts), count // 2):
            what, content = f"cut at block {number}", cuts[number]
        else:
            place, bit = campaign.draw.randrange(len(whole)), campaign.draw.randrange(8)
            what, content = f"bit {bit} of byte {place}", flipped(whole, place, bit)
        with campaign.case(f"checkpoint: {what}"):
            path.write_bytes(content)
            marks = read_marks(path) or {"any": 1}
            restored = quietly(lambda: Checkpoint(path, marks, problem).restore(dict))()  # noqa: B023
            require(restored is None, "a damaged checkpoint was continued")
            require(not path.exists(), "a damaged checkpoint was left")
    with campaign.case("a run whose checkpoint is damaged"):
        campaign.cases -= 1  # not a file more
        path.write_bytes(whole[: len(whole) // 2])
        run_forked(action)
        require((folder / "metrics.csv").read_bytes() == undisturbed, "differing results")


def _results(campaign: Campaign, count: int) -> None:
    """Damage one file of a finished study and ask for what is made of it."""
    spec, whole = load_study("two_spirals"), campaign.fresh("finished")
    layout = Layout(whole / "results", whole / "figures")
    for config in spec.runs("smoke"):
        run_forked(quietly(lambda: train(config, layout.run(config.key), CPU, 1e9)))  # noqa: B023
    log = campaign.folder / "log"
    for arguments in _commands(whole):
        require(command(arguments, log).status == 0, log.read_text())
    undisturbed = contents(whole)
    victims = [
        path
        for pattern in ("*/record.json", "*.csv", "*.csv.xz", "*.sha256", "claims.json", "manif*")
        for path in sorted((whole / "results").rglob(pattern))
    ]
    for _ in range(count):
        victim = campaign.draw.choice(victims).relative_to(whole)
        folder = campaign.fresh("damaged")
        shutil.copytree(whole, folder, dirs_exist_ok=True)
        before = (folder / victim).read_bytes()
        after = harm(before, campaign.draw)
        (folder / victim).write_bytes(after)
        for arguments in _commands(folder):
            name = " ".join(map(str, arguments[:3]))
            with campaign.case(f"{victim} damaged, {name}"):
                campaign.cases -= 1
                answer = command(arguments, log)
                if answer.status == 0:
                    _require_nothing_wrong(folder, undisturbed, victim, after)
                else:
                    require_one_line(answer)
        campaign.cases += 1


def _require_nothing_wrong(
    folder: Path, undisturbed: dict[str, bytes], victim: Path, after: bytes
) -> None:
    """A command may succeed if it has not read the damaged file, or has made it anew."""
    found = contents(folder)
    if found.get(str(victim)) == after:
        found[str(victim)] = undisturbed[str(victim)]
    differing = [name for name in undisturbed if found.get(name) != undisturbed[name]]
    require(not differing, f"differing results {differing}")


def _commands(folder: Path) -> list[list[Any]]:
    results, figures = ["--results", folder / "results"], ["--figures", folder / "figures"]
    spec, scale = load_study("two_spirals"), ["--scale", "smoke"]
    return [
        ["table", spec.name, "final", *results, *scale],
        ["table", spec.name, "depths", *results, *scale],
        ["table", spec.name, "depth_errors", *results, *scale],
        ["plot", spec.name, "depth", *results, *figures, *scale],
        ["record", spec.name, *results, *scale],
        ["table", spec.name, "depths", *results, "--scale", "recorded"],
    ]


def _images(campaign: Campaign, count: int) -> None:
    """Damage a zip of images, and read it within a bounded memory."""
    root = campaign.fresh("images")
    whole = _zip_of_images(campaign.draw)
    for _ in range(count):
        content = harm(whole, campaign.draw)
        with campaign.case(f"a zip of {len(content)} bytes"):
            campaign.fresh("images")
            (root / "mnist.zip").write_bytes(content)
            require(forked(lambda: _read(root)) == 0, "neither read nor refused in one line")
            left = sorted(path.name for path in root.rglob(".*") if path.suffix != ".lock")
            require(left in ([], [".lock"]), f"stray files {left}")


def _read(root: Path) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    try:
        quietly(lambda: load_images("mnist", root))()
    except UserError as error:
        require(str(error).count("\n") == 0, f"{error}")


def _zip_of_images(draw: Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, each in (("train", 2), ("test", 1)):
            for label in range(10):
                for number in range(each):
                    pixels = np.frombuffer(draw.randbytes(28 * 28), dtype=np.uint8)
                    image = io.BytesIO()
                    Image.fromarray(pixels.reshape(28, 28)).save(image, "PNG")
                    archive.writestr(f"{split}/{label}/{number}.png", image.getvalue())
    return buffer.getvalue()


VALUES: tuple[Any, ...] = (
    None, True, "", "x", "nan", [], {}, [[]], [None], -1, 0, 1, 2, 0.5, -0.5, 1e308, 5e-324, 1e18,
    10**9, 10**15, 10**40, [0, 0], [1, 1.0], ["a"], {"kind": "step"}, {"a": {"b": []}},
)  # fmt: skip


def inputs(campaign: Campaign) -> None:
    """Replace a setting of a run; it is refused in one line, or is a configuration."""
    configs = [config for name in study_names() for config in load_study(name).runs("smoke")]
    for _ in range(campaign.count):
        config = campaign.draw.choice(configs)
        settings = to_json(config.settings)
        name = campaign.draw.choice(sorted(settings))
        settings[name] = campaign.draw.choice(VALUES)
        text = json.dumps({**config.to_json(), "settings": settings})
        with campaign.case(f"{config.key}: {name}: {settings[name]!r}"):
            try:
                needed = read_config(text).largest_need[1]
                require(needed >= 0, f"needs {needed} bytes")
            except UserError as error:
                require(str(error).count("\n") == 0 and "settings" in str(error), f"{error}")
