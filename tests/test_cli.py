"""The help of the command line teaches what works."""

from __future__ import annotations

import re
import shlex

import pytest

from resnet_limits.cli import parser

EXAMPLES = [shlex.split(line) for line in parser().epilog.splitlines()[1:]]


def test_every_command_has_an_example():
    (commands,) = (set(action.choices) for action in parser()._actions if action.choices)
    assert {example[1] for example in EXAMPLES} == commands


@pytest.mark.parametrize("example", EXAMPLES, ids=" ".join)
def test_an_example_is_understood_and_in_its_commands_help(example, capsys):
    name, command, *arguments = example
    assert name == "resnet-limits"
    words = arguments[: arguments.index(">")] if ">" in arguments else arguments
    assert parser().parse_args([command, *words]).run
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    assert re.search(
        rf"example:\n  {re.escape(shlex.join(example[:2]))}[ \n]", capsys.readouterr().out
    )
