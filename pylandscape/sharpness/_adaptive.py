"""Adaptive worst-case sharpness: the largest rise where every parameter moves in its own size."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from pylandscape._checks import all_finite, require, show
from pylandscape.objective import Objective
from pylandscape.progress import progress_bar
from pylandscape.sharpness._checks import checked_center, loss_and_gradient, norm, starts_of

Norm = Literal["l2", "linf"]
RHO: dict[str, float] = {"l2": 0.5, "linf": 1e-3}

# Of auto-PGD (Croce and Hein 2020): the weight of the new step beside the momentum, the share of
# steps that must rise between two checkpoints, and how these are spread.
_WEIGHT, _SUCCESSES = 0.75, 0.75
_FIRST, _SHORTER, _SHORTEST = 0.22, 0.03, 0.06

RiseAndGradient = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True)
class Adaptive:
    """The largest rises found, a lower bound of the true ones.

    Attributes:
        value: the mean over the groups of samples of the largest rise of their loss, each group
            weighted by its samples, never negative.
        maximizer: v [P] where all samples are one group, else None.
        norm, rho: the set {||v / |w|||  <= rho}.
        m: samples per group, or None: all of them.
        values: float64 [groups], the rise of each.
        loss: L(w) over all samples.
        evaluations: gradients of single groups computed.
        seed: of the random starts.
    """

    value: float
    maximizer: Tensor | None = field(repr=False)
    norm: str
    rho: float
    m: int | None
    values: Tensor
    loss: float
    evaluations: int
    seed: int


def adaptive(
    objective: Objective,
    norm: Norm = "linf",
    rho: float | None = None,
    m: int | None = None,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
    at: Tensor | None = None,
    progress: bool | None = None,
) -> Adaptive:
    """max over ||v / |w|||_p <= rho of L(w + v) - L(w) (Kwon 2021, Andriushchenko et al. 2023).

    The set is the box |v_i| <= rho |w_i| for `linf` and the ellipsoid sum (v_i / w_i)^2 <= rho^2
    for `l2`; a parameter that is zero stays so. It moves with the parameters when a layer of a ReLU
    network is scaled by c and the next by 1/c, so the value does not change. With `m` it is the
    m-sharpness: the mean over groups of m samples of the largest rise of each group's own loss.

    The maximum is sought by auto-PGD (Croce and Hein 2020) in u = v / |w|: steps along the sign
    (`linf`) or the direction (`l2`) of the gradient with momentum, their size 2 rho at first and
    halved, from the best point so far, where the loss has ceased to rise.

    Args:
        objective: the loss L.
        norm: `linf` or `l2`.
        rho: the radius; 0.001 for `linf` and 0.5 for `l2` by default (the programs of
            Andriushchenko et al. and of Kwon et al.).
        m: samples per group, in the order of the data; None: all samples at once.
        steps: of auto-PGD, one gradient each; 20 in the program of Andriushchenko et al.
        restarts: ascents from random points of the set, besides the one from v = 0.
        seed: of the random points.
        at: the point w [P]; the model's parameters by default.
        progress: show a bar; by default on a terminal only.

    Raises:
        ValueError: an argument is out of range, or the loss or its gradient at w is not finite.
        TypeError: `objective` is not an Objective.

    Example:
        L(w) = (3 w_0^2 + w_1^2) / 2 at w = (1, 2): the box of rho = 0.1 has its maximum at
        v = (0.1, 0.2), a rise of 0.3 + 0.4 + 0.035.

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().sqrt()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> at = torch.tensor([1.0, 2.0]).double()
        >>> round(pl.sharpness.adaptive(objective, "linf", rho=0.1, at=at).value, 6)
        0.735
    """
    where = "sharpness.adaptive"
    require(
        norm in get_args(Norm),
        f"{where}: norm must be one of {get_args(Norm)}, got {show(norm)}.",
    )
    rho = RHO[norm] if rho is None else rho
    counts = {"steps": (steps, 1), "restarts": (restarts, 0), "seed": (seed, 0)}
    counts |= {} if m is None else {"m": (m, 1)}
    center = checked_center(where, objective, at, positive={"rho": rho}, counts=counts)
    require(
        m is None or objective.data.in_memory,
        f"{where}: m must be None where the samples do not fit into memory, got {m}.",
    )
    groups = [objective]
    if m is not None and m < objective.samples:
        # PyTorch: a native engine for each would take longer to make than to run
        parts = objective.data.batches(m)
        groups = [objective.replace(data=part, engine="torch") for part in parts]
    generator = torch.Generator().manual_seed(seed)
    search = _Search(center, norm, float(rho), steps)
    found, losses, evaluations = [], [], 0
    total = len(groups) * (1 + restarts) * (steps + 1)
    with progress_bar(total, f"adaptive {norm}", "gradient", progress) as bar:
        for group in groups:
            loss, gradient = loss_and_gradient(where, group, center)
            losses.append(loss)
            evaluations += 1
            starts = starts_of(where, search.scale * gradient, restarts, "centre")
            best = _Found(0.0, torch.zeros_like(center))
            for start in starts:
                first = torch.zeros_like(center)
                if start == "random":
                    first = search.random_point(generator)
                ascent = search.ascend(_rises(group, center, search.scale, loss, bar), first)
                best = max(best, ascent, key=lambda each: each.rise)
                evaluations += steps + 1
            found.append(best)
    weights = np.array([group.samples for group in groups], dtype=np.float64)
    return Adaptive(
        value=float(np.average([each.rise for each in found], weights=weights)),
        maximizer=search.scale * found[0].u if len(groups) == 1 else None,
        norm=norm,
        rho=float(rho),
        m=m,
        values=torch.tensor([each.rise for each in found], dtype=torch.float64),
        loss=float(np.average(losses, weights=weights)),
        evaluations=evaluations,
        seed=seed,
    )


class _Found(NamedTuple):
    rise: float
    u: Tensor


def _rises(
    objective: Objective, center: Tensor, scale: Tensor, loss: float, bar: object
) -> RiseAndGradient:
    """The rise of the loss at w + |w| u and its gradient in u."""

    def rise_and_gradient(u: Tensor) -> tuple[float, Tensor]:
        higher, gradient = objective.loss_and_gradient(at=center + scale * u)
        bar.update(1)  # type: ignore[attr-defined]
        return higher - loss, scale * gradient

    return rise_and_gradient


class _Search:
    """Auto-PGD in u = v / |w| on the ball of a norm."""

    def __init__(self, center: Tensor, norm: str, rho: float, steps: int) -> None:
        self.scale, self.norm, self.rho, self.steps = center.abs(), norm, rho, steps
        self.checkpoints = _checkpoints(steps)

    def random_point(self, generator: torch.Generator) -> Tensor:
        """On the border of the set."""
        drawn = torch.randn(len(self.scale), generator=generator, dtype=self.scale.dtype)
        return self.rho * self._direction(drawn.to(self.scale))

    def ascend(self, rise_and_gradient: RiseAndGradient, start: Tensor) -> _Found:
        """The best point that is met from `start` on."""
        previous = u = start
        rise, gradient = rise_and_gradient(u)
        best, best_gradient = _Found(rise, u), gradient
        size, successes, last = 2 * self.rho, 0, 0
        shrunk, best_before = False, rise
        for step in range(1, self.steps + 1):
            ahead = self._project(u + size * self._direction(gradient))
            moved = ahead
            if step > 1:
                moved = self._project(u + _WEIGHT * (ahead - u) + (1 - _WEIGHT) * (u - previous))
            before = rise
            previous, u = u, moved
            rise, gradient = rise_and_gradient(u)
            successes += rise > before
            if rise > best.rise or np.isnan(best.rise):
                best, best_gradient = _Found(rise, u), gradient
            if not all_finite(gradient):
                if rise == np.inf:
                    break  # there is no more
                step_back = True
            else:
                step_back = step in self.checkpoints and (
                    successes < _SUCCESSES * (step - last)
                    or (not shrunk and best.rise == best_before)
                )
            if step in self.checkpoints:
                shrunk, best_before, successes, last = step_back, best.rise, 0, step
            if step_back:
                size /= 2
                previous = u = best.u
                rise, gradient = best.rise, best_gradient
        return best if best.rise > 0 else _Found(0.0, torch.zeros_like(u))

    def _direction(self, gradient: Tensor) -> Tensor:
        """The step of length one that rises most; zero parameters take no part."""
        gradient = torch.where(self.scale > 0, gradient, 0)
        if self.norm == "linf":
            return gradient.sign()
        return gradient / max(norm(gradient), torch.finfo(gradient.dtype).tiny)

    def _project(self, u: Tensor) -> Tensor:
        if self.norm == "linf":
            return u.clamp(-self.rho, self.rho)
        length = norm(u)
        return u if length <= self.rho else u * ((1 - torch.finfo(u.dtype).eps) * self.rho / length)


def _checkpoints(steps: int) -> set[int]:
    """The steps after which auto-PGD looks back, at shares of the run that come closer together.

    Example:
        >>> sorted(_checkpoints(20))
        [5, 9, 12, 14, 16, 18, 19]
    """
    shares = [0.0, _FIRST]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - _SHORTER, _SHORTEST))
    after = (int(np.ceil(share * steps - 1e-9)) for share in shares[1:])  # 0.7 * 20 is 14
    return {step for step in after if step < steps}
