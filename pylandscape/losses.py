"""Per-sample losses and metrics: what turns a model's outputs into sums over samples.

Every quantity is a ratio of two sums over samples, value = sum_i a_i / sum_i b_i. The weights b_i
are 1 except where the loss itself weights its mean: class weights and `ignore_index`.
"""

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pylandscape._checks import require, shapes, show

Loss = Callable[[Any, Any], Tensor]


class PerSample(NamedTuple):
    """The terms a_i and the weights b_i of one batch, both [B]; weights None means all ones."""

    values: Tensor
    weights: Tensor | None = None


def sample_count(tree: Any) -> int:
    """The number of samples B in a pytree of tensors: the common length of dimension 0, else -1."""
    lengths = {
        leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else -1
        for leaf in pytree.tree_leaves(tree)
    }
    return lengths.pop() if len(lengths) == 1 else -1


def as_module(loss: Loss) -> Loss:
    """`F.cross_entropy` and `F.nll_loss`, plain or partial, as modules, which say how their mean is
    weighted; any other loss as it is.
    """
    function, keywords = loss, {}
    if isinstance(loss, functools.partial) and not loss.args:
        function, keywords = loss.func, loss.keywords
    if function is F.cross_entropy:
        return nn.CrossEntropyLoss(**keywords)
    return nn.NLLLoss(**keywords) if function is F.nll_loss else loss


class SampleLoss:
    """A user's loss, mean or sum over a batch, as terms per sample.

    A loss module with a `reduction` is evaluated with `reduction="none"` and keeps the weighting of
    its mean. Another callable may return one value per sample, or a scalar mean or sum over the
    samples: then it is mapped over single samples. The terms are checked on one batch against the
    loss itself, and against those of a part of the batch.

    Args:
        loss: a torch loss module or a callable (outputs, targets) -> Tensor.
        outputs, targets: one batch, to find out and to check.

    Raises:
        TypeError: the loss is not callable or gives no real tensor.
        ValueError: the loss is not a mean or a sum over samples.
    """

    def __init__(self, loss: Loss, outputs: Any, targets: Any) -> None:
        require(callable(loss), f"Objective: loss must be callable, got {show(loss)}.", TypeError)
        self.name = _name(loss)
        loss = _beside(outputs, as_module(loss))
        try:
            own = loss(outputs, targets)
        except Exception as error:
            raise ValueError(
                "Objective: loss must accept (outputs, targets), got outputs of shape "
                f"{shapes(outputs)} and targets of shape {shapes(targets)}: {error}"
            ) from error
        require(
            isinstance(own, Tensor) and own.is_floating_point(),
            f"Objective: loss must return a real tensor, got {show(own)}.",
            TypeError,
        )
        samples = sample_count(targets)
        self._terms = _choose_terms(loss, own, outputs, targets)
        self._check(own, outputs, targets, samples)

    def __call__(self, outputs: Any, targets: Any) -> PerSample:
        return self._terms(outputs, targets)

    def weight(self, targets: Any) -> float:
        """The sum of the weights b_i of one batch."""
        weights = self._terms.weights(targets) if isinstance(self._terms, _ModuleTerms) else None
        return float(sample_count(targets) if weights is None else weights.double().sum())

    @property
    def mean_module(self) -> nn.Module | None:
        """The torch module behind this loss, with `reduction="none"`, if the loss is its mean."""
        terms = self._terms
        return terms.loss if isinstance(terms, _ModuleTerms) and terms.reduction == "mean" else None

    def _check(self, own: Tensor, outputs: Any, targets: Any, samples: int) -> None:
        half = max(1, samples // 2)
        try:
            values, weights = self._terms(outputs, targets)
            part = self._terms(*_first_samples((outputs, targets), half, samples)).values
        except Exception as error:
            raise ValueError(
                "Objective: loss must be a mean or a sum over samples, got "
                f"{self.name}, which cannot be evaluated on single samples ({error}). "
                "Return one value per sample instead."
            ) from error
        require(
            values.shape == (samples,),
            "Objective: loss must have one term per sample, got "
            f"{show(values)} for {samples} samples.",
        )
        near = functools.partial(  # rounding of half precision is above 1e-3
            torch.allclose, rtol=max(1e-3, 16 * torch.finfo(own.dtype).eps), atol=1e-6,
            equal_nan=True,
        )  # fmt: skip
        require(
            near(values[:half], part),
            "Objective: loss must be a mean or a sum over samples, got "
            f"{self.name}, whose value for a sample depends on the others of its batch.",
        )
        total = values.double().sum()
        mean = total / (samples if weights is None else weights.double().sum())
        expected = (own.mean() if own.ndim else own).double()
        require(
            near(mean, expected) or near(total, expected),
            "Objective: loss must be a mean or a sum over samples, got "
            f"{self.name} = {expected.item():.6g} where the mean over samples is "
            f"{mean.item():.6g}. "
            "Return one value per sample, or drop what couples the samples of a batch.",
        )


def _name(loss: Loss) -> str:
    function = loss.func if isinstance(loss, functools.partial) else loss
    return getattr(function, "__name__", type(function).__name__)


def _beside(outputs: Any, loss: Loss) -> Loss:
    """A copy of a loss module on the device and in the precision of the outputs."""
    if not isinstance(loss, nn.Module):
        return loss
    tensors = (x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor))
    like = next((x for x in tensors if x.is_floating_point()), None)
    loss = copy.deepcopy(loss)
    return loss if like is None else loss.to(like.device, like.dtype)


