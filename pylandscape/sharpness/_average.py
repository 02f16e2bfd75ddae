"""Average-case sharpness: the mean rise of the loss under random perturbations."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pylandscape.directions import Directions, random_directions
from pylandscape.objective import Objective
from pylandscape.progress import progress_bar
from pylandscape.sharpness._checks import checked_center

CHUNK = 16  # directions that are formed at once, two points on each


@dataclass(frozen=True)
class Average:
    """The mean rise, with its error.

    Attributes:
        value: the mean of L(w + v) - L(w) over the draws.
        stderr: its standard error, from the spread over the draws.
        values: float64 [draws], the mean rise at v and -v for each.
        rho: the standard deviation of v_i, in units of |w_i| if `adaptive`.
        adaptive: whether every parameter moves in its own size.
        loss: L(w).
        seed: of the draws.
    """

    value: float
    stderr: float
    values: Tensor = field(repr=False)
    rho: float
    adaptive: bool
    loss: float
    seed: int


def average(
    objective: Objective,
    rho: float = 0.05,
    adaptive: bool = True,
    draws: int = 25,
    seed: int = 0,
    at: Tensor | None = None,
    progress: bool | None = None,
) -> Average:
    """E over v ~ N(0, rho^2 diag(c^2)) of L(w + v) - L(w), c = |w| or 1.

    With c = |w| it is the adaptive average-case sharpness of Andriushchenko et al. (2023), which
    does not change when the layers of a ReLU network are rescaled. For small rho it is
    rho^2 / 2 sum_i c_i^2 H_ii, with c = 1 half of rho^2 times the trace of the Hessian. Every draw
    v comes with -v, so that the gradient adds no noise.

    Args:
        objective: the loss L.
        rho: the standard deviation.
        adaptive: c = |w|; False: c = 1.
        draws: how many v, two evaluations of the loss each.
        seed: of the draws.
        at: the point w [P]; the model's parameters by default.
        progress: show a bar; by default on a terminal only.

    Raises:
        ValueError: an argument is out of range.
        TypeError: `objective` is not an Objective.

    Example:
        L(w) = (3 w_0^2 + w_1^2) / 2 at w = (1, 2) has the mean rise rho^2 (3 + 4) / 2.

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().sqrt()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> at = torch.tensor([1.0, 2.0]).double()
        >>> found = pl.sharpness.average(objective, rho=0.1, draws=400, at=at)
        >>> abs(found.value - 0.1**2 * 7 / 2) < 4 * found.stderr
        True
    """
    counts = {"draws": (draws, 2), "seed": (seed, 0)}
    center = checked_center(
        "sharpness.average", objective, at, positive={"rho": rho}, counts=counts
    )
    raw = random_directions(objective, draws, seed, normalize="none", ignore=None)
    loss = objective.loss(center)
    rises = []
    with progress_bar(2 * draws, "average sharpness", show=progress) as bar:
        for start in range(0, draws, CHUNK):
            some = raw[start : start + CHUNK]
            if adaptive:
                vectors = some.vectors.to(center) * center
                some = Directions.from_vectors(objective.space, vectors)
            shares = rho * torch.eye(len(some), dtype=torch.float64)
            points = torch.cat([shares, -shares])
            losses = objective.evaluate_along(center, some, points, bar=bar)["loss"]
            rises.append(losses.view(2, -1).mean(0) - loss)
    values = torch.cat(rises)
    return Average(
        value=float(values.mean()),
        stderr=float(values.std() / draws**0.5),
        values=values,
        rho=float(rho),
        adaptive=adaptive,
        loss=loss,
        seed=seed,
    )
