"""Two Spirals: all sizes and seeds as one batch against one torchdyn NeuralODE at a time.

Same data, same initial weights, same full-batch Adam steps, both in this process, size by size in
turn. Prints seconds per step over the grid's sizes, their ratio, and how far the last losses
are apart.

    python benchmarks/two_layer_ode.py --steps 20
"""

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

from resnet_limits.spec import load_study
from resnet_limits.studies.two_spirals.experiments import SpiralsProblem
from resnet_limits.train import Context

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reference.two_layer_ode import TorchdynNetwork


def train_together(problem, steps):
    """Return the losses after ``steps`` and the seconds that a step took."""
    start = time.perf_counter()
    for _ in range(steps):
        problem.step()
        problem.optimizer.step()
    seconds = (time.perf_counter() - start) / steps
    return problem.step(), seconds


def train_one_by_one(problem, networks, steps):
    """Do the same network after network."""
    losses, start = [], time.perf_counter()
    seeds = len(problem.settings.seed)
    for member, network in enumerate(networks):
        data = problem.sets[member // seeds]
        x, y = data.x[member % seeds, :-1].T.contiguous(), data.y[member % seeds]
        optimizer = torch.optim.Adam(network.parameters(), lr=problem.settings.learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            (network(x) - y).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            losses.append((network(x) - y).square().mean())
    return torch.stack(losses), (time.perf_counter() - start) / steps


def compare(settings, steps):
    """Time both on one grid; return seconds together, one by one, and the largest difference."""
    problem = SpiralsProblem(settings, Context(torch.device("cpu"), Path()))
    networks = [TorchdynNetwork(problem.model, m) for m in range(len(problem.members))]
    together, fast = train_together(problem, steps)
    alone, slow = train_one_by_one(problem, networks, steps)
    return fast, slow, ((together - alone).abs() / alone).max().item()


def main():
    """Print one row per size, and one for the whole grid."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--field", default="constant", choices=("constant", "per_step"))
    options = parser.parse_args()
    settings = load_study("two_spirals").experiment("rate", "paper").settings
    quiet = {"gram_n_max": 0, "boundary_n": [], "field": options.field}
    print(
        f"{torch.get_num_threads()} threads, {options.steps} steps, {len(settings['seed'])} seeds"
    )
    print("   n_train  batched ms  one by one ms  ratio  largest difference")
    for sizes in [[n] for n in settings["n_train"]] + [list(settings["n_train"])]:
        grid = SimpleNamespace(**settings | quiet | {"n_train": sizes})
        compare(grid, 2)  # warm up
        fast, slow, difference = compare(grid, options.steps)
        name = "whole grid" if len(sizes) > 1 else sizes[0]
        ratio = slow / fast
        print(f"{name:>10} {1e3 * fast:11.2f} {1e3 * slow:14.2f} {ratio:6.1f} {difference:19.1e}")


if __name__ == "__main__":
    main()
