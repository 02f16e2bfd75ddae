"""The largest rise of the loss in a ball."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pylandscape._checks import require
from pylandscape.objective import Objective
from pylandscape.progress import progress_bar
from pylandscape.sharpness._checks import checked_center, dot, loss_and_gradient, norm, starts_of

_SUFFICIENT = 0.1  # part of the rise that the gradient promises which a step has to bring
_STATIONARY = 1e-4  # an ascent has converged when the gradient promises less than this part more


@dataclass(frozen=True)
class Ball:
    """The largest rise of the loss found in a ball, a lower bound of the true maximum.

    Attributes:
        value: L(w + v) - L(w) at `maximizer`, never negative (v = 0 is in the ball).
        maximizer: v [P], ||v|| <= epsilon.
        epsilon: the radius.
        loss: L(w).
        starts: "gradient" or "random", for each ascent.
        values: float64 [ascents], what each one reached; NaN where the loss was NaN at its start.
        converged: for each ascent, whether it ended at a stationary point of the ball rather than
            with its last step.
        evaluations: gradients computed, over all ascents.
        seed: of the random starts.
    """

    value: float
    maximizer: Tensor = field(repr=False)
    epsilon: float
    loss: float
    starts: tuple[str, ...]
    values: Tensor
    converged: tuple[bool, ...]
    evaluations: int
    seed: int


def ball(
    objective: Objective,
    epsilon: float = 0.1,
    steps: int = 30,
    restarts: int = 2,
    seed: int = 0,
    at: Tensor | None = None,
    progress: bool | None = None,
) -> Ball:
    """S_eps(w) = max over ||v|| <= eps of L(w + v) - L(w), by projected gradient ascent.

    The first ascent starts on the sphere along the gradient, the others in random directions. A
    step is v <- P(v + s eps g / ||g||), g the gradient at w + v and P the projection onto the ball.
    The step size s starts at 1; it doubles after a step that brings at least a tenth of the rise
    that g promises, and otherwise the step is taken back and s is divided by 4. So the value never
    falls, and a large s makes it a power iteration. An ascent ends at a stationary point: there
    eps ||g|| - g.v, the most that g promises in the ball, is at most 1e-4 of the rise so far.

    The value belongs to a point of the ball: a lower bound of the true maximum. For small eps,

        S_eps -> eps ||grad L(w)||            where the gradient is not zero,
        S_eps -> lambda_max eps^2 / 2         at a stationary point with lambda_max > 0.

    The radius is absolute, in the units of the parameters, so the value changes when the parameters
    of a network are rescaled without changing its function (Dinh et al. 2017). The difference of
    two losses is only as exact as the losses: in float32 a rise below about 1e-6 L(w) is noise.

    Args:
        objective: the loss L.
        epsilon: the radius of the ball.
        steps: the most steps of each ascent, one gradient each.
        restarts: ascents from random starts, besides the one along the gradient.
        seed: of the random starts.
        at: the point w [P]; the model's parameters by default.
        progress: show a bar; by default on a terminal only.

    Raises:
        ValueError: an argument is out of range, or the loss or its gradient at w is not finite.
        TypeError: `objective` is not an Objective.

    Example:
        L(w) = (3 w_0^2 + w_1^2) / 2 at its minimum: the maximum is 3 eps^2 / 2.

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().sqrt()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> sharpness = pl.sharpness.ball(objective, epsilon=0.1, at=torch.zeros(2).double())
        >>> abs(sharpness.value / (3 * 0.1**2 / 2) - 1) < 1e-3
        True
    """
    where = "sharpness.ball"
    counts = {"steps": (steps, 1), "restarts": (restarts, 0)}
    center = checked_center(where, objective, at, positive={"epsilon": epsilon}, counts=counts)
    loss, gradient = loss_and_gradient(where, objective, center)
    starts = starts_of(where, gradient, restarts, "gradient")
    generator = torch.Generator().manual_seed(seed)
    ascents: list[_Ascent] = []
    with progress_bar(len(starts) * (steps + 1), "sharpness", "gradient", progress) as bar:

        def rise_and_gradient(v: Tensor) -> tuple[float, Tensor]:
            higher, gradient = objective.loss_and_gradient(at=center + v)
            bar.update(1)
            return higher - loss, gradient

        for start in starts:
            direction = gradient
            if start == "random":
                direction = torch.randn(len(center), generator=generator, dtype=center.dtype)
            ascents.append(_ascend(rise_and_gradient, direction.to(center), epsilon, steps))
            bar.update(steps + 1 - ascents[-1].evaluations)
            bar.set_postfix_str(f"best {np.nanmax([0.0] + [a.value for a in ascents]):.4g}")
    values = torch.tensor([ascent.value for ascent in ascents], dtype=torch.float64)
    require(
        not bool(values.isnan().all()),
        "sharpness.ball: the loss must be defined in the ball, got NaN at every start on the "
        f"sphere of radius {epsilon}. Choose a smaller epsilon.",
    )
    best = ascents[int(values.nan_to_num(-np.inf, np.inf).argmax())]
    rises = best.value > 0
    return Ball(
        value=best.value if rises else 0.0,
        maximizer=best.v if rises else torch.zeros_like(center),
        epsilon=float(epsilon),
        loss=loss,
        starts=tuple(starts),
        values=values,
        converged=tuple(ascent.converged for ascent in ascents),
        evaluations=1 + sum(ascent.evaluations for ascent in ascents),
        seed=seed,
    )


class _Ascent(NamedTuple):
    v: Tensor
    value: float
    converged: bool
    evaluations: int


def _ascend(
    rise_and_gradient: Callable[[Tensor], tuple[float, Tensor]],
    direction: Tensor,
    epsilon: float,
    steps: int,
) -> _Ascent:
    """Projected gradient ascent from eps * direction / ||direction||, see `ball`."""
    v = _project(direction * (2 * epsilon / norm(direction)), epsilon)
    rise, gradient = rise_and_gradient(v)
    size = 1.0
    for taken in range(steps):
        slope = norm(gradient)
        promised = epsilon * slope - dot(gradient, v)
        if not np.isfinite([rise, promised]).all():  # infinity is the most, NaN leads nowhere
            return _Ascent(v, rise, False, 1 + taken)
        if promised <= _STATIONARY * abs(rise):
            return _Ascent(v, rise, True, 1 + taken)
        trial = _project(v + gradient * (size * epsilon / slope), epsilon)
        trial_rise, trial_gradient = rise_and_gradient(trial)
        if trial_rise - rise >= _SUFFICIENT * dot(gradient, trial - v):
            v, rise, gradient, size = trial, trial_rise, trial_gradient, size * 2
        else:
            size /= 4
    return _Ascent(v, rise, False, 1 + steps)


def _project(v: Tensor, epsilon: float) -> Tensor:
    """The closest point of the ball; a rounding inside, so that the norm never exceeds epsilon."""
    length = norm(v)
    return v if length <= epsilon else v * ((1 - torch.finfo(v.dtype).eps) * epsilon / length)
