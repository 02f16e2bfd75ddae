"""Capturing a model in a test: what must be the same afterwards."""

from collections.abc import Callable
from typing import Any

import torch
from random_models import randomised
from reference_program import run_program, state_of
from torch import Tensor, nn

from pylandscape.engines.capture import capture
from pylandscape.engines.program import Program

B = 4


def snapshot(model: nn.Module) -> list[Any]:
    flags = [module.training for module in model.modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [flags, [(name, id(t), t._version, t.detach().clone()) for name, t in tensors]]


def assert_unchanged(model: nn.Module, before: list[Any]) -> None:
    flags, tensors = snapshot(model)
    assert flags == before[0]
    for (name, *identity, value), (name_before, *identity_before, value_before) in zip(
        tensors, before[1], strict=True
    ):
        assert (name, identity) == (name_before, identity_before)
        assert torch.equal(value, value_before)


def captured(model: nn.Module, *shape: int) -> Program:
    """The Program of a model, after seeing that it computes the same and left the model alone."""
    model = randomised(model)
    before = snapshot(model)
    program = capture(model, torch.randn(B, *shape, dtype=torch.float64))
    assert_unchanged(model, before)
    inputs = 2 * torch.randn(B, *shape, dtype=torch.float64)
    modes = {module: module.training for module in model.modules()}
    with torch.no_grad():
        expected = model.eval()(inputs.clone())
    for module, mode in modes.items():
        module.training = mode
    torch.testing.assert_close(run_program(program, state_of(model), inputs), expected)
    return program


def ops(program: Program) -> list[str]:
    return [node.op for node in program.nodes]


class Layer(nn.Module):
    """A function of (self, x) with the modules and parameters that it uses."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)
