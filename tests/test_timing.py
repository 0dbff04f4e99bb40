"""Benchmarks' shared code, on planted times and results."""

import json
from types import SimpleNamespace

import pytest
import torch
from benchmarks import _timing as timing


def test_ratios_are_taken_round_by_round():
    slow = [2.0, 20.0, 3.0, 8.0, 30.0]
    found = timing.Timing({"slow": slow, "fast": [1.0, 10.0, 1.0, 2.0, 5.0]})
    assert found.median("slow") == 8
    assert found.ratio("slow", "fast") == pytest.approx((3, 2, 4))  # of 2, 2, 3, 4, 6


def test_paths_take_turns_in_alternating_order():
    calls = []
    paths = {name: lambda name=name: calls.append(name) for name in "ab"}
    timing.measure(paths, 3)
    assert "".join(calls) == "abbaab"


def test_differences_are_relative_to_each_tensors_largest_entry():
    reference = [torch.tensor([1.0, -4.0]), torch.tensor(1e-3)]
    result = [torch.tensor([1.0, -4.1]), torch.tensor(1.1e-3)]
    assert timing.difference(result, reference) == pytest.approx(0.1)
    assert timing.difference(result[:1], reference[:1]) == pytest.approx(0.1 / 4)


def test_rows_go_to_a_file_and_compare_results_that_share_memory(tmp_path):
    memory = torch.zeros(1)
    arguments = SimpleNamespace(repeats=2, threads=1, json=tmp_path / "rows.json")
    table = timing.Table(arguments, baseline="exact")
    paths = {"exact": lambda: [memory.fill_(1.0)], "near": lambda: [memory.fill_(1.5)]}
    table.add("case", paths, extra={"MB": {"exact": 3.0, "near": 4.0}})
    table.save()
    rows = json.loads(arguments.json.read_text())["rows"]
    assert [row["path"] for row in rows] == ["exact", "near"]
    assert [row["difference"] for row in rows] == [0.0, 0.5]
    assert [row["MB"] for row in rows] == [3.0, 4.0]
    assert rows[0]["speedup"] == 1
