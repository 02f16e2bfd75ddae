"""The time that a GPU needs at least for a plane, on paper: `python bench/cuda_roofline.py`.

For each step of the CUDA plan and one sample at one point:

    operations  2 * rows * outputs * depth of a product, outputs and depth filled up to whole tiles.
    memory      4 * (floats read + floats written) of activations. Parameters and the inputs serve
                all points of a launch and come from the second-level cache.
    cache       4 * (1 + D) for each weight of a tile, which is formed anew for every 128 rows, and
                the activations once per tile of outputs; what the first-level cache catches is left
                out.

A step takes the longest of operations / rate and bytes / bandwidth. With directions generated in
the tile, a weight costs 4 bytes of the cache and GENERATION instructions per direction, which the
products in float32 share the issue slots with. Nothing is measured here: a bound, printed as the
table of docs/cuda.md.
"""

from typing import NamedTuple

import networks
import torch

from pylandscape.engines import cuda_records as records
from pylandscape.engines.capture import capture
from pylandscape.engines.cuda_lowering import make_cuda_plan
from pylandscape.engines.records import NONE, LossKind
from pylandscape.engines.simple_layers import LossSpec
from pylandscape.parameters import ParameterSpace

# NVIDIA H100 SXM, FLOP/s and bytes/s: dense rates and memory from the data sheet; it has no figure
# for the second-level cache, of which others measured about this.
RATES = {"fp32": 67e12, "tf32": 495e12, "bf16": 989e12}
MEMORY, CACHE = 3.35e12, 5.5e12
POINTS, SAMPLES, DIRECTIONS = 51 * 51, 50_000, 2
TILE_ROWS = 128
# Of one normal number alone and the place of its filter, by the PTX of normal.cuh; one a cycle and
# lane, as many as multiply-adds.
GENERATION, INSTRUCTIONS = 200, 67e12 / 2
CASES = {
    "small": (networks.small, (1, 28, 28)),
    "big": (networks.big, (1, 28, 28)),
    "ResNet-20": (networks.resnet20, (3, 32, 32)),
    "ResNet-56": (networks.resnet56, (3, 32, 32)),
}


class Work(NamedTuple):
    """Of one sample at one point."""

    operations: float = 0.0
    memory: float = 0.0  # bytes
    activations: float = 0.0  # bytes of them that the cache moves
    weights: float = 0.0  # how many are formed

    def cache(self, stored: int) -> float:
        return self.activations + 4.0 * (1 + stored) * self.weights

    def seconds(self, rate: float) -> float:
        return max(self.operations / rate, self.memory / MEMORY, self.cache(DIRECTIONS) / CACHE)

    def seconds_generating(self) -> float:
        """In float32."""
        generation = GENERATION * DIRECTIONS * self.weights / INSTRUCTIONS
        arithmetic = self.operations / RATES["fp32"] + generation
        return max(arithmetic, self.memory / MEMORY, self.cache(0) / CACHE)


def work(step: records.Step, sizes: list[int]) -> Work:
    reads = [getattr(step, name) for name in ("input", "left", "right") if hasattr(step, name)]
    epilogue = getattr(step, "epilogue", None)
    if epilogue is not None and epilogue.residual != NONE:
        reads.append(epilogue.residual)
    floats = sum(sizes[v] for v in reads if v != 0)  # value 0: the inputs
    floats += sizes[step.out] if hasattr(step, "out") else 0
    if not isinstance(step, records.Convolution | records.Linear):
        return Work(memory=4.0 * floats, activations=4.0 * floats)
    tile = next(t for t in (16, 32, 64) if step.outputs <= t or t == 64)
    outputs, depth = (-(-n // t) * t for n, t in ((step.outputs, tile), (step.depth, 16)))
    products = step.rows * step.groups * outputs * depth
    activations = sizes[step.input] * outputs / tile + sizes[step.out]
    return Work(2.0 * products, 4.0 * floats, 4.0 * activations, products / TILE_ROWS)


def main() -> None:
    print(
        "| network | MFLOP | in tiles | memory, KB | cache, KB | fp32, s | tf32, s | bf16, s "
        "| generated, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (make, shape) in CASES.items():
        model = make()
        program = capture(model, torch.zeros(4, *shape))
        tensors = (*model.named_parameters(), *model.named_buffers())
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors}
        plan = make_cuda_plan(
            program, shapes, LossSpec(LossKind.CROSS_ENTROPY), ParameterSpace.from_model(model)
        )
        steps = [work(step, plan.sizes) for step in plan.records]
        operations, memory = (sum(getattr(s, n) for s in steps) for n in ("operations", "memory"))
        cache = sum(s.cache(DIRECTIONS) for s in steps)
        times = [sum(s.seconds(rate) for s in steps) for rate in RATES.values()]
        times.append(sum(s.seconds_generating() for s in steps))
        cells = [name, f"{program.flops / 1e6:.2f}", f"{operations / 1e6:.2f}"]
        cells += [f"{memory / 1e3:.1f}", f"{cache / 1e3:.1f}"]
        cells += [f"{t * POINTS * SAMPLES:.0f}" for t in times]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
