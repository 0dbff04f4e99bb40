"""Mini-batches, schedules and resuming of networks trained on images."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from resnet_limits.record import read_record
from torch import nn
from torch.nn import functional as F

from resnet_limits.classification import Classification, choose_precision, subset
from resnet_limits.data.batches import Batches, Draw
from resnet_limits.data.images import Split, load_images
from resnet_limits.errors import UserError
from resnet_limits.spec import load_study
from resnet_limits.train import Context, fit

CPU = Context(torch.device("cpu"), Path("data"))
SETTINGS = {
    "dataset": "digits",
    "train_images": 200,
    "size": 10,
    "batch": 64,
    "epochs": 2,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "schedule": {"kind": "step", "milestones": [1], "factor": 0.1},
    "augmentation": {"pad": 2, "flip": True},
    "precision": {"cpu": "float32", "cuda": "float32"},
    "seed": 0,
}


def network(images, _size):
    channels = images.train.images.shape[-1]
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, len(images.classes)),
    )


def problem(build=network, **changes):
    return Classification(SimpleNamespace(**{**SETTINGS, **changes}), CPU, build)


@pytest.fixture(scope="module")
def images():
    return load_images("digits", Path("data"))


@pytest.fixture
def colored():
    """Random images of another height than width, three channels."""
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8)
    return Split(pixels, np.arange(6))


def test_augmented_batches_are_padded_cropped_flipped_and_normalized(colored):
    mean, std, pad, size = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7), 2, 8
    batches = Batches(colored, mean, std, size, pad, torch.device("cpu"))
    draw = Draw(
        torch.tensor([4, 0, 2]),
        torch.tensor([0, 2, 4]),
        torch.tensor([1, 2, 3]),
        torch.tensor([True, False, True]),
    )
    x, y = batches.augmented(draw)
    assert y.tolist() == [4, 0, 2]
    assert x.is_contiguous(memory_format=torch.channels_last)
    for place in range(3):
        padded = np.zeros((12, 12, 3))
        padded[3:8, 2:9] = colored.images[draw.rows[place]]
        down, right = int(draw.down[place]), int(draw.right[place])
        crop = padded[down : down + size, right : right + size]
        crop = crop[:, ::-1] if draw.flipped[place] else crop
        wanted = (crop / 255 - mean) / std
        np.testing.assert_allclose(x[place].permute(1, 2, 0), wanted, atol=1e-5)


def test_plain_batches_are_the_middle_crop(colored):
    batches = Batches(colored, (0.5,) * 3, (0.25,) * 3, 8, 3, torch.device("cpu"))
    middle, no = torch.full((4,), 3), torch.zeros(4, dtype=torch.bool)
    x, y = batches.augmented(Draw(torch.arange(1, 5), middle, middle, no))
    plain, labels = batches.plain(slice(1, 5))
    assert torch.equal(x, plain) and torch.equal(y, labels)


def test_training_images_have_mean_zero_and_variance_one(images):
    batches = Batches(images.train, images.mean, images.std, 8, 0, torch.device("cpu"))
    x, _ = batches.plain(slice(None))
    assert abs(float(x.mean())) < 1e-4
    assert abs(float(x.std()) - 1) < 1e-3


def test_an_epochs_draw_depends_on_seed_and_epoch_alone():
    augmentation = {"pad": 4, "flip": True}
    first, again = (Draw.epoch(1000, augmentation, 3, 7) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True)
    )
    assert torch.equal(first.rows.sort().values, torch.arange(1000))
    assert first.down.unique().tolist() == first.right.unique().tolist() == list(range(9))
    assert 0.4 < first.flipped.double().mean() < 0.6
    for other in (Draw.epoch(1000, augmentation, 4, 7), Draw.epoch(1000, augmentation, 3, 8)):
        assert not torch.equal(first.rows, other.rows)
        assert not torch.equal(first.down, other.down)


def test_without_augmentation_nothing_moves():
    draw = Draw.epoch(50, {"pad": 0, "flip": False}, 0, 0)
    assert not draw.flipped.any() and not draw.down.any() and not draw.right.any()


def test_a_subset_has_all_classes_alike_and_is_the_same_for_every_seed(images):
    chosen = subset(images, 104)
    counts = np.bincount(chosen.labels)
    assert counts.sum() == 104 and set(counts) == {10, 11}
    assert np.array_equal(subset(images, 104).images, chosen.images)
    larger = {image.tobytes() for image in subset(images, 300).images}
    assert all(image.tobytes() in larger for image in chosen.images)
    assert subset(images, 0) is images.train


def test_epochs_pass_over_every_image_once_and_average_over_all_of_them():
    # At a vanishing rate the epoch's mean loss is that of the network as it stands.
    settings = {"learning_rate": 1e-12, "augmentation": {"pad": 0, "flip": False}, "epochs": 1}

    def linear(images, size):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(size * size, len(images.classes)))

    trained = problem(linear, **settings)
    assert trained.steps == 4  # 200 images in batches of 64, the last of 8
    for _ in range(trained.steps):
        trained.step()
        trained.optimizer.step()
    row = trained.measure().iloc[0]
    x, y = trained.train_batches.plain(slice(None))
    with torch.no_grad():
        logits = trained.network(x)
    assert row["train_loss"] == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert row["train_error"] == pytest.approx(100 * float((logits.argmax(1) != y).double().mean()))


def test_evaluation_covers_the_whole_test_set():
    trained = problem()
    loss, error = trained.evaluate()
    x, y = trained.test_batches.plain(slice(None))
    with torch.no_grad():
        logits = trained.network.eval()(x)
    assert loss == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-5)
    assert error == pytest.approx(100 * float((logits.argmax(1) != y).double().mean()))


def rates(trained):
    found = []
    for _ in range(trained.steps):
        found.append(trained.optimizer.param_groups[0]["lr"])
        trained.step()
        trained.optimizer.step()
        trained.scheduler.step()
    return found


def test_step_schedule_falls_at_its_milestones():
    schedule = {"kind": "step", "milestones": [1, 2], "factor": 0.1}
    found = rates(problem(epochs=3, schedule=schedule, train_images=128))
    assert found == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])


def test_cosine_schedule_goes_to_zero():
    found = rates(problem(schedule={"kind": "cosine"}))
    wanted = [0.05 * (1 + math.cos(math.pi * place / 8)) / 2 for place in range(8)]
    assert found == pytest.approx(wanted)


def test_weight_decay_spares_what_the_network_lists():
    def build(images, size):
        model = network(images, size)
        model.undecayed = ("1.weight",)
        return model

    decayed, spared = problem(build).optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-3, 0.0)
    assert [parameter.shape for parameter in spared["params"]] == [(8,)]
    assert len(decayed["params"]) == 5


def test_training_lowers_loss_and_error():
    trained = problem(epochs=8, train_images=0, augmentation={"pad": 0, "flip": False})
    before = trained.measure().iloc[0]
    for _ in range(trained.steps):
        trained.step()
        trained.optimizer.step()
    after = trained.measure().iloc[0]
    assert math.isnan(before["train_loss"])
    assert after["test_loss"] < before["test_loss"] / 2
    assert after["test_error"] < before["test_error"] / 2


class Interrupted(Classification):
    """Stops after some steps, as if killed."""

    def __init__(self, stop):
        super().__init__(SimpleNamespace(**SETTINGS), CPU, network)
        self.left = stop

    def step(self):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().step()


@pytest.mark.parametrize(("stops", "seconds"), [([1, 4], -1), ([3, 3], -1), ([5], 1e9)])
def test_resumed_training_ends_with_the_same_bits(tmp_path, stops, seconds):
    config = load_study("two_spirals").run("smoke", "depth", "depth10")
    fit(problem(), config, tmp_path / "whole", 1e9)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            fit(Interrupted(stop), config, tmp_path / "broken", seconds)
    fit(problem(), config, tmp_path / "broken", seconds)
    record = read_record(tmp_path / "broken/record.json")
    # Without checkpoints by time, the one from the end of the first epoch is there.
    assert record["timing"]["resumed"] == len(stops)
    assert record["provenance"]["precision"] == "float32"
    for name in ("metrics.csv",):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_precision_is_chosen_per_device():
    cpu = torch.device("cpu")
    assert choose_precision({"cpu": "bfloat16", "cuda": "float32"}, cpu) == "bfloat16"
    assert choose_precision({"cpu": "float32", "cuda": "bfloat16"}, cpu) == "float32"
    assert choose_precision({"cpu": "auto", "cuda": "auto"}, cpu) in ("float32", "bfloat16")


def test_bfloat16_computes_logits_that_are_near_and_float32():
    exact, rounded = problem(), problem(precision={"cpu": "bfloat16", "cuda": "float32"})
    x, _ = exact.test_batches.plain(slice(0, 20))
    a, b = (trained.logits(x) for trained in (exact, rounded))
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert float(((a - b).norm() / a.norm()).detach()) < 0.02


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": 5000}, "5000 asked for, digits has 1437"),
        ({"size": 7}, "7 is less than the 8 pixels of digits"),
    ],
)
def test_settings_that_do_not_fit_the_images(changes, message):
    with pytest.raises(UserError, match=message):
        problem(**changes)
