"""The user's module as a function of its flat parameter vector.

The module's parameters are never written. What a pass changes on the module (training flags,
BatchNorm's way of working, tensors that a forward stores as attributes) is put back when the pass
ends, also after an exception or Ctrl-C.
"""

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from pylandscape._checks import alike, shapes
from pylandscape.data import Samples
from pylandscape.engines.interrupts import DeferredInterrupt
from pylandscape.losses import sample_count
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
        self._caller = _Caller(model)
        self._interrupt = DeferredInterrupt()
        self.channels_last = False
        self.channels_last = self._channels_last_works()
        if self.channels_last:
            samples.map_inputs(_as_channels_last)

    def batches(self) -> Iterator[tuple[Any, Any]]:
        for batch in self.samples.batches(self.batch_size):
            self._interrupt.check()
            yield batch

    def check_interrupt(self) -> None:
        """Acts on a Ctrl-C that has come since the last pass began."""
        self._interrupt.check()

    def outputs(self, inputs: Any) -> Any:
        """What the user's module gives for one batch of inputs.

        Raises:
            ValueError: the module does not run on them.
        """
        center = self.space.flatten(self.model, self.samples.dtype, self.samples.device)
        try:
            with self.evaluating(), torch.no_grad():
                return self.within(
                    self.state(center, buffers={}), functools.partial(self.call, inputs)
                )
        except Exception as error:
            raise ValueError(
                "Objective: data must hold inputs that the model runs on, got inputs of shape "
                f"{shapes(inputs)}: {type(error).__name__}: {error}"
            ) from error

    def within(self, state: Mapping[str, Tensor], run: Callable[[], Any]) -> Any:
        """`run()` with the module's tensors replaced by those of `state`.

        A backward pass belongs inside: activation checkpointing runs the module again in it.
        """
        prefixed = {f"model.{name}": tensor for name, tensor in state.items()}
        return functional_call(self._caller, prefixed, (run,))

    def call(self, inputs: Any) -> Any:
        """One batch through the module with its tensors as they are now."""
        if self.channels_last and not self.samples.in_memory:
            inputs = self.as_stored(inputs)
        if isinstance(inputs, Mapping):
            return self.model(**inputs)
        return self.model(*inputs) if isinstance(inputs, (tuple, list)) else self.model(inputs)

    def as_stored(self, inputs: Any) -> Any:
        """Inputs from elsewhere in the memory format of the samples."""
        return pytree.tree_map(_as_channels_last, inputs) if self.channels_last else inputs

    def state(self, vector: Tensor, buffers: Buffers | None = None) -> dict[str, Tensor]:
        """Every tensor of the module by name: the parameters from `vector`, the rest as it is.

        Buffers are copies, for a forward may change them, and so are parameters where an embedding
        has a largest norm, which its forward enforces in place.
        """
        if any(getattr(module, "max_norm", None) for module in self.model.modules()):
            vector = vector.clone()
        varied = {entry.name for entry in self.space.entries}
        state = {n: p.detach() for n, p in self.model.named_parameters() if n not in varied}
        state |= {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        state |= buffers or {}
        state = {name: self._cast(tensor) for name, tensor in state.items()}
        state |= self.layout(self.space.unflatten(vector))
        if buffers is None and self.recomputes:
            state |= self._recomputed(state)
        return state

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.samples.dtype) if tensor.is_floating_point() else tensor

    def layout(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.channels_last:
            return parameters
        return {name: _as_channels_last(tensor) for name, tensor in parameters.items()}

    @functools.cached_property
    def norms(self) -> dict[str, BatchNorm]:
        """The BatchNorm layers that use running statistics."""
        return {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, BatchNorm) and module.running_mean is not None
        }

    @property
    def recomputes(self) -> bool:
        """Whether running statistics are estimated at every point."""
        return self.batchnorm == "recompute" and bool(self.norms)

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether some BatchNorm layer normalises by the statistics of each batch."""
        layers = [module for module in self.model.modules() if isinstance(module, BatchNorm)]
        return any(x.running_mean is None or self.batchnorm == "batch" for x in layers)

    @property
    def needs_variance(self) -> bool:
        """Whether a batch of a single sample would be an error."""
        return (self.uses_batch_statistics or self.recomputes) and any(
            isinstance(module, nn.BatchNorm1d) for module in self.model.modules()
        )

    @torch.no_grad()
    def _recomputed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Running statistics of BatchNorm as averages over the samples, weighted by batch size."""
        fresh: dict[str, Tensor] = {}
        for name, norm in self.norms.items():
            prefix = f"{name}." if name else ""
            fresh |= {
                prefix + key: torch.zeros_like(state[prefix + key])
                for key, _ in norm.named_buffers(recurse=False)
            }
        seen = 0
        with unchanged(self.model):
            for inputs, targets in self.batches():
                count = sample_count(targets)
                seen += count
                for norm in self.norms.values():
                    norm.training, norm.momentum = True, count / seen
                self.within({**state, **fresh}, functools.partial(self.call, inputs))
        return fresh

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, with BatchNorm as the policy says; the module comes back unchanged.

        Attention stays on its differentiable path, whose outputs differ from those of the fast one
        at padded positions: the loss, its gradient and its Hessian are of one function.
        """
        with self._interrupt, _differentiable_attention(), unchanged(self.model):
            for module in self.model.modules():
                module.__dict__.update(
                    training=False,
                    _compiled_call_impl=None,  # `model.compile()`
                    _backward_hooks=OrderedDict(),  # they see or change users' gradients only
                    _backward_pre_hooks=OrderedDict(),
                )
            if self.batchnorm == "batch":
                for norm in self.norms.values():  # the running statistics are left alone
                    norm.training, norm.track_running_stats = True, False
            yield

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Training mode; the module comes back unchanged.

        Statistics that a forward updates in place are copies where `state` has given its tensors.
        """
        with self._interrupt, unchanged(self.model):
            for module in self.model.modules():
                module.__dict__.update(training=True, _compiled_call_impl=None)
            yield

    @torch.no_grad()
    def _channels_last_works(self) -> bool:
        """Whether the module runs channels-last, several times faster in oneDNN, on this device.

        A forward that views its activations as contiguous fails; then the default layout stays.
        It also stays with convolutions of which oneDNN, in this layout, reads beyond its memory.
        """
        inputs, _ = self.samples.first(PROBE_SAMPLES)
        if not (
            self.samples.device.type == "cpu"
            and self.samples.dtype in (torch.float32, torch.bfloat16)
            and (convolutions := [m for m in self.model.modules() if isinstance(m, nn.Conv2d)])
            and not any(map(_sees_only_padding, convolutions))
            and all(leaf.ndim == 4 for leaf in pytree.tree_leaves(inputs))
        ):
            return False
        plain = self.outputs(inputs)
        self.channels_last = True
        try:
            other = self.outputs(pytree.tree_map(_as_channels_last, inputs))
        except ValueError:
            return False
        finally:
            self.channels_last = False
        return alike(plain, other, rtol=1e-3, atol=1e-5)


