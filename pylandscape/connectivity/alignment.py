"""Bringing the hidden units of one network into the order of another's (Ainsworth et al. 2023)."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pylandscape._checks import require, show
from pylandscape.connectivity._models import Model, state_of
from pylandscape.connectivity.symmetry import Axis, Group, permutation_groups
from pylandscape.objective import Objective
from pylandscape.parameters import unwrap
from pylandscape.progress import progress_bar
from pylandscape.trajectory.snapshots import canonical_name

Method = Literal["weights", "activations"]
MOST_SWEEPS = 100
LEAST_GAIN = 1e-12  # of the similarity, below which a new order is rounding (Ainsworth et al.)
PROBE = 8  # samples on which the permuted model is compared with the given one


@dataclass(frozen=True, eq=False)
class Matching:
    """Orders of the hidden units of model B that bring them to those of model A.

    Attributes:
        groups: the units that can change places, see `permutation_groups`.
        orders: for each group by name, int64 [units]: unit r of the permuted B is unit order[r]
            of B.
        similarity: of A and the permuted B, the cosine of the angle between their parameters.
        similarity_before: that of A and B as given.
        method: `weights` or `activations`.
        sweeps: over all groups until nothing changed.
        seed: of the order of the groups in a sweep.
    """

    groups: list[Group] = field(repr=False)
    orders: dict[str, Tensor] = field(repr=False)
    similarity: float
    similarity_before: float
    method: str
    sweeps: int
    seed: int

    def permute(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters and buffers by the names of the objective's model, with permuted units."""
        state = dict(state)
        for group in self.groups:
            _reorder(state, group.axes, self.orders[group.name])
        return state


