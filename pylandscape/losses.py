"""Per-sample losses and metrics: what turns a model's outputs into sums over samples.

Every quantity is a ratio of two sums over samples, value = sum_i a_i / sum_i b_i. The weights b_i
are 1 except where the loss itself weights its mean: class weights and `ignore_index`.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pylandscape._checks import require, show

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


class SampleLoss:
    """A user's loss, mean or sum over a batch, as terms per sample.

    A torch loss module is evaluated with `reduction="none"` and keeps the weighting of its mean.
    Another callable may return one value per sample, or a scalar mean or sum over the samples: then
    it is mapped over single samples. The terms are checked against the loss itself on one batch.

    Args:
        loss: a torch loss module or a callable (outputs, targets) -> Tensor.
        outputs, targets: one batch, to find out and to check.

    Raises:
        ValueError: the loss is not a mean or a sum over samples.
    """

    def __init__(self, loss: Loss, outputs: Any, targets: Any) -> None:
        require(callable(loss), f"Objective: loss must be callable, got {show(loss)}.", TypeError)
        self.loss = loss
        own = _own_value(loss, outputs, targets)
        require(
            isinstance(own, Tensor) and own.is_floating_point(),
            f"Objective: loss must return a real tensor, got {show(own)}.",
            TypeError,
        )
        samples = sample_count(targets)
        self._terms = self._choose(own, outputs, targets, samples)
        self._check(own, outputs, targets, samples)

    def __call__(self, outputs: Any, targets: Any) -> PerSample:
        return self._terms(outputs, targets)

    def weight(self, targets: Any) -> float:
        """The sum of the weights b_i of one batch."""
        weights = self._terms.weights(targets) if isinstance(self._terms, _ModuleTerms) else None
        return float(sample_count(targets) if weights is None else weights.double().sum())

    @property
    def name(self) -> str:
        return getattr(self.loss, "__name__", type(self.loss).__name__)

    def _choose(self, own: Tensor, outputs: Any, targets: Any, samples: int) -> Any:
        reduction = getattr(self.loss, "reduction", None)
        if isinstance(self.loss, nn.Module) and reduction in ("mean", "sum", "none", "batchmean"):
            return _ModuleTerms(self.loss, str(reduction), own)
        if own.ndim and own.shape[0] == samples:
            return _vector_terms(self.loss)
        require(
            own.ndim == 0,
            "Objective: loss must return a scalar or one value per sample, got "
            f"{show(own)} for {samples} samples.",
        )
        return _scalar_terms(self.loss)

    def _check(self, own: Tensor, outputs: Any, targets: Any, samples: int) -> None:
        try:
            values, weights = self._terms(outputs, targets)
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
        mean = values.sum() / (samples if weights is None else weights.sum())
        expected = own.mean() if own.ndim else own
        alike = [torch.allclose(x, expected, rtol=1e-3, atol=1e-6, equal_nan=True)
                 for x in (mean, values.sum())]  # fmt: skip
        require(
            any(alike),
            "Objective: loss must be a mean or a sum over samples, got "
            f"{self.name} = {expected.item():.6g} where the mean over samples is "
            f"{mean.item():.6g}. "
            "Return one value per sample, or drop what couples the samples of a batch.",
        )


def _own_value(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """What the user's loss says of a batch, in the objective's precision and on its device."""
    if isinstance(loss, nn.Module) and isinstance(outputs, Tensor):
        loss = copy.deepcopy(loss).to(device=outputs.device, dtype=outputs.dtype)
    try:
        return loss(outputs, targets)
    except Exception as error:
        raise ValueError(
            "Objective: loss must accept (outputs, targets), got "
            f"outputs {show(outputs)} and targets {show(targets)}: {error}"
        ) from error


class _ModuleTerms:
    """A torch loss module, term by term."""

    def __init__(self, loss: nn.Module, reduction: str, like: Tensor) -> None:
        self.loss = copy.deepcopy(loss).to(device=like.device, dtype=like.dtype)
        self.loss.reduction = "none"  # type: ignore[assignment]
        self.reduction = reduction

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


def _vector_terms(loss: Loss) -> Callable[[Any, Any], PerSample]:
    def terms(outputs: Any, targets: Any) -> PerSample:
        values = loss(outputs, targets)
        return PerSample(values.reshape(values.shape[0], -1).mean(1))

    return terms


def _scalar_terms(loss: Loss) -> Callable[[Any, Any], PerSample]:
    def single(output: Any, target: Any) -> Tensor:
        one = lambda tree: pytree.tree_map(lambda leaf: leaf[None], tree)  # noqa: E731
        return loss(one(output), one(target))

    def terms(outputs: Any, targets: Any) -> PerSample:
        return PerSample(torch.func.vmap(single)(outputs, targets))

    return terms


def accuracy_metric(
    loss: Loss, outputs: Any, targets: Any
) -> Callable[[Any, Any], PerSample] | None:
    """The fraction of correct predictions where outputs and targets are those of a classifier.

    Class indices [B, ...] against scores [B, C, ...]: the largest score counts. Binary targets
    under `BCEWithLogitsLoss`: the sign of the logit counts. None where neither fits.
    """
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return None
    indices = not (
        targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool
    )
    if indices and outputs.ndim == targets.ndim + 1 and outputs.shape[2:] == targets.shape[1:]:
        ignored = getattr(loss, "ignore_index", None)

        def of_class(outputs: Tensor, targets: Tensor) -> PerSample:
            kept = (
                torch.ones_like(targets, dtype=torch.bool)
                if ignored is None
                else targets != ignored
            )
            right = (outputs.argmax(1) == targets) & kept
            return PerSample(*(x.reshape(len(x), -1).double().sum(1) for x in (right, kept)))

        return of_class
    if isinstance(loss, nn.BCEWithLogitsLoss) and outputs.shape == targets.shape:

        def of_sign(outputs: Tensor, targets: Tensor) -> PerSample:
            right = (outputs > 0) == (targets > 0.5)
            return PerSample(right.reshape(len(right), -1).double().mean(1))

        return of_sign
    return None
