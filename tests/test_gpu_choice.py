"""Trainings spread over the GPUs of a machine, none of which is needed here."""

from __future__ import annotations

import os
import tempfile

import pytest

from resnet_limits import devices


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that starts a training on a machine, and says which GPU it got."""
    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    monkeypatch.setattr(devices, "_held", [])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "nvidiactl").touch()

    def start(gpus, allowed=None):
        for index in range(gpus):
            (tmp_path / f"nvidia{index}").touch()
        monkeypatch.delenv(devices.VISIBLE, raising=False)
        if allowed is not None:
            monkeypatch.setenv(devices.VISIBLE, allowed)
        devices.settle_on_one_gpu()
        return os.environ.get(devices.VISIBLE)

    yield start
    for lock in devices._held:
        lock.close()


def test_each_training_gets_the_gpu_with_the_fewest(machine):
    assert [machine(3) for _ in range(5)] == ["0", "1", "2", "0", "1"]
    devices._held[1].close()  # the second training has ended
    assert [machine(3) for _ in range(3)] == ["1", "2", "0"]


def test_only_gpus_that_are_allowed_are_taken(machine):
    assert [machine(8, "5,GPU-a") for _ in range(3)] == ["5", "GPU-a", "5"]


@pytest.mark.parametrize(("gpus", "allowed"), [(0, None), (1, None), (4, "2"), (4, "")])
def test_where_there_is_no_choice_nothing_changes(machine, gpus, allowed):
    assert machine(gpus, allowed) == allowed
    assert not devices._held
