"""Mini-batches, schedules and resuming of networks trained on images."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnet_limits.classification import Classification, check_size, choose_precision, subset
from resnet_limits.classification_settings import ClassificationSettings, Precision
from resnet_limits.data.batches import Batches, Draw
from resnet_limits.data.images import Split, load_images
from resnet_limits.errors import UserError
from resnet_limits.settings import build
from resnet_limits.testing import assert_resumes
from tests.studies import CPU, train

SETTINGS = {
    "dataset": "digits",
    "train_images": 200,
    "size": 10,
    "batch": 64,
    "epochs": 2,
    "stop_after": 0,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "schedule": {"kind": "step", "milestones": [1], "factor": 0.1},
    "augmentation": {"pad": 2, "flip": True},
    "precision": {"cpu": "float32", "cuda": "float32"},
    "seed": 0,
}
CONSTANT = {"kind": "step", "milestones": [], "factor": 0.1}


class SmallProblem(Classification):
    """A convolution, batch norm and a linear map."""

    def build_network(self):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(self.image_channels, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, self.classes),
        )


class LinearProblem(Classification):
    def build_network(self):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(self.settings.size**2, self.classes))


def problem(kind=SmallProblem, **changes):
    return kind(build(ClassificationSettings, SETTINGS | changes, "test"), CPU)


@pytest.fixture(scope="module")
def images():
    return load_images("digits", CPU.data_root)


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
    for index in range(3):
        padded = np.zeros((12, 12, 3))
        padded[3:8, 2:9] = colored.images[draw.rows[index]]
        down, right = int(draw.down[index]), int(draw.right[index])
        crop = padded[down : down + size, right : right + size]
        crop = crop[:, ::-1] if draw.flipped[index] else crop
        wanted = (crop / 255 - mean) / std
        np.testing.assert_allclose(x[index].permute(1, 2, 0), wanted, atol=1e-5)


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
    first, again = (Draw.epoch(1000, 4, True, seed=3, epoch=7) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True)
    )
    assert torch.equal(first.rows.sort().values, torch.arange(1000))
    assert first.down.unique().tolist() == first.right.unique().tolist() == list(range(9))
    assert 0.4 < first.flipped.double().mean() < 0.6
    for seed, epoch in ((4, 7), (3, 8)):
        other = Draw.epoch(1000, 4, True, seed, epoch)
        assert not torch.equal(first.rows, other.rows)
        assert not torch.equal(first.down, other.down)


def test_without_augmentation_nothing_moves():
    draw = Draw.epoch(50, 0, False, seed=0, epoch=0)
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
    trained = problem(
        LinearProblem,
        learning_rate=1e-12,
        augmentation={"pad": 0, "flip": False},
        epochs=1,
        schedule=CONSTANT,
    )
    assert trained.steps == 4  # 200 images in batches of 64, the last of 8
    train(trained, trained.steps)
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
        train(trained, 1)
    return found


def test_step_schedule_falls_at_its_milestones():
    schedule = {"kind": "step", "milestones": [1, 2], "factor": 0.1}
    found = rates(problem(epochs=3, schedule=schedule, train_images=128))
    assert found == pytest.approx([0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005])


def test_cosine_schedule_goes_to_zero():
    found = rates(problem(schedule={"kind": "cosine"}))
    wanted = [0.05 * (1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert found == pytest.approx(wanted)


def test_a_run_that_stops_early_is_the_start_of_a_whole_one():
    runs = [problem(schedule={"kind": "cosine"}, stop_after=stop) for stop in (0, 1)]
    rate = [rates(run) for run in runs]
    assert rate[1] == rate[0][: len(rate[1])]
    assert len(rate[0]) == 2 * len(rate[1])
    assert [run.epoch_ends for run in runs] == [[0, 4, 8], [0, 4]]


def test_weight_decay_spares_what_the_network_lists():
    class SparingProblem(SmallProblem):
        def build_network(self):
            model = super().build_network()
            model.undecayed = ("1.weight",)
            return model

    decayed, spared = problem(SparingProblem).optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-3, 0.0)
    assert [parameter.shape for parameter in spared["params"]] == [(8,)]
    assert len(decayed["params"]) == 5


def test_training_lowers_loss_and_error():
    trained = problem(
        epochs=8, train_images=0, augmentation={"pad": 0, "flip": False}, schedule=CONSTANT
    )
    before = trained.measure().iloc[0]
    train(trained, trained.steps)
    after = trained.measure().iloc[0]
    assert math.isnan(before["train_loss"])
    assert after["test_loss"] < before["test_loss"] / 2
    assert after["test_error"] < before["test_error"] / 2


# Within the first epoch, at its end, and after it.
@pytest.mark.parametrize("after", [[1, 5], [3], [4]])
def test_resumed_training_ends_with_the_same_bits(tmp_path, after):
    assert_resumes(problem, tmp_path, after)


def test_checkpoints_are_due_at_the_ends_of_epochs():
    assert list(problem().milestones) == [4, 8]


def test_precision_is_chosen_per_device():
    cpu = torch.device("cpu")
    assert choose_precision(Precision(cpu="bfloat16", cuda="float32"), cpu) == "bfloat16"
    assert choose_precision(Precision(cpu="float32", cuda="bfloat16"), cpu) == "float32"
    assert choose_precision(Precision(cpu="auto", cuda="auto"), cpu) in ("float32", "bfloat16")


def test_bfloat16_computes_logits_that_are_near_and_float32():
    exact, rounded = problem(), problem(precision={"cpu": "bfloat16", "cuda": "float32"})
    assert (exact.precision, rounded.precision) == ("float32", "bfloat16")
    x, _ = exact.test_batches.plain(slice(0, 20))
    a, b = (trained.logits(x) for trained in (exact, rounded))
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert float(((a - b).norm() / a.norm()).detach()) < 0.02


def test_settings_that_do_not_fit_the_images(images):
    with pytest.raises(UserError, match="5000 asked for, digits has 1437"):
        problem(train_images=5000)
    with pytest.raises(UserError, match="7 is less than the 8 pixels of digits"):
        check_size(images, 7)
