"""Hessian-vector products: native kernels against the best that PyTorch can do.

Every way in `torch_products` is timed on one product; the fastest that forms everything anew and
the fastest that retains the graph then take turns with the native products: with the pass of the
point done anew, kept from an earlier product, and shared by eight vectors. Products are compared
first with float64. Floors: how many times faster than the fastest way of PyTorch; what is formed
anew against what PyTorch forms anew.
"""

import gc
from collections.abc import Callable

import pytest
import torch
from digits import images, mnist
from networks import big, mlp, resnet20, small, trained
from timing import interleaved, rounded
from torch import Tensor, nn
from torch_products import Way, ways

import pylandscape as pl

# torch.func compiles through torch.jit
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

SAMPLES = 1024
CASES = {  # network, floors: anew, kept, per vector of eight against one
    "small": (small, {"anew": 5.5, "kept": 7.0, "eight": 1.3}),
    "big": (big, {"anew": 3.0}),
    "mlp": (mlp, {"anew": 2.0}),
    "resnet20": (resnet20, {"anew": 2.0}),
}
# Of the norm of the product in float64. Where a relu or a max_pool falls on the other side of its
# kink in float32, that sample's product is another one: big and ResNet-20 have enough of them that
# PyTorch itself is up to 2e-4 off.
TOLERANCE = {"small": 1e-5, "mlp": 1e-5, "big": 1e-3, "resnet20": 1e-3}


@pytest.mark.parametrize("case", CASES)
def test_product(compare: Callable[..., dict[str, float]], case: str) -> None:
    build, floors = CASES[case]
    torch.manual_seed(0)
    data = images(SAMPLES) if case == "resnet20" else mnist(SAMPLES)
    model = trained(build(), *data)
    objective = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="native")
    native, point = objective.native_derivatives, objective.center
    v = torch.randn(objective.space.size, 8, generator=torch.Generator().manual_seed(1))
    exact = pl.Objective(model, nn.CrossEntropyLoss(), data, engine="torch", dtype=torch.float64)
    expected = exact.hessian_vector_product(v[:, 0].double())

    def anew() -> Tensor:
        native.forget()
        return native.hessian_vector_product(point, v[:, 0])

    def kept() -> Tensor:
        return native.hessian_vector_product(point, v[:, 0])

    def eight() -> Tensor:
        native.forget()
        return native.hessian_vector_product(point, v)

    error = max(deviation(anew(), expected), deviation(eight()[:, 0], expected))
    assert error < TOLERANCE[case]
    best = fastest(model, data, v[:, 0], expected, TOLERANCE[case], retained=case != "resnet20")

    def figures(seconds: dict[str, float]) -> dict[str, float]:
        theirs = min(seconds[name] for name in seconds if name.startswith("torch"))
        theirs_anew = min(seconds[f"torch, {way.name}"] for way in best if not way.retains)
        found = {
            "anew_times_faster": theirs_anew / seconds["native, anew"],
            "kept_times_faster": theirs / seconds["native, kept"],
            "eight_times_faster_per_vector": 8 * seconds["native, anew"] / seconds["native, eight"],
            "error": error,
        }
        return found | {f"floor_{name}": value for name, value in floors.items()}

    candidates: dict[str, Callable[[], object]] = {
        "native, anew": anew,
        "native, kept": kept,
        "native, eight": eight,
    }
    for way in best:
        candidates[f"torch, {way.name}"] = lambda way=way: way.product(v[:, 0])
    compare(candidates, repeats=5, figures=figures)


def fastest(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    v: Tensor,
    expected: Tensor,
    tolerance: float,
    retained: bool,
) -> list[Way]:
    """The fastest way that forms everything anew, and the fastest that retains the graph."""
    best: dict[bool, tuple[float, Way]] = {}
    for way in ways(model, *data, retained=retained):
        try:
            assert deviation(way.product(v), expected) < tolerance
        except torch._dynamo.exc.TorchDynamoException:
            print(f"  {way.name}: cannot be compiled")
            continue
        seconds = interleaved({"way": lambda way=way: way.product(v)}, repeats=1)["way"]
        print(f"  {way.name}: {rounded(1e3 * seconds)} ms")
        if way.retains not in best or seconds < best[way.retains][0]:
            best[way.retains] = (seconds, way)
        del way
        gc.collect()
    return [way for _, way in best.values()]


def deviation(product: Tensor, expected: Tensor) -> float:
    gap = torch.linalg.vector_norm(product.double() - expected)
    return float(gap / torch.linalg.vector_norm(expected))
