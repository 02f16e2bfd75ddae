"""The loss on a plane: the native engine against the best that PyTorch can do.

Every way in `pytorch_loop` is timed on a few points; the fastest, and the loop that landscape
packages run, then take turns with the native engine on all points. Losses are compared first with
float64. Floors: native at least `best` times faster than the best PyTorch and `peers` times faster
than the peers' loop.
"""

from collections.abc import Callable

import pytest
import torch
from digits import images, mnist
from networks import big, lenet5, mlp, resnet20, small, trained
from pytorch_loop import Loop, loops, peers_loop
from timing import interleaved, rounded
from torch import Tensor, nn

import pylandscape as pl

CASES = {  # network, samples, points per side, floors
    "small": (small, 2048, 5, {"best": 2.8, "peers": 14.0}),
    "big": (big, 2048, 5, {"best": 3.0, "peers": 8.0}),
    "mlp": (mlp, 2048, 20, {"best": 6.0, "peers": 9.0}),
    "resnet20": (resnet20, 512, 5, {"best": 2.5, "peers": 5.0}),
    "lenet5": (lenet5, 2048, 5, {"best": 3.5, "peers": 5.0}),
}
FEW = 2  # points on which the loops are tried
TOLERANCE = 1e-6  # of the loss against float64, relative


@pytest.mark.parametrize("case", CASES)
def test_plane(compare: Callable[..., dict[str, float]], case: str) -> None:
    build, samples, side, floors = CASES[case]
    torch.manual_seed(0)
    data = images(samples) if case == "resnet20" else mnist(samples)
    model = trained(build(), *data)
    goal = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="native")
    directions = pl.random_directions(goal, count=2, seed=0)
    axis = torch.linspace(-1, 1, side, dtype=torch.float64)
    coordinates = torch.cartesian_prod(axis, axis)
    center = goal.center
    points = directions.points(center, coordinates)

    exact = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="torch", dtype=torch.float64)
    expected = exact.evaluate_along(exact.center, directions, coordinates[:FEW])["loss"]

    def native() -> Tensor:
        return goal.evaluate_along(center, directions, coordinates)["loss"]

    error = deviation(native()[:FEW], expected)
    assert error < TOLERANCE
    best, peers = fastest(model, data, points[:FEW], expected), peers_loop(model, *data)
    flops = goal.native_engine.program.flops * samples * len(points)

    def figures(seconds: dict[str, float]) -> dict[str, float]:
        ours, theirs = seconds["native"], seconds[f"torch, {best.name}"]
        return {
            "floor_best": floors["best"],
            "times_faster_than_peers": seconds["peers' loop"] / ours,
            "floor_peers": floors["peers"],
            "native_gflops": flops / ours / 1e9,
            "best_torch_gflops": flops / theirs / 1e9,
            "ms_per_point": 1e3 * ours / len(points),
            "error": error,
        }

    candidates = {
        "native": native,
        f"torch, {best.name}": lambda: best.losses(points),
        "peers' loop": lambda: peers.losses(points),
    }
    compare(candidates, repeats=3, figures=figures)


def fastest(
    model: nn.Module, data: tuple[Tensor, Tensor], points: Tensor, expected: Tensor
) -> Loop:
    """The loop that takes the least time for a few points, its losses having been compared."""
    tried = []
    for loop in loops(model, *data):
        assert deviation(loop.losses(points), expected) < TOLERANCE
        seconds = interleaved({"loop": lambda loop=loop: loop.losses(points)}, repeats=3)["loop"]
        tried.append((seconds, loop))
        print(f"  {loop.name}: {rounded(1e3 * seconds / len(points))} ms per point")
    return min(tried, key=lambda pair: pair[0])[1]


def deviation(values: Tensor, expected: Tensor) -> float:
    return float(((values - expected) / expected).abs().max())