def _first_samples(tree: Any, count: int, samples: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[:count] if _has_samples(leaf, samples) else leaf, tree)


def _has_samples(leaf: Any, samples: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == samples


def _choose_terms(
    loss: Loss, own: Tensor, outputs: Any, targets: Any
) -> Callable[[Any, Any], PerSample]:
    samples = sample_count(targets)
    reduction = getattr(loss, "reduction", None)
    if isinstance(loss, nn.Module) and reduction in ("mean", "sum", "none", "batchmean"):
        terms = _ModuleTerms(loss, reduction)
        with contextlib.suppress(Exception):  # a user's module need not know "none"
            if _has_samples(terms.loss(outputs, targets), samples):
                return terms
    if _has_samples(own, samples):
        return functools.partial(_vector_terms, loss)
    require(
        own.ndim == 0,
        "Objective: loss must return a scalar or one value per sample, got "
        f"{show(own)} for {samples} samples.",
    )
    return functools.partial(_scalar_terms, loss)


class _ModuleTerms:
    """A torch loss module, term by term."""

    def __init__(self, loss: nn.Module, reduction: str) -> None:
        self.loss, self.reduction = copy.copy(loss), reduction
        self.loss.reduction = "none"  # type: ignore[assignment]

    def __call__(self, outputs: Any, targets: Any) -> PerSample:
        terms = self.loss(outputs, targets)
        terms = terms.reshape(terms.shape[0], -1)
        weights = self.weights(targets)
        if weights is not None:
            return PerSample(terms.sum(1), weights.to(terms.dtype).reshape(len(terms), -1).sum(1))
        return PerSample(terms.mean(1) if self.reduction in ("mean", "none") else terms.sum(1))

    def weights(self, targets: Any) -> Tensor | None:
        """What `mean` divides by, per element: class weights, zero where the target is ignored."""
        if self.reduction != "mean" or not isinstance(self.loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
            return None
        if targets.is_floating_point():  # class probabilities: the mean is over samples
            return None
        kept = targets != self.loss.ignore_index
        if self.loss.weight is None:
            return kept
        return self.loss.weight[targets.where(kept, 0)] * kept


def _vector_terms(loss: Loss, outputs: Any, targets: Any) -> PerSample:
    """The values of a loss that gives one or more per sample."""
    return mean_over_outputs(loss(outputs, targets))


def _scalar_terms(loss: Loss, outputs: Any, targets: Any) -> PerSample:
    """A loss that gives a scalar, mapped over single samples."""
    samples = sample_count(targets)
    leaves, structure = pytree.tree_flatten((outputs, targets))
    # what has no sample axis, such as the state of a recurrent net, is passed as it is
    axes = [0 if _has_samples(leaf, samples) else None for leaf in leaves]

    def single(*parts: Any) -> Tensor:
        batch = [
            part if axis is None else part[None] for part, axis in zip(parts, axes, strict=True)
        ]
        return loss(*pytree.tree_unflatten(batch, structure))

    return PerSample(torch.func.vmap(single, in_dims=tuple(axes))(*leaves))


def mean_over_outputs(values: Tensor) -> PerSample:
    """One term per sample from values [B, ...]."""
    return PerSample(values.reshape(len(values), -1).mean(1))


def accuracy_metric(
    loss: Loss, outputs: Any, targets: Any
) -> Callable[[Any, Any], PerSample] | None:
    """The fraction of correct predictions where outputs and targets are those of a classifier.

    Class indices [B, ...] against scores [B, C, ...]: the largest score counts. Binary targets
    under `BCEWithLogitsLoss`: the sign of the logit counts. None where neither fits.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    loss = as_module(loss)
    indices = not (
        targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool
    )
    scores = outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1
    if indices and scores and outputs.shape[2:] == targets.shape[1:]:
        ignored = getattr(loss, "ignore_index", None)
        return functools.partial(_right_classes, ignored)
    if isinstance(loss, nn.BCEWithLogitsLoss) and outputs.shape == targets.shape:
        return _right_signs
    return None


def is_accuracy(metric: Callable[[Any, Any], PerSample]) -> bool:
    """Whether a metric is one that `accuracy_metric` gives."""
    return metric is _right_signs or getattr(metric, "func", None) is _right_classes


def _right_classes(ignored: int | None, outputs: Tensor, targets: Tensor) -> PerSample:
    kept = torch.ones_like(targets, dtype=torch.bool) if ignored is None else targets != ignored
    right = (outputs.argmax(1) == targets) & kept
    return PerSample(*(x.reshape(len(x), -1).double().sum(1) for x in (right, kept)))


def _right_signs(outputs: Tensor, targets: Tensor) -> PerSample:
    return mean_over_outputs(((outputs > 0) == (targets > 0.5)).double())
