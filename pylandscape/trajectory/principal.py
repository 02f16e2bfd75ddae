"""The plane that a trajectory lies in, and the trajectory's coordinates in a plane.

Snapshots stream from disk. No object grows with (number of snapshots) x P.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pylandscape._checks import all_finite, require, show
from pylandscape.directions import Directions
from pylandscape.objective import Objective
from pylandscape.parameters import ParameterSpace
from pylandscape.progress import progress_bar
from pylandscape.surface import axis_names
from pylandscape.trajectory.path import Trajectory
from pylandscape.trajectory.snapshots import Snapshot, buffers_for

CONVENTIONS = ("centered", "final")
BLOCK_BYTES = 128 << 20  # of snapshot columns held at once

Path = Trajectory | str | os.PathLike[str]


def principal_directions(
    objective: Objective,
    path: Path,
    count: int = 2,
    convention: str = "centered",
    max_snapshots: int | None = None,
    progress: bool | None = None,
) -> Directions:
    """The principal components of a trajectory: the axes along which its points vary most.

    With rows x_t = w_t - w_T for the T + 1 snapshots (the last row is zero), the components are the
    leading right singular vectors of X, from its Gram matrix G = X X' = U S^2 U' as X' U / S, in
    float64. G is summed over blocks of columns read from the snapshot files, so that memory is
    bounded by 128 MiB, the (T + 1)^2 entries of G and 3 x `count` float64 vectors.

    Args:
        objective: gives the parameters that count and the precision of the result.
        path: the recorded run, or its folder.
        count: how many components.
        convention: `centered` removes the mean of the rows first, as the program of Li et al.
            (2018) does; `final` does not, as their paper says. Either way the axes go through w_T.
        max_snapshots: use at most so many snapshots, evenly spaced, the first and last among them.
        progress: show a bar; default on a terminal only.

    Returns:
        Orthonormal directions with `center` w_T. The sign is such that the snapshot farthest out on
        an axis lies on its positive side. Among `attrs`: `convention`, `explained_variance` (the
        share s_j^2 / sum s^2 of each), `snapshots`, `steps` (first and last).

    Raises:
        ValueError: another model, snapshots that are not finite, or a path of fewer than `count`
            dimensions beyond the rounding of its snapshots.

    Example:
        >>> import tempfile, torch, pylandscape as pl
        >>> model, data = torch.nn.Linear(5, 1), (torch.randn(9, 5), torch.randn(9, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> folder = tempfile.TemporaryDirectory()
        >>> with pl.Recorder(folder.name).attach(model, optimizer):
        ...     for _ in range(6):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.mse_loss(model(data[0]), data[1]).backward()
        ...         optimizer.step()
        >>> objective = pl.Objective(model, torch.nn.MSELoss(), data)
        >>> d = pl.principal_directions(objective, folder.name)
        >>> torch.allclose(d.vectors @ d.vectors.T, torch.eye(2), atol=1e-5)
        True
        >>> pl.project(folder.name, d).distance.shape
        (7,)
        >>> folder.cleanup()
    """
    path = opened(path)
    require(
        convention in CONVENTIONS,
        f"principal_directions: convention must be one of {CONVENTIONS}, got {show(convention)}.",
    )
    require(
        isinstance(count, int) and count >= 1,
        f"principal_directions: count must be a positive integer, got {show(count)}.",
    )
    require(
        max_snapshots is None or (isinstance(max_snapshots, int) and max_snapshots > count),
        "principal_directions: max_snapshots must be None or an integer above count, got "
        f"{show(max_snapshots)}.",
    )
    chosen = _spread(path.snapshots, max_snapshots)
    space = objective.space
    rows = _Rows(chosen, space, centered=convention == "centered")
    with progress_bar(2 * rows.reads, "principal directions", "read", progress) as bar:
        gram = rows.gram(bar)
        variances, mixing = _leading(gram, count, _rounding(path, space))
        vectors = rows.combine(mixing, bar)
    shares = (variances[:count] / variances.sum()).tolist()
    return Directions.from_vectors(
        space,
        vectors.to(objective.device, objective.dtype),
        center=path.vector(-1, space, objective.dtype).to(objective.device),
        labels=[f"principal component {j + 1} ({share:.1%})" for j, share in enumerate(shares)],
        attrs={
            "directions": f"principal components of {len(chosen)} snapshots ({convention})",
            "convention": convention,
            "explained_variance": shares,
            "snapshots": len(chosen),
            "steps": [chosen[0].step, chosen[-1].step],
        },
    )


def project(
    path: Path,
    directions: Directions,
    objective: Objective | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """The coordinates of every snapshot in the plane (or line, or volume) of some directions.

    The coordinates c of w_t are those of the nearest point of the plane, least squares
    min_c || w_t - w_0 - sum_j c_j d_j ||, right for axes of any length and angle. The origin w_0 is
    `directions.center`, or the last snapshot where that is None.

    Args:
        path: the recorded run, or its folder.
        directions: the axes, linearly independent.
        objective: if given, also the loss of every snapshot and of its image in the plane.
        progress: show a bar; default on a terminal only.

    Returns:
        A dataset over `snapshot`, with the coordinates `step` and `epoch`. The variables `alpha`,
        `beta`, ... are c; `displacement` is || w_t - w_0 ||, `distance` that of w_t from the plane.
        With an objective, `loss` is the loss of the snapshot itself (under the BatchNorm policy
        `frozen` with its own running statistics), `plane_loss` that of its image, as a surface over
        these directions shows it: how far they differ says how far the picture can be trusted.
        Among the attributes, `captured` is the share of the sum of squared displacements that lies
        in the plane, `loss_gap` the largest |loss - plane_loss|; `explained_variance` comes from
        `directions`.

    Raises:
        ValueError: another model, or directions that are linearly dependent.

    Example:
        From (3, 4) to the origin, seen along the first parameter: 3 of the 5 lie in the line.

        >>> import tempfile, torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> folder = tempfile.TemporaryDirectory()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        >>> with pl.Recorder(folder.name).attach(model, optimizer):
        ...     (model.weight**2 / 2).sum().backward()
        ...     optimizer.step()
        >>> space = pl.ParameterSpace.from_model(model)
        >>> axis = pl.Directions.from_vectors(space, torch.tensor([[2.0, 0.0]]))
        >>> path = pl.project(folder.name, axis)
        >>> path.alpha.values.tolist(), path.distance.values.tolist()
        ([1.5, 0.0], [4.0, 0.0])
        >>> folder.cleanup()
    """
    path = opened(path)
    require(
        isinstance(directions, Directions),
        f"project: directions must be Directions, got {show(directions)}.",
        TypeError,
    )
    space = directions.space
    origin = path.vector(-1, space) if directions.center is None else directions.center
    origin = origin.detach().cpu().double()
    basis, coordinates_of = _axes(directions)
    table = torch.empty(len(path), len(directions), dtype=torch.float64)
    displacement, distance = (torch.empty(len(path), dtype=torch.float64) for _ in range(2))
    with progress_bar(len(path), "projection", "snapshot", progress) as bar:
        for t in range(len(path)):
            shift = path.vector(t, space, torch.float64) - origin
            inside = basis.T @ shift
            table[t] = coordinates_of @ inside
            displacement[t] = shift.norm()
            distance[t] = (shift - basis @ inside).norm()
            bar.update(1)
    variables = {name: table[:, j] for j, name in enumerate(axis_names(len(directions)))}
    variables |= {"distance": distance, "displacement": displacement}
    if objective is not None:
        objective.check_directions(directions, "project")
        variables |= _losses(objective, path, directions, origin, table, progress)
    gap = {"loss_gap": _largest_gap(variables)} if objective is not None else {}
    total = float(displacement.square().sum())
    captured = 1 - float(distance.square().sum()) / total if total else 1.0
    return xr.Dataset(
        {name: ("snapshot", values.numpy()) for name, values in variables.items()},
        coords={
            "step": ("snapshot", np.array(path.steps)),
            "epoch": ("snapshot", np.array([snapshot.epoch for snapshot in path.snapshots])),
        },
        attrs={
            "kind": "trajectory",
            **(objective.describe() if objective is not None else {}),
            **directions.attrs,
            "axis_labels": directions.labels,
            "captured": captured,
            **gap,
        },
    )


class _Rows:
    """The matrix X of a trajectory, [snapshots, P], a block of columns at a time."""

    def __init__(
        self, snapshots: Sequence[Snapshot], space: ParameterSpace, centered: bool
    ) -> None:
        self.snapshots, self.space, self.centered = snapshots, space, centered
        for snapshot in snapshots:
            snapshot.check(space)
        self.width = max(1, BLOCK_BYTES // (8 * len(snapshots)))

    @property
    def reads(self) -> int:
        """How many pieces of snapshots one pass reads."""
        return len(self.snapshots) * -(-self.space.size // self.width)

    def blocks(self, bar: Any) -> Iterator[tuple[slice, Tensor]]:
        width = min(self.width, self.space.size)
        memory = torch.empty(len(self.snapshots), width, dtype=torch.float64)
        for start in range(0, self.space.size, width):
            stop = min(start + width, self.space.size)
            block = memory[:, : stop - start]  # the one before is no longer needed
            for row, snapshot in zip(block, self.snapshots, strict=True):
                snapshot.read(row, self.space, start)
                require(
                    all_finite(row),
                    "principal_directions: path must have finite snapshots, got NaN or inf in "
                    f"{snapshot.file.name}. The training diverged: delete the snapshots from there "
                    "on.",
                )
                bar.update(1)
            block -= block[-1].clone()
            if self.centered:
                block -= block.mean(0)
            yield slice(start, stop), block

    def gram(self, bar: Any) -> Tensor:
        """X X', [snapshots, snapshots]."""
        gram = torch.zeros(len(self.snapshots), len(self.snapshots), dtype=torch.float64)
        for _, block in self.blocks(bar):
            gram.addmm_(block, block.T)
        return gram

    def combine(self, mixing: Tensor, bar: Any) -> Tensor:
        """mixing' X with its rows made orthonormal to rounding, [count, P]."""
        vectors = torch.empty(mixing.shape[1], self.space.size, dtype=torch.float64)
        for columns, block in self.blocks(bar):
            vectors[:, columns] = mixing.T @ block
        basis, triangle = torch.linalg.qr(vectors.T)
        return (basis * triangle.diag().sign()).T


def _leading(gram: Tensor, count: int, rounding: float) -> tuple[Tensor, Tensor]:
    """All variances s^2, falling, and `count` columns U / S that make components of the rows."""
    variances, vectors = torch.linalg.eigh(gram)
    variances, vectors = variances.flip(0).clamp(min=0), vectors.flip(1)
    snapshots = len(gram)
    # What rounding alone can put into a direction: that of the snapshots, that of the sums here.
    noise = max(
        snapshots * rounding**2 / 4,
        snapshots * torch.finfo(torch.float64).eps * float(variances[0]),
    )
    independent = int((variances > noise).sum())
    require(
        independent >= count,
        f"principal_directions: path must have at least {count} independent displacements, got "
        f"{independent} from {snapshots} snapshots. Record more of them, or ask for fewer "
        "components.",
    )
    leading = vectors[:, :count]
    farthest = leading.abs().argmax(0)
    signs = leading.gather(0, farthest[None]).sign()
    return variances, leading * signs / variances[:count].sqrt()


def _rounding(path: Trajectory, space: ParameterSpace) -> float:
    """The size of the rounding of the final snapshot: machine epsilon times its norm."""
    last = path.vector(-1, space)
    return torch.finfo(last.dtype).eps * float(last.double().norm())


def _axes(directions: Directions) -> tuple[Tensor, Tensor]:
    """An orthonormal basis Q [P, D] of the span, and the matrix [D, D] from Q' x to coordinates."""
    vectors = directions.vectors.detach().cpu().double()
    lengths = vectors.norm(dim=1)
    units = (vectors / lengths[:, None]).nan_to_num()
    basis, triangle = torch.linalg.qr(units.T)
    smallest = float(triangle.diag().abs().min())
    require(
        smallest > 1e-12,
        f"project: directions must be linearly independent, got {len(directions)} that are not "
        f"(sine of the smallest angle {smallest:.0e}). Leave one out.",
    )
    identity = torch.eye(len(directions), dtype=torch.float64)
    inverse = torch.linalg.solve_triangular(triangle, identity, upper=True)
    return basis, inverse / lengths[:, None]


def _losses(
    objective: Objective,
    path: Trajectory,
    directions: Directions,
    origin: Tensor,
    coordinates: Tensor,
    progress: bool | None,
) -> dict[str, Tensor]:
    """`loss` of the snapshots and `plane_loss` of their images."""
    with progress_bar(2 * len(path), "losses of the trajectory", show=progress) as bar:
        plane = objective.evaluate_along(origin, directions, coordinates, bar=bar)["loss"]
        loss = torch.empty_like(plane)
        nowhere = torch.zeros(1, len(directions))
        for t, snapshot in enumerate(path.snapshots):
            point = path.vector(t, objective.space)
            own = None  # then the engine is that of the plane
            if objective.batchnorm == "frozen" and any(True for _ in objective.model.buffers()):
                own = _constant(buffers_for(objective.model, snapshot.state(), objective.device))
            loss[t] = objective.evaluate_along(point, directions, nowhere, buffers=own, bar=bar)[
                "loss"
            ][0]
    return {"loss": loss, "plane_loss": plane}


def _largest_gap(losses: dict[str, Tensor]) -> float:
    return float((losses["loss"] - losses["plane_loss"]).abs().max())


def _constant(buffers: dict[str, Tensor]) -> Callable[[Tensor], dict[str, Tensor]]:
    return lambda coordinates: buffers


def opened(path: Path) -> Trajectory:
    return path if isinstance(path, Trajectory) else Trajectory(path)


def _spread(snapshots: list[Snapshot], most: int | None) -> list[Snapshot]:
    """At most `most` of them, evenly spaced from the first to the last."""
    if most is None or len(snapshots) <= most:
        return snapshots
    return [snapshots[round(t)] for t in np.linspace(0, len(snapshots) - 1, most)]
