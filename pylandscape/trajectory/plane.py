"""The loss around the path of training: surface and path in one call."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pylandscape._checks import require, show
from pylandscape.objective import Objective
from pylandscape.surface import plane
from pylandscape.trajectory.principal import Path, opened, principal_directions, project

LONGEST = 2.0  # sides of the plane differ by at most this factor, so that it is drawn to scale


class TrajectoryPlane(NamedTuple):
    """The loss on the principal plane of a run, and the run in it.

    Attributes:
        surface: as `plane` gives it.
        path: as `project` gives it with an objective: coordinates, distance from the plane, loss of
            every snapshot and of its image in the plane.
    """

    surface: xr.Dataset
    path: xr.Dataset


def trajectory_plane(
    objective: Objective,
    path: Path,
    resolution: int | tuple[int, int] = 41,
    convention: str = "centered",
    margin: float = 0.15,
    max_snapshots: int | None = None,
    progress: bool | None = None,
) -> TrajectoryPlane:
    """The loss on the plane of a run's two principal components, around the whole path.

    The plane goes through the final snapshot w_T, which is its origin. Its range is that of the
    projected path and a margin; the shorter side is widened to half the longer one.

    How far the picture can be trusted comes with it. `path` has the `distance` of every snapshot
    from the plane beside its `displacement` from w_T, and its true `loss` beside `plane_loss`, that
    of its image, which the surface shows. Its attributes have `explained_variance` of each axis,
    `captured`, the share of the squared displacements within the plane, and `loss_gap`, the largest
    |loss - plane_loss|. `plots.trajectory` draws them all.

    Args:
        objective: L, over the same kind of model as the recorded one.
        path: the recorded run, or its folder.
        resolution: points per axis, or a pair of counts.
        convention: `centered` or `final`, see `principal_directions`.
        margin: room on each side, in parts of the path's range.
        max_snapshots: the components are those of at most so many snapshots, evenly spaced.
        progress: show bars; default on a terminal only.

    Returns:
        `(surface, path)`, to be drawn by `plots.trajectory(*found)`.

    Raises:
        ValueError: another model, snapshots that are not finite, a path of fewer than two
            dimensions, a negative margin, a resolution below 2.
        Interrupted: on Ctrl-C, with what has been evaluated.

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
        >>> surface, path = pl.trajectory_plane(objective, folder.name, resolution=5)
        >>> surface.loss.shape, list(path.data_vars)
        ((5, 5), ['alpha', 'beta', 'distance', 'displacement', 'loss', 'plane_loss'])
        >>> bool(surface.alpha[0] < path.alpha.min()), len(path.attrs["explained_variance"])
        (True, 2)
        >>> folder.cleanup()
    """
    require(
        isinstance(margin, (int, float)) and 0 <= margin < np.inf,
        f"trajectory_plane: margin must be a number of at least 0, got {show(margin)}.",
    )
    run = opened(path)
    directions = principal_directions(objective, run, 2, convention, max_snapshots, progress)
    found = project(run, directions, progress=progress)
    extent = _extent([found[name].to_numpy() for name in ("alpha", "beta")], margin)
    surface = plane(objective, directions, extent, resolution, progress=progress)
    return TrajectoryPlane(surface, project(run, directions, objective, progress))


def _extent(
    coordinates: list[NDArray[np.float64]], margin: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The range of each coordinate, with room around it."""
    lengths = [float(np.ptp(values)) * (1 + 2 * margin) for values in coordinates]
    sides = [max(length, max(lengths) / LONGEST) for length in lengths]
    middles = [float(values.max() + values.min()) / 2 for values in coordinates]
    first, second = (
        (middle - side / 2, middle + side / 2) for middle, side in zip(middles, sides, strict=True)
    )
    return first, second