def align(
    objective: Objective,
    model_a: Model,
    model_b: Model,
    method: Method = "weights",
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> nn.Module:
    """A copy of model B that computes the same function, its hidden units in the order of A's.

    Two networks trained apart can be alike but for the order of their units, and the straight line
    between them then runs over a barrier that is no property of the two functions. `match_units`
    finds the orders; here they are applied: weights, biases, and what norms keep of each unit,
    running statistics included. After that, average or interpolate with the BatchNorm policy
    `recompute`: the statistics of an average are not the average of the statistics.

    Args:
        objective: an objective of the models' architecture; its data are used by `activations`.
        model_a: stays as it is: a module, a state dict or a flat vector.
        model_b: is permuted; a copy is returned, of `objective.model` where B is not a module.
        method: `weights` or `activations`, see `match_units`.
        seed, progress: as for `match_units`.

    Raises:
        ValueError: as for `match_units`.

    Example:
        >>> import torch, pylandscape as pl
        >>> layers = torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
        >>> a = torch.nn.Sequential(*layers)
        >>> order = torch.randperm(8)
        >>> b = {"0.weight": a[0].weight[order], "0.bias": a[0].bias[order],
        ...      "2.weight": a[2].weight[:, order], "2.bias": a[2].bias}
        >>> data = torch.randn(9, 4), torch.randint(0, 3, (9,))
        >>> objective = pl.Objective(a, torch.nn.CrossEntropyLoss(), data)
        >>> aligned = pl.align(objective, a, b)
        >>> torch.equal(aligned[0].weight, a[0].weight)
        True
    """
    matching = match_units(objective, model_a, model_b, method, seed=seed, progress=progress)
    before = state_of(objective, model_b, "align", "model_b")
    after = matching.permute(_full(objective, before))
    base = unwrap(model_b) if isinstance(model_b, nn.Module) else objective.model
    given, permuted = _copy_with(base, before), _copy_with(base, after)
    _require_equal(objective, given, permuted)
    return permuted


def match_units(
    objective: Objective,
    model_a: Model,
    model_b: Model,
    method: Method = "weights",
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Matching:
    """The orders of the hidden units of B in which they are most like those of A.

    `weights` maximises the inner product of the parameters <w_A, P w_B> over the permutations of
    all groups: coordinate descent, in which each group in turn is assigned, the others held, by a
    linear assignment, until a sweep over all groups gains no more than 1e-12. `activations`
    maximises for each group the sum of the correlations of the units' outputs over the samples of
    the objective (Li et al. 2016), by a single linear assignment; the outputs are those of the
    layers with weights, before norm and activation. It finds units that respond alike, also where
    their weights are not alike because their inputs are in another order.

    Coordinate descent finds an optimum that no single group can improve, not always the best.

    Args:
        objective: an objective of the models' architecture.
        model_a, model_b: modules, state dicts or flat vectors.
        method: `weights` or `activations`.
        seed: of the order in which the groups take turns.
        progress: show a bar; default on a terminal only.

    Returns:
        The orders, with the similarity before and after.

    Raises:
        ValueError: a model of another architecture, or one whose units are not known: the message
            names the operator and the source line.

    Example:
        >>> import torch, pylandscape as pl
        >>> layers = torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 3)
        >>> a = torch.nn.Sequential(*layers)
        >>> b = {"0.weight": a[0].weight[[2, 0, 1]], "0.bias": a[0].bias[[2, 0, 1]],
        ...      "2.weight": a[2].weight[:, [2, 0, 1]], "2.bias": a[2].bias}
        >>> data = torch.randn(9, 4), torch.randint(0, 3, (9,))
        >>> objective = pl.Objective(a, torch.nn.CrossEntropyLoss(), data)
        >>> matching = pl.match_units(objective, a, b)
        >>> matching.orders["0"].tolist(), round(matching.similarity, 6)
        ([1, 2, 0], 1.0)
        >>> torch.equal(matching.permute(b)["0.weight"], a[0].weight)
        True
    """
    require(
        method in get_args(Method),
        f"align: method must be one of {get_args(Method)}, got {show(method)}.",
    )
    require(
        isinstance(seed, int) and seed >= 0,
        f"align: seed must be an integer >= 0, got {show(seed)}.",
    )
    states = [
        _full(objective, state_of(objective, model, "align", name))
        for model, name in ((model_a, "model_a"), (model_b, "model_b"))
    ]
    groups = permutation_groups(objective, "align")
    names = [entry.name for entry in objective.space.entries]
    a, b = ({name: state[name].detach().double() for name in names} for state in states)
    before = _similarity(a, b)
    with progress_bar(None, "alignment", "sweep", progress) as bar:
        if method == "weights":
            orders, sweeps = _match_weights(a, b, groups, seed, bar)
        else:
            orders, sweeps = _match_activations(objective, states, groups), 1
    for group in groups:
        _reorder(b, [x for x in group.axes if x.tensor in b], orders[group.name])
    return Matching(groups, orders, _similarity(a, b), before, method, sweeps, seed)


# -- weights --------------------------------------------------------------------------------------


def _match_weights(
    a: dict[str, Tensor], b: dict[str, Tensor], groups: list[Group], seed: int, bar: Any
) -> tuple[dict[str, Tensor], int]:
    """Coordinate descent over the groups; `b` is read only."""
    b = dict(b)  # permuted as the orders stand
    generator = np.random.default_rng(seed)
    orders = {group.name: torch.arange(group.size) for group in groups}
    improved, sweeps = True, 0
    while improved and sweeps < MOST_SWEEPS:
        improved, sweeps = False, sweeps + 1
        for which in generator.permutation(len(groups)):
            group = groups[which]
            axes = [axis for axis in group.axes if axis.tensor in b]
            step = _assign(torch.stack([_products(axis, a, b) for axis in axes]).sum(0))
            trial = {axis.tensor: b[axis.tensor] for axis in axes}
            old = _inner(a, trial)
            _reorder(trial, axes, step)
            # The sum of the products is the gain only where no tensor has the group on two of its
            # dimensions. With the true one the descent ends.
            if _inner(a, trial) > old + LEAST_GAIN * max(1.0, abs(old)):
                b |= trial
                orders[group.name] = orders[group.name][step]
                improved = True
        bar.update(1)
    return orders, sweeps


def _products(axis: Axis, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    """<A's unit r, B's unit s> along one axis, [units, units]."""
    return axis.units_first(a[axis.tensor]) @ axis.units_first(b[axis.tensor]).T


def _assign(gains: Tensor) -> Tensor:
    """The order s(r) that maximises sum_r gains[r, s(r)]."""
    return torch.from_numpy(linear_sum_assignment(gains.cpu().numpy(), maximize=True)[1])


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(float((a[name] * tensor).sum()) for name, tensor in b.items())


def _similarity(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    lengths = [sum(float(x.square().sum()) for x in state.values()) ** 0.5 for state in (a, b)]
    return _inner(a, b) / max(lengths[0] * lengths[1], np.finfo(float).tiny)


# -- activations -----------------------------------------------------------------------------------


def _match_activations(
    objective: Objective, states: list[dict[str, Tensor]], groups: list[Group]
) -> dict[str, Tensor]:
    models = [_copy_with(objective.model, state).to(objective.dtype).eval() for state in states]
    layers = _layers(objective.model)
    producers: dict[str, list[Axis]] = {}
    for group in groups:
        own = [x for x in group.axes if x.tensor in group.producers and x.dim == 0]
        producers[group.name] = [axis for axis in own if axis.tensor in layers]
        require(
            bool(producers[group.name]),
            "align: method must be 'weights' where units are not made by Linear or convolution "
            f"modules, got 'activations' for the group {group.name!r}.",
        )
    made_by = {axis.tensor: layers[axis.tensor] for own in producers.values() for axis in own}
    moments: dict[str, _Moments] = {name: _Moments() for name in made_by}
    for outputs in _outputs(objective, models, made_by):
        for name, (of_a, of_b) in outputs.items():
            moments[name].add(of_a, of_b)
    orders = {}
    for group in groups:
        gains = torch.zeros(group.size, group.size, dtype=torch.float64)
        for axis in producers[group.name]:
            correlations = moments[axis.tensor].correlations().cpu()
            for slot in axis.index:
                gains += correlations[slot][:, slot]
        orders[group.name] = _assign(gains)
    return orders


class _Moments:
    """Sums over samples of the outputs of two layers, for the correlations of their units."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, a: Tensor, b: Tensor) -> None:
        a, b = a.double(), b.double()  # [samples, units]
        new = [a.sum(0), b.sum(0), a.square().sum(0), b.square().sum(0), a.T @ b]
        self.sums = [x + y for x, y in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(a)

    def correlations(self) -> Tensor:
        """[units of A, units of B]; zero where a unit's output is constant."""
        mean_a, mean_b, square_a, square_b, products = (x / self.count for x in self.sums)
        deviations = [
            (square - mean.square()).clamp(min=0).sqrt()
            for square, mean in ((square_a, mean_a), (square_b, mean_b))
        ]
        scale = deviations[0][:, None] * deviations[1]
        centred = products - mean_a[:, None] * mean_b
        return torch.where(scale > 1e-12 * scale.max(), centred / scale, 0.0)


def _layers(model: nn.Module) -> dict[str, str]:
    """The modules that make units, by the names of their weights."""
    convolution = nn.modules.conv._ConvNd
    return {
        f"{name}.weight" if name else "weight": name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, convolution))
    }


@torch.no_grad()
def _outputs(
    objective: Objective, models: list[nn.Module], made_by: dict[str, str]
) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """For every batch the outputs [samples and positions, units] of some layers of both models."""
    caught: list[dict[str, list[Tensor]]] = [{}, {}]

    def hook(seen: dict[str, list[Tensor]], name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            linear = isinstance(module, nn.Linear)
            units_last = output if linear else output.movedim(1, -1)
            seen.setdefault(name, []).append(units_last.reshape(-1, units_last.shape[-1]))

        return keep

    with ExitStack() as hooks:
        for model, seen in zip(models, caught, strict=True):
            for name, layer in made_by.items():
                handle = model.get_submodule(layer).register_forward_hook(hook(seen, name))
                hooks.callback(handle.remove)
        for inputs, _ in objective.data.batches(256):
            for model, seen in zip(models, caught, strict=True):
                seen.clear()
                model(inputs)
            yield {
                name: (torch.cat(caught[0][name]), torch.cat(caught[1][name])) for name in made_by
            }


# -- models ----------------------------------------------------------------------------------------


def _full(objective: Objective, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the frozen parameters, by the names of the objective's model."""
    return {name: p.detach() for name, p in objective.model.named_parameters()} | state


def _reorder(state: dict[str, Tensor], axes: Any, order: Tensor) -> None:
    for axis in axes:
        state[axis.tensor] = axis.permute(state[axis.tensor], order)


@torch.no_grad()
def _copy_with(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `model` that holds the tensors of `state`."""
    copied = copy.deepcopy(model)
    wanted = {canonical_name(name): tensor for name, tensor in state.items()}
    for name, tensor in (*copied.named_parameters(), *copied.named_buffers()):
        if canonical_name(name) in wanted:
            tensor.copy_(wanted[canonical_name(name)])
    return copied


@torch.no_grad()
def _require_equal(objective: Objective, given: nn.Module, permuted: nn.Module) -> None:
    """A program that tells less than the module would give another function."""
    inputs = objective.data.first(PROBE)[0]
    outputs = []
    for model in (given, permuted):
        model = copy.deepcopy(model).to(objective.dtype).eval()
        outputs.append(model(inputs))
    scale = float(outputs[0].abs().max())
    allowed = 1e3 * torch.finfo(objective.dtype).eps * max(scale, 1e-30)
    difference = float((outputs[0] - outputs[1]).abs().max())
    require(
        difference <= allowed,
        "align: the permuted model must compute the function of model_b, got outputs that differ "
        f"by {difference:.3g}. Please report this model.",
        RuntimeError,
    )
