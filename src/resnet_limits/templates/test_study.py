"""My study: known answers, and runs that resume with the same bits."""

import torch

from resnet_limits.layout import RunKey
from resnet_limits.problem import Context
from resnet_limits.spec import load_study
from resnet_limits.studies.my_study.problems import MyStudyProblem
from resnet_limits.testing import assert_resumes

RUN = load_study("my_study").run(RunKey("smoke", "my_study", "descent", "curvature0.1"))


def make(tmp_path):
    return MyStudyProblem(RUN.settings, Context(torch.device("cpu"), tmp_path))


def test_a_killed_run_ends_with_the_same_bits(tmp_path):
    assert_resumes(lambda: make(tmp_path), tmp_path)


def test_gradient_is_the_derivative_of_the_loss(tmp_path):
    problem = make(tmp_path)
    problem.loss_and_grad()
    x = problem.x.clone().requires_grad_()
    ((problem.curvature * x.square()).sum() / 2).backward()
    torch.testing.assert_close(problem.x.grad, x.grad)
