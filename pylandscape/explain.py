"""Which engine evaluates an objective, and why: the text of `pl.explain`."""

import torch

from pylandscape import _ops
from pylandscape._checks import require, show
from pylandscape.engines.cuda import CudaEngine
from pylandscape.engines.native import NativeEngine
from pylandscape.engines.program import NotCovered
from pylandscape.objective import NATIVE_POINTS, Objective


class Explanation(str):
    """A text that an interactive session shows as it is printed."""

    def __repr__(self) -> str:
        return str(self)


def explain(objective: Objective) -> Explanation:
    """Which engine evaluates `objective` at many points and why, in words.

    For the native engine: the operators that were captured from the model, the kernels that run
    them, how many samples run at a time, and the memory they take. For a model that it does not
    cover: the first thing in the way, with the line of the model's code. Takes about a second where
    the native engine has not been prepared yet.

    Raises:
        TypeError: the argument is no Objective.

    Example:
        >>> import torch, pylandscape as pl
        >>> data = torch.randn(30, 4), torch.randint(0, 3, (30,))
        >>> layers = torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        >>> model = torch.nn.Sequential(*layers)
        >>> text = pl.explain(pl.Objective(model, torch.nn.CrossEntropyLoss(), data))
        >>> "linear 4 -> 8" in text, "tanh" in text
        (True, True)
        >>> model.append(torch.nn.Softmax(1))[-1]
        Softmax(dim=1)
        >>> print(pl.explain(pl.Objective(model, torch.nn.CrossEntropyLoss(), data)))
        engine: PyTorch, because aten.softmax at 3 (Softmax) has no native kernel.
    """
    require(
        isinstance(objective, Objective),
        f"explain: objective must be an Objective, got {show(objective)}. Make one of the model, "
        "the loss and the data.",
        TypeError,
    )
    compiled = objective._engine.compiled.describe()
    if objective.choice == "torch":
        return Explanation(f"engine: PyTorch, as chosen by engine='torch'.{compiled}")
    if objective.choice == "auto" and objective.device.type != "cpu":
        return Explanation(
            f"engine: PyTorch, which engine='auto' takes on {objective.device.type} devices."
            f"{compiled}"
        )
    try:
        engine = objective.native_engine
    except NotCovered as obstacle:
        return Explanation(f"engine: PyTorch, because {obstacle}.{compiled}")
    parts = [
        _heading(objective, engine),
        engine.program.describe(),
        _kernels(engine),
        _memory(engine),
    ]
    return Explanation("\n\n".join(parts))


def _heading(objective: Objective, engine: NativeEngine) -> str:
    if isinstance(engine, CudaEngine):
        return (
            f"engine: native on a GPU, precision {objective.precision!r}. Derivatives run through "
            f"PyTorch.{objective._engine.compiled.describe()}"
        )
    when = "" if objective.choice == "native" else f" from {NATIVE_POINTS} points on"
    return (
        f"engine: native{when}, {_ops.isa()}, precision {objective.precision!r}, "
        f"{torch.get_num_threads()} threads. {_derivatives(objective)}"
    )


def _derivatives(objective: Objective) -> str:
    try:
        kept = objective.native_derivatives.bytes_per_sample
    except NotCovered as obstacle:
        return f"Derivatives run through PyTorch, because {obstacle}."
    return f"Derivatives are native, with {kept / 1024:.4g} KiB kept per sample."


def _kernels(engine: NativeEngine) -> str:
    lines = ["kernels, with what is fused into them"]
    lines += [f"{number:4}  {step}" for number, step in enumerate(engine.plan.steps, 1)]
    if engine.plan.linear_first:
        lines.append("      of the first linear layer: one product per direction, for all points")
    return "\n".join(lines)


def _memory(engine: NativeEngine) -> str:
    rows = _on_a_gpu(engine) if isinstance(engine, CudaEngine) else _in_a_thread(engine)
    width = max(map(len, rows))
    return "\n".join(["memory", *(f"  {name:{width}}  {text}" for name, text in rows.items())])


def _on_a_gpu(engine: CudaEngine) -> dict[str, str]:
    plan = engine.plan
    return {
        "activations": f"{_size(4 * plan.row)} per sample and point of a launch",
        "centre and directions": f"{_size(4 * plan.packed)} each, as they are",
        "weights of a point": "formed where they are multiplied, not stored",
    }


def _in_a_thread(engine: NativeEngine) -> dict[str, str]:
    plan = engine.plan
    samples = f"{plan.block} samples"
    if plan.sub_block != plan.block:
        samples += f" (layers on images: {plan.sub_block})"
    return {
        "at a time": samples,
        "activations": f"{_size(plan.arena_bytes)} per thread",
        "weights of a point": f"{_size(4 * plan.packed)} per thread",
        "centre and directions": f"{_size(4 * plan.packed)} each, in the kernels' order",
    }


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
