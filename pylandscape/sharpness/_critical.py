"""Critical sharpness: the curvature along the step of an optimiser, from losses alone."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.objective import Objective
from pylandscape.sharpness._checks import checked_center, loss_and_gradient, norm

FIRST = 1e-3  # of the search: the length of a step in units of ||w||
MOST_DOUBLINGS = 60


@dataclass(frozen=True)
class Critical:
    """The critical sharpness.

    Attributes:
        value: 2 / learning_rate; 0 where no learning rate makes the loss rise.
        learning_rate: eta_c, the smallest found at which the step makes the loss rise.
        update: `gradient`, or `given`.
        loss: L(w).
        evaluations: losses computed.
    """

    value: float
    learning_rate: float
    update: str
    loss: float
    evaluations: int


def critical(
    objective: Objective,
    update: Tensor | None = None,
    rtol: float = 1e-2,
    at: Tensor | None = None,
) -> Critical:
    """2 / eta_c, eta_c the smallest learning rate for which L(w - eta_c d) > L(w).

    The critical sharpness of Kalra et al. (2026) along an update d: a learning rate above eta_c
    makes the loss rise at the next step. For a quadratic loss and d = g it is the curvature along
    the gradient, g.Hg / g.g <= lambda_max, so that training with a learning rate above 2 over it
    is unstable. It needs no derivative beyond d: a search that doubles or halves the learning rate
    until it has eta_c between two values, then bisects.

    Args:
        objective: the loss L.
        update: d [P], the step of the optimiser for a learning rate of 1; the gradient by default.
        rtol: the relative error of eta_c.
        at: the point w [P]; the model's parameters by default.

    Raises:
        ValueError: an argument is out of range, a zero or not finite update, or one along which
            the loss rises from the start.
        TypeError: `objective` is not an Objective.

    Example:
        L(w) = (3 w_0^2 + w_1^2) / 2 along w_0 has the curvature 3.

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().sqrt()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> found = pl.sharpness.critical(objective, at=torch.tensor([1.0, 0.0]).double())
        >>> abs(found.value / 3 - 1) < 1e-2
        True
    """
    where = "sharpness.critical"
    center = checked_center(where, objective, at, positive={"rtol": rtol})
    require(
        update is None or (isinstance(update, Tensor) and update.shape == center.shape),
        f"{where}: update must be a tensor of shape [{len(center)}], got {show(update)}.",
    )
    if update is None:
        loss, direction = loss_and_gradient(where, objective, center)
    else:
        loss, direction = objective.loss(center), update.detach().to(center)
    length = norm(direction)
    require(
        0 < length < np.inf and np.isfinite(loss),
        f"{where}: update must be finite and not zero at a point of finite loss, got one of length "
        f"{length} and loss {loss}.",
    )
    evaluations = 1

    def rise(rate: float) -> float:
        nonlocal evaluations
        evaluations += 1
        higher = objective.loss(center - rate * direction) - loss
        return higher if higher == higher else np.inf  # NaN counts as risen

    rate = FIRST * max(norm(center), 1e-3) / length
    growing = rise(rate) <= 0
    for _ in range(MOST_DOUBLINGS):
        rate *= 2.0 if growing else 0.5
        # on the way down an equal loss is a step too short for the precision
        if (rise(rate) > 0) if growing else (rise(rate) < 0):
            break
    else:
        require(
            growing,
            f"{where}: update must lower the loss at first, got one along which it rises. It is "
            "subtracted: the gradient itself, not its negative.",
        )
        rate = np.inf
    low, high = (rate / 2, rate) if growing else (rate, 2 * rate)
    while np.isfinite(high) and high - low > rtol * high:
        middle = (low + high) / 2
        low, high = (low, middle) if rise(middle) > 0 else (middle, high)
    kind = "gradient" if update is None else "given"
    return Critical(2 / high, high, kind, loss, evaluations)