def _sees_only_padding(conv: nn.Conv2d) -> bool:
    """Whether no tap of the kernel meets the image at its border.

    oneDNN (torch 2.14) ends such a convolution with a segmentation fault, when it is channels-last.
    """
    return not isinstance(conv.padding, str) and any(
        padding > dilation * (size - 1)
        for padding, dilation, size in zip(
            conv.padding, conv.dilation, conv.kernel_size, strict=True
        )
    )


def _as_channels_last(tensor: Tensor) -> Tensor:
    """A copy in channels-last strides, also where one channel makes them ambiguous."""
    if tensor.ndim != 4:
        return tensor
    out = torch.empty_like(tensor, memory_format=torch.channels_last)
    return out.copy_(tensor)


class _Caller(nn.Module):
    """Owns the user's module, so that `functional_call` replaces its tensors for a whole `run`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


@contextlib.contextmanager
def _differentiable_attention() -> Iterator[None]:
    """Attention not on torch's fast path, which is for inference alone."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Puts back every attribute, parameter, buffer and submodule of all modules."""
    slots: list[dict[str, Any]] = [
        slot
        for module in model.modules()
        for slot in (module.__dict__, module._parameters, module._buffers, module._modules)
    ]
    before = [dict(slot) for slot in slots]
    try:
        yield
    finally:
        for slot, values in zip(slots, before, strict=True):
            slot.update(values)
            for name in slot.keys() - values.keys():
                del slot[name]
