"""The sharpness of Keskar et al. (2017): the largest rise in a box, found by L-BFGS-B."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.directions import random_directions
from pylandscape.objective import Objective
from pylandscape.progress import progress_bar
from pylandscape.sharpness._checks import checked_center, loss_and_gradient, starts_of

MOST_EVALUATIONS = 3  # per iteration of L-BFGS-B, on average over a run
REACH = 10.0  # by how much the first step would leave the box, see _maximise


@dataclass(frozen=True)
class Keskar:
    """The largest rise found in the box, a lower bound of the true maximum.

    Attributes:
        value: phi = 100 rise / (1 + L(w)).
        rise: L(w + v) - L(w) at `maximizer`, never negative (v = 0 is in the box).
        maximizer: v = A y [P].
        epsilon: the size of the box.
        subspace: p, the dimension of the random subspace, or None for the full space.
        loss: L(w).
        starts: "centre" or "random", for each run of L-BFGS-B.
        rises: float64 [starts], what each one reached.
        evaluations: gradients computed, over all runs.
        seed: of the subspace and of the random starts.
    """

    value: float
    rise: float
    maximizer: Tensor = field(repr=False)
    epsilon: float
    subspace: int | None
    loss: float
    starts: tuple[str, ...]
    rises: Tensor
    evaluations: int
    seed: int


def keskar(
    objective: Objective,
    epsilon: float = 1e-3,
    subspace: int | None = None,
    iterations: int = 10,
    restarts: int = 1,
    seed: int = 0,
    at: Tensor | None = None,
    progress: bool | None = None,
) -> Keskar:
    """phi = 100 (max over y in C of L(w + A y) - L(w)) / (1 + L(w)) (Keskar et al. 2017, eq. 4).

    C is the box |y_i| <= eps (|(A^+ w)_i| + 1). In the full space A = I. In a random subspace of
    dimension p the columns of A [P, p] are random normal directions of length one (the paper leaves
    their length open). The maximum is sought as in the paper, by at most 10 iterations of L-BFGS-B,
    here in the variables y_i over their bounds; besides the run from y = 0, where the gradient may
    vanish, there are runs from random points of the box.

    The box is wider along large parameters, but like the ball it is not invariant under rescaling
    of a network's layers, because of the 1.

    Args:
        objective: the loss L.
        epsilon: of the box; the paper uses 1e-3 and 5e-4.
        subspace: p (100 in the paper), or None for the full space. A subspace takes p P numbers.
        iterations: of L-BFGS-B, for each run.
        restarts: runs from random points, besides the one from the centre.
        seed: of the subspace and of the random points.
        at: the point w [P]; the model's parameters by default.
        progress: show a bar; by default on a terminal only.

    Raises:
        ValueError: an argument is out of range, or a loss or a gradient in the box is not finite.
        TypeError: `objective` is not an Objective.

    Example:
        L(w) = (3 w_0^2 + w_1^2) / 2 at its minimum: the largest rise is at a corner, 2 eps^2.

        >>> import torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> x = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double().sqrt()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), (x, torch.zeros(2, 1).double()))
        >>> found = pl.sharpness.keskar(objective, epsilon=0.1, at=torch.zeros(2).double())
        >>> abs(found.value / (100 * 2 * 0.1**2) - 1) < 1e-3
        True
    """
    where = "sharpness.keskar"
    counts = {"iterations": (iterations, 1), "restarts": (restarts, 0), "seed": (seed, 0)}
    center = checked_center(where, objective, at, positive={"epsilon": epsilon}, counts=counts)
    size = len(center)
    require(
        subspace is None or (isinstance(subspace, int) and 1 <= subspace <= size),
        f"{where}: subspace must be None or an int from 1 to {size}, got {show(subspace)}.",
    )
    loss, gradient = loss_and_gradient(where, objective, center)
    starts = starts_of(where, gradient, restarts, "centre")
    box = _Box(objective, center, epsilon, subspace, seed)
    generator = np.random.default_rng(seed)
    evaluations = 1
    best, best_rise = np.zeros(box.dimensions), 0.0
    rises: list[float] = []
    total = len(starts) * iterations
    with progress_bar(total, "keskar", "iteration", progress) as bar:

        def rise_and_slope(u: Any) -> tuple[float, Any]:
            nonlocal evaluations, best, best_rise
            higher, slope = objective.loss_and_gradient(at=center + box.step(u))
            evaluations += 1
            require(
                bool(np.isfinite(higher)) and bool(torch.isfinite(slope).all()),
                f"{where}: the loss must be finite in the box, got {higher}. Choose a smaller "
                f"epsilon than {epsilon}.",
            )
            rise = higher - loss
            if rise > best_rise:
                best, best_rise = np.array(u), rise
            rises[-1] = max(rises[-1], rise)
            return rise, box.slope(slope)

        for start in starts:
            rises.append(-np.inf)
            first = np.zeros(box.dimensions)
            if start == "random":
                first = generator.uniform(-1, 1, box.dimensions)
            _maximise(rise_and_slope, first, iterations, lambda *_: bar.update(1))
    return Keskar(
        value=100 * best_rise / (1 + loss),
        rise=best_rise,
        maximizer=box.step(best),
        epsilon=float(epsilon),
        subspace=subspace,
        loss=loss,
        starts=tuple(starts),
        rises=torch.tensor(rises, dtype=torch.float64),
        evaluations=evaluations,
        seed=seed,
    )


class _Box:
    """v = A (bounds * u) for u in [-1, 1]^p."""

    def __init__(
        self, objective: Objective, center: Tensor, epsilon: float, subspace: int | None, seed: int
    ) -> None:
        self.like = center
        self.columns: Tensor | None = None
        coordinates = center.double()
        if subspace is not None:
            made = random_directions(objective, subspace, seed, normalize="none", ignore=None)
            columns = made.vectors.to(center)
            self.columns = columns / torch.linalg.vector_norm(columns, dim=1, keepdim=True)
            gram = (self.columns @ self.columns.T).double()
            coordinates = torch.linalg.solve(gram, (self.columns @ center).double())
        self.bounds = epsilon * (coordinates.abs() + 1)
        self.dimensions = len(self.bounds)

    def step(self, u: Any) -> Tensor:
        y = (self.bounds * torch.from_numpy(u).to(self.bounds)).to(self.like)
        return y if self.columns is None else y @ self.columns

    def slope(self, gradient: Tensor) -> Any:
        along = gradient if self.columns is None else self.columns @ gradient
        return (self.bounds * along.double()).cpu().numpy()


def _maximise(rise_and_slope: Any, start: Any, iterations: int, callback: Any) -> None:
    """L-BFGS-B in [-1, 1]^p; what it evaluates is noted by the function itself.

    The negative rise is scaled so that the first step, which is the gradient, reaches the borders
    of most variables: for a convex loss the maximum is in a corner.
    """
    first = rise_and_slope(start)
    scale = REACH / max(float(np.abs(first[1]).mean()), np.finfo(float).tiny)
    known = [(np.array(start), first)]

    def negative(u: Any) -> tuple[float, Any]:
        rise, slope = known.pop()[1] if known else rise_and_slope(u)
        return -scale * rise, -scale * slope

    minimize(
        negative,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(-1.0, 1.0)] * len(start),
        options={
            "maxiter": iterations,
            "maxfun": MOST_EVALUATIONS * iterations,
            "ftol": 0.0,
            "gtol": 0.0,
        },
        callback=callback,
    )
