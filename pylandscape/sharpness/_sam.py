"""The sharpness that sharpness-aware minimisation works on: one step along the gradient."""

from dataclasses import dataclass

from torch import Tensor

from pylandscape._checks import require
from pylandscape.objective import Objective
from pylandscape.sharpness._checks import checked_center, loss_and_gradient, norm


@dataclass(frozen=True)
class Sam:
    """The rise after one step of length rho along the gradient.

    Attributes:
        value: L(w + rho g / ||g||) - L(w).
        rho: the length of the step.
        gradient_norm: ||g||; rho times that is the value to first order.
        loss: L(w).
    """

    value: float
    rho: float
    gradient_norm: float
    loss: float


def sam(objective: Objective, rho: float = 0.05, at: Tensor | None = None) -> Sam:
    """L(w + rho g / ||g||) - L(w), g the gradient at w (Foret et al. 2021).

    What SAM adds to the loss that it minimises: the largest rise in the ball of radius rho to first
    order. It takes one gradient and one loss; where the gradient is small, at the end of training,
    its direction need not be one in which the loss is sharp, and `ball` is the better measure.

    Args:
        objective: the loss L.
        rho: the length of the step; 0.05 in the paper.
        at: the point w [P]; the model's parameters by default.

    Raises:
        ValueError: an argument is out of range, the gradient is zero or not finite.
        TypeError: `objective` is not an Objective.

    Example:
        L(w) = (3 w_0^2 + w_1^2) / 2 at w = (1, 0): the step leads to (1.1, 0).

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().sqrt()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> at = torch.tensor([1.0, 0.0]).double()
        >>> round(pl.sharpness.sam(objective, rho=0.1, at=at).value, 6)
        0.315
    """
    where = "sharpness.sam"
    center = checked_center(where, objective, at, positive={"rho": rho})
    loss, gradient = loss_and_gradient(where, objective, center)
    length = norm(gradient)
    require(
        length > 0,
        f"{where}: the gradient must not be zero, got a stationary point. Use "
        "sharpness.ball there.",
    )
    higher = objective.loss(center + gradient * (rho / length))
    return Sam(value=higher - loss, rho=float(rho), gradient_norm=length, loss=loss)
