"""A problem that breaks its contract ends with one line that says what to do."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from resnet_limits.contract import Contract, training_state
from resnet_limits.errors import UserError
from resnet_limits.problem import Probe
from resnet_limits.runs import read_record
from resnet_limits.testing import assert_resumes
from resnet_limits.train import fit
from tests.problems import CONFIG, SOURCES, Quadratic

pytestmark = pytest.mark.filterwarnings("error")


class Broken(Quadratic):
    """A quadratic with a mistake in its attributes, in a step or in its losses."""

    def __init__(self, setup, step, losses):
        super().__init__(steps=3)
        setup(self)
        self.mistake = lambda: step(self)
        self.wrong = losses

    def loss_and_grad(self):
        losses = super().loss_and_grad()
        self.mistake()
        return self.wrong(losses)


def sets(**values):
    """Return a setup that sets attributes."""
    return lambda problem: vars(problem).update(values)


def probes(*named):
    """Return a setup with probes of these names and steps."""
    return lambda p: setattr(p, "probes", [Probe(*pair, p.measure) for pair in named])


def measuring(frame):
    """Return a setup whose probe returns this."""
    return sets(probes=[Probe("metrics", [0], lambda: frame)])


def column(values):
    return measuring(pd.DataFrame({"when": values}))


DESCRIPTIONS = {
    "no optimizer": (lambda p: delattr(p, "optimizer"), "lacks the attribute 'optimizer': set it"),
    "no data": (lambda p: delattr(p, "data"), "lacks the attribute 'data': set it"),
    "no metrics": (probes(("loss", [0])), "no probe called 'metrics', .* add one"),
    "no probes": (sets(probes=[]), "no probe called 'metrics', .* add one"),
    "twice": (probes(("metrics", [0]), ("metrics", [1])), "two probes called 'metrics': rename"),
    "too late": (probes(("metrics", [0, 4])), "probe 'metrics' needs steps from 0 to 3"),
    "too early": (probes(("metrics", [-1, 2])), "probe 'metrics' needs steps from 0 to 3"),
    "never": (probes(("metrics", [0]), ("gram", [])), "probe 'gram' needs steps from 0 to 3"),
    "no members": (sets(members=[]), "no members: a run of one network has one"),
    "odd member": (sets(members=[{"seed": np.int64(1)}]), "'seed' is of type int64: give a number"),
    "rows": (measuring([1.0]), "probe 'metrics' returned list, not a DataFrame"),
    "step": (measuring(pd.DataFrame({"step": [1]})), "second column 'step': rename it"),
    "column twice": (
        measuring(pd.DataFrame([[1, 2]], columns=["x", "x"])),
        "second column 'x': rename it",
    ),
    "dates": (column(pd.to_datetime(["2020-01-01"])), "column 'when' of type datetime64"),
    "objects": (column([torch.ones(1)]), "column 'when' of type Tensor: make its values numbers"),
    "absent": (column(pd.array([True, None])), "column 'when' of type NAType"),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_a_wrong_description_is_named_with_a_remedy(tmp_path, case):
    setup, words = DESCRIPTIONS[case]
    refuses(tmp_path, words, setup)


def refuses(folder, words, setup=lambda _: None, step=lambda _: None, losses=lambda x: x):
    problem = Broken(setup, step, losses)
    with pytest.raises(UserError, match=rf"Broken: .*{words}") as caught:
        fit(problem, CONFIG, SOURCES, folder, checkpoint_seconds=-1)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert not (folder / "record.json").exists()


LOSSES = {
    "scalar": (lambda x: x.sum(), r"loss_and_grad\(\) returned \(\), .* shape \(3,\): return"),
    "too many": (lambda x: x.repeat(2), r"returned \(6,\), not a tensor of shape \(3,\)"),
    "number": (lambda _: 1.0, r"returned float, not a tensor of shape \(3,\)"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_losses_of_another_shape_are_refused(tmp_path, case):
    losses, words = LOSSES[case]
    refuses(tmp_path, words, losses=losses)


def test_a_step_without_gradient_is_refused(tmp_path):
    words = r"loss_and_grad\(\) left no gradient: call loss.backward\(\)"
    refuses(tmp_path, words, step=lambda p: setattr(p.x, "grad", None))


def increment(problem):
    problem.extra_state += 1


def rebind(problem):
    problem.extra_state = problem.extra_state + 1


CHANGES = {
    "counter": (0, increment),
    "number": (0.5, increment),
    "word": ("a", lambda p: setattr(p, "extra_state", "b")),
    "rebound tensor": (torch.zeros(2), rebind),
    "tensor in place": (torch.zeros(2), increment),
    "large tensor in place": (torch.zeros(2**19), increment),
    "tensor through numpy": (torch.zeros(2), lambda p: p.extra_state.numpy().fill(1)),
    "tensor of bfloat16": (torch.zeros((), dtype=torch.bfloat16), increment),
    "tensor through data": (torch.zeros(2), lambda p: p.extra_state.data.fill_(1)),
    "array in place": (np.zeros(2), increment),
    "rebound array": (np.zeros(2), rebind),
    "list that grows": ([], lambda p: p.extra_state.append(1)),
    "list that shrinks": ([1, 2], lambda p: p.extra_state.pop()),
    "dict": ({"a": 1}, lambda p: p.extra_state.update(a=2)),
    "tensor in a dict": ({"a": torch.zeros(2)}, lambda p: p.extra_state["a"].add_(1)),
    "set": ({1}, lambda p: p.extra_state.add(2)),
    "iterator": (iter(range(9)), lambda p: next(p.extra_state)),
    "numpy's generator": (np.random.default_rng(0), lambda p: p.extra_state.normal()),
    "python's generator": (random.Random(0), lambda p: p.extra_state.random()),
    "attribute that goes": (1, lambda p: vars(p).pop("extra_state", None)),
    "attribute that comes": (None, lambda p: setattr(p, "other", 1)),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_attribute_that_changes_unseen_is_refused(tmp_path, case):
    value, step = CHANGES[case]
    words = (
        r"the attribute '(extra_state|other)[.\w]*' changes while training, .*list it in `state`"
    )
    refuses(tmp_path, words, sets(extra_state=value), step)


def test_a_change_after_the_first_step_is_refused_at_the_next_checkpoint(tmp_path):
    def step(problem):
        problem.extra_state = int(problem.taken > 1)

    refuses(tmp_path, "the attribute 'extra_state' changes", sets(extra_state=0), step)


def test_a_probe_may_not_change_attributes_either(tmp_path):
    def setup(problem):
        problem.extra_state = 0
        plain = problem.measure
        problem.probes = [Probe("metrics", [0], lambda: (increment(problem), plain())[1])]

    refuses(tmp_path, "the attribute 'extra_state' changes", setup)


DRAWS = {
    "torch": lambda _: torch.rand(1),
    "numpy": lambda _: np.random.rand(),  # noqa: NPY002
    "python": lambda _: random.random(),
}


@pytest.mark.parametrize("source", DRAWS)
def test_global_random_numbers_are_refused(tmp_path, source):
    words = f"global generator of {source}, .*resnet_limits.random.generator"
    refuses(tmp_path, words, step=DRAWS[source])


class Honest(Quadratic):
    """Keeps state in all ways that are allowed."""

    scratch = ("cache",)

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
        self.network[0].weight.data.copy_(torch.eye(3))
        self.network[0].register_buffer("calls", torch.zeros(()), persistent=False)
        self.parts = {"second": [nn.Linear(1, 1).double()]}
        self.running = torch.zeros(3, dtype=torch.float64)
        self.dropout = torch.Generator().manual_seed(1)
        self.state = {**self.state, "running": self.running}
        self.second = torch.optim.Adam([*self.network.parameters()], lr=0.01)
        self.optimizer.add_param_group({"params": list(self.parts["second"][0].parameters())})
        self.constant = torch.ones(3, dtype=torch.float64)
        self.cache = None

    def loss_and_grad(self):
        losses = super().loss_and_grad()
        self.second.zero_grad()
        kept = torch.rand(4, 3, generator=self.dropout, dtype=torch.float64)
        output = self.network(kept * self.x) + self.parts["second"][0](kept[:, :1])
        output.square().sum().backward()
        self.second.step()
        self.network[0].calls += 1
        self.running += losses + self.network[0].calls + self.constant
        self.cache = [self.running.clone(), int(self.taken)]
        return losses + output.detach().sum()

    def measure(self):
        return super().measure().assign(running=self.running.numpy())


def test_an_honest_problem_passes_and_resumes(tmp_path):
    torch.manual_seed(0)  # the initial weights of `parts` are torch's own

    def make():
        torch.manual_seed(0)
        return Honest()

    assert_resumes(make, tmp_path)


def test_the_state_has_every_tensor_once():
    problem = Honest()
    state = training_state(problem)
    assert sorted(state) == [
        "dropout", "network.0.bias", "network.0.calls", "network.0.weight", "network.1.bias",
        "network.1.num_batches_tracked", "network.1.running_mean", "network.1.running_var",
        "network.1.weight", "noise", "parameters.0.0", "parts.second.0.bias",
        "parts.second.0.weight", "state.running", "state.taken",
    ]  # fmt: skip


class Hidden(Quadratic):
    """Keeps a counter where no contract can see it."""

    def __init__(self):
        super().__init__()
        self.helper = lambda: None
        self.helper.calls = 0

    def loss_and_grad(self):
        self.helper.calls += 1
        losses = super().loss_and_grad()
        self.x.grad *= self.helper.calls % 3
        return losses


def test_state_that_is_hidden_from_the_contract_is_found_by_resuming(tmp_path):
    Contract(Hidden()).check_state()
    with pytest.raises(AssertionError, match=r"Hidden, .* steps \[1, 20, 39\] of 40: metrics.csv"):
        assert_resumes(Hidden, tmp_path)


def test_a_difference_that_no_probe_sees_is_found_too(tmp_path):
    def make():
        problem = Hidden()
        problem.probes = [Probe("metrics", [0], problem.measure)]
        return problem

    with pytest.raises(AssertionError, match=r"parameters.0.0 has another value at the end"):
        assert_resumes(make, tmp_path)


def test_an_interruption_after_the_end_is_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"ended before it was interrupted: give earlier"):
        assert_resumes(Quadratic, tmp_path, after=[41])


class Accumulating(Quadratic):
    """Leaves the zeroing of gradients to `fit`, as ``loss.backward()`` does."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        self.members = [{}]
        self.state = {}
        self.optimizer = torch.optim.SGD([self.x], lr=0.25)
        self.scheduler = None

    def loss_and_grad(self):
        loss = self.x.square() / 2
        loss.sum().backward()
        return loss.detach()

    def measure(self):
        return pd.DataFrame({"x": [float(self.x.detach())]})


def test_fit_zeroes_gradients(tmp_path):
    problem = Accumulating()
    fit(problem, CONFIG, SOURCES, tmp_path, 1e9)
    assert read_record(tmp_path / "record.json").outcome.steps == 40
    assert problem.x.item() == pytest.approx(0.75**40, rel=1e-12)
