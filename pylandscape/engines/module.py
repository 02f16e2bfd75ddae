"""The user's module as a function of its flat parameter vector.

The module's parameters are never written. What a pass needs to change on the module (training
flags, BatchNorm's way of working) is put back when the pass ends, also after an exception or
Ctrl-C.
"""

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from pylandscape.data import Samples
from pylandscape.parameters import ParameterSpace

BatchNorm = nn.modules.batchnorm._BatchNorm
Buffers = Mapping[str, Tensor]
PROBE_SAMPLES = 8


class FunctionalModule:
    """Runs a module on samples with its parameters taken from a vector [P].

    Args:
        model, space, samples: the module, its parameters and what it runs on.
        batchnorm: `frozen`, `batch` or `recompute`, see `Objective`.
        batch_size: samples per forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        space: ParameterSpace,
        samples: Samples,
        batchnorm: str,
        batch_size: int,
    ) -> None:
        self.model, self.space, self.samples = model, space, samples
        self.batchnorm, self.batch_size = batchnorm, batch_size
        self.channels_last = False
        self.channels_last = self._channels_last_works()
        if self.channels_last:
            samples.map_inputs(_as_channels_last)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        return self.samples.batches(self.batch_size)

    def outputs(self, vector: Tensor, inputs: Any) -> Any:
        """What the module gives for one batch of inputs."""
        with torch.no_grad(), self.evaluating():
            return self.forward(self.state(vector), inputs)

    def forward(self, state: Mapping[str, Tensor], inputs: Any) -> Any:
        """One batch through the module with its tensors taken from `state`."""
        if self.channels_last and not self.samples.in_memory:
            inputs = pytree.tree_map(_as_channels_last, inputs)
        if isinstance(inputs, Mapping):
            return functional_call(self.model, dict(state), (), dict(inputs))
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
        return functional_call(self.model, dict(state), args)

    def state(self, vector: Tensor, buffers: Buffers | None = None) -> dict[str, Tensor]:
        """Every tensor of the module by name: the parameters from `vector`, the rest as it is."""
        varied = {entry.name for entry in self.space.entries}
        rest = (*self.model.named_parameters(), *self.model.named_buffers())
        state = {name: self._cast(t.detach()) for name, t in rest if name not in varied}
        state |= self.layout(self.space.unflatten(vector))
        if buffers is not None:
            state |= {name: self._cast(tensor) for name, tensor in buffers.items()}
        elif self.batchnorm == "recompute" and self.norms:
            state |= self._recomputed(state)
        return state

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.samples.dtype) if tensor.is_floating_point() else tensor

    def layout(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.channels_last:
            return parameters
        return {name: _as_channels_last(tensor) for name, tensor in parameters.items()}

    @cached_property
    def norms(self) -> dict[str, BatchNorm]:
        """The BatchNorm layers that use running statistics."""
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, BatchNorm) and module.running_mean is not None
        }

    @torch.no_grad()
    def _recomputed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Running statistics of BatchNorm as averages over the samples, weighted by batch size."""
        fresh: dict[str, Tensor] = {}
        for name, module in self.norms.items():
            prefix = f"{name}." if name else ""
            fresh |= {
                prefix + key: buffer.detach().clone().to(state[prefix + key].dtype)
                for key, buffer in module.named_buffers(recurse=False)
            }
        seen = 0
        with _attributes({module: {"training": True} for module in self.norms.values()}):
            for inputs, targets in self.batches():
                count = len(pytree.tree_leaves(targets)[0])
                share = {
                    module: {"momentum": count / (seen + count)} for module in self.norms.values()
                }
                with _attributes(share):
                    self.forward({**state, **fresh}, inputs)
                seen += count
        return fresh

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, with BatchNorm as the policy says; the module's own flags come back."""
        wanted: dict[nn.Module, dict[str, Any]] = {
            module: {"training": False} for module in self.model.modules()
        }
        if self.batchnorm == "batch":
            for module in self.norms.values():  # batch statistics, running ones left alone
                wanted[module] = {"training": True, "track_running_stats": False}
        with _attributes(wanted):
            yield

    @torch.no_grad()
    def _channels_last_works(self) -> bool:
        """Whether the module runs channels-last, several times faster in oneDNN, on this device.

        A forward that views its activations as contiguous fails; then the default layout stays.
        """
        inputs, _ = self.samples.first(PROBE_SAMPLES)
        if not (
            self.samples.device.type == "cpu"
            and self.samples.dtype in (torch.float32, torch.bfloat16)
            and any(isinstance(module, nn.Conv2d) for module in self.model.modules())
            and all(leaf.ndim == 4 for leaf in pytree.tree_leaves(inputs))
        ):
            return False
        center = self.space.flatten(self.model, self.samples.dtype, self.samples.device)
        plain = self.outputs(center, inputs)
        self.channels_last = True
        try:
            other = self.outputs(center, pytree.tree_map(_as_channels_last, inputs))
        except RuntimeError:
            return False
        finally:
            self.channels_last = False
        return all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
            for a, b in zip(pytree.tree_leaves(plain), pytree.tree_leaves(other), strict=True)
        )


def _as_channels_last(tensor: Tensor) -> Tensor:
    """A copy in channels-last strides, also where one channel makes them ambiguous."""
    if tensor.ndim != 4:
        return tensor
    out = torch.empty_like(tensor, memory_format=torch.channels_last)
    return out.copy_(tensor)


@contextlib.contextmanager
def _attributes(wanted: Mapping[Any, Mapping[str, Any]]) -> Iterator[None]:
    """Attributes of modules set for a while, then put back."""
    before = {
        module: {name: getattr(module, name) for name in values}
        for module, values in wanted.items()
    }
    try:
        for module, values in wanted.items():
            module.__dict__.update(values)
        yield
    finally:
        for module, values in before.items():
            module.__dict__.update(values)
