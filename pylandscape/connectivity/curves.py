"""Curves between two models: their points, the loss along them, and the plane that they lie in."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.connectivity._models import require_test
from pylandscape.connectivity._paths import evaluate_path
from pylandscape.directions import Directions
from pylandscape.objective import Objective
from pylandscape.parameters import ParameterSpace
from pylandscape.surface import plane
from pylandscape.trajectory.snapshots import write_durably

CurveKind = Literal["bezier", "polychain"]
FORMAT = "pylandscape curve 1"
PATH_POINTS = 101  # of a curve in its plane


class Curve:
    """w(t) = sum_k c_k(t) w_k for t in [0, 1], from the model w_0 to the model w_n.

    With n - 1 bends between the end points (Garipov et al. 2018), c_k(t) is

    - `bezier`: binom(n, k) (1 - t)^(n - k) t^k, a smooth curve that the bends attract;
    - `polychain`: max(0, 1 - |n t - k|), straight from each node to the next.

    `pl.connect` trains one.

    Attributes:
        kind: `bezier` or `polychain`.
        space: the parameter space of the nodes.
        nodes: w_k [n + 1, P]; the first and the last are the given models, bit for bit.
        history: what training saw, over `step`: `t` and the `loss` of the batch there.
        attrs: how it was made.

    Example:
        >>> import torch, pylandscape as pl
        >>> space = pl.ParameterSpace.from_model(torch.nn.Linear(1, 1))
        >>> nodes = torch.tensor([[0.0, 0.0], [1.0, 2.0], [2.0, 0.0]])
        >>> pl.Curve("bezier", space, nodes).point(0.5).tolist()
        [1.0, 1.0]
        >>> pl.Curve("polychain", space, nodes).point(0.5).tolist()
        [1.0, 2.0]

        The loss along a curve and on its plane, and the curve in a file:

        >>> import tempfile
        >>> data = torch.randn(9, 1), torch.randn(9, 1)
        >>> objective = pl.Objective(torch.nn.Linear(1, 1), torch.nn.MSELoss(), data)
        >>> curve = pl.Curve("bezier", space, nodes)
        >>> curve.coefficients(0.5).tolist()
        [[0.25, 0.5, 0.25]]
        >>> along = curve.evaluate(objective, resolution=5)
        >>> along.loss.shape, along.attrs["barrier"] >= 0
        ((5,), True)
        >>> curve.plane(objective, resolution=7).loss.shape
        (7, 7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     curve.save(f"{folder}/curve.safetensors")
        ...     pl.Curve.load(f"{folder}/curve.safetensors", objective)
        Curve(bezier, 1 bend in R^2)
    """

    def __init__(
        self,
        kind: CurveKind,
        space: ParameterSpace,
        nodes: Tensor,
        history: xr.Dataset | None = None,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        require_kind(kind, "Curve")
        require(
            isinstance(nodes, Tensor) and nodes.ndim == 2 and nodes.shape[1] == space.size
            and len(nodes) >= 3,
            f"Curve: nodes must have shape [bends + 2, {space.size}] with a bend or more, got "
            f"{show(nodes)}.",
        )  # fmt: skip
        self.kind, self.space, self.nodes = kind, space, nodes
        self.history = xr.Dataset() if history is None else history
        self.attrs = dict(attrs or {})

    def __repr__(self) -> str:
        return f"Curve({self.kind}, {self._count()} in R^{self.space.size})"

    @property
    def bends(self) -> int:
        """The number of nodes between the end points."""
        return len(self.nodes) - 2

    def coefficients(self, t: NDArray[np.float64] | float) -> Tensor:
        """c_k(t), float64 [K, bends + 2] for K values of t."""
        return curve_coefficients(self.kind, self.bends, t)

    def point(self, t: float) -> Tensor:
        """w(t) [P]; at t = 0 and t = 1 the given models, bit for bit."""
        require(0 <= t <= 1, f"Curve.point: t must be from 0 to 1, got {show(t)}.")
        if t in (0, 1):
            return self.nodes[-int(t)].clone()
        return curve_point(self.nodes, self.coefficients(t)[0])

    def evaluate(
        self,
        objective: Objective,
        resolution: int = 51,
        test: Objective | None = None,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """The loss along the curve, as `pl.interpolate` gives it along the straight line.

        Under the policy `frozen` a model with BatchNorm has its statistics estimated anew at every
        point, over the samples of `objective` for `test` too: nothing else is defined there.

        Args:
            objective: L, of the architecture of the curve.
            resolution: number of points, evenly spaced in t, the end points among them.
            test: an objective of the same architecture on other data: adds `test_loss`, ....
            progress: show a bar; default on a terminal only.

        Returns:
            A dataset over `alpha` = t with `loss`, `loss_stderr`, `accuracy` (classifiers), the
            metrics of the objective, `chord`, and `length`, that of the curve from its start (of
            the polygon through the points). Attributes as for `interpolate`, `barrier` and
            `accuracy_drop` among them, and how the curve was trained.

        Raises:
            ValueError: an objective of another architecture, or resolution < 2.
            Interrupted: on Ctrl-C, with the partial dataset as `surface`.
        """
        require(
            isinstance(resolution, int) and resolution >= 2,
            f"Curve.evaluate: resolution must be an integer >= 2, got {show(resolution)}.",
        )
        self._require_fit(objective, "Curve.evaluate")
        require_test(objective, test, "Curve.evaluate")
        objective = with_fresh_statistics(objective)
        alpha = np.linspace(0.0, 1.0, resolution)
        shares = self.coefficients(alpha)
        attrs = self._described("curve", objective)
        result = evaluate_path(
            objective, test, self._directions(objective), alpha, shares, attrs,
            lambda where: None, progress,
        )  # fmt: skip
        length = self._lengths(shares)
        return result.assign(length=("alpha", length)).assign_attrs(length=float(length[-1]))

    def plane(
        self,
        objective: Objective,
        resolution: int = 31,
        margin: float = 0.2,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """The loss on the plane through both end points and the middle w(1/2) of the curve.

        With one bend the whole curve lies in this plane, with more `path_distance` says how far
        from it. Its axes have length one and are at right angles: alpha from w(0) towards w(1),
        beta towards the middle, so that distances in the picture are distances of parameters.

        Args:
            objective: L; BatchNorm as in `evaluate`.
            resolution: points per axis.
            margin: room around the curve and its nodes, as a share of their extent.
            progress: show a bar; default on a terminal only.

        Returns:
            A surface over (`alpha`, `beta`) as `pl.plane` gives it. Over `t` it has the curve's
            coordinates `path_alpha`, `path_beta` and its distance from the plane `path_distance`;
            over `node` the nodes' coordinates `node_alpha`, `node_beta`.

        Raises:
            ValueError: as for `evaluate`, or a curve whose middle is on the line between its ends.
            Interrupted: on Ctrl-C, with the partial dataset as `surface`.
        """
        where = "Curve.plane"
        require(
            isinstance(margin, (int, float)) and margin >= 0,
            f"{where}: margin must be a number >= 0, got {show(margin)}.",
        )
        self._require_fit(objective, where)
        objective = with_fresh_statistics(objective)
        axes = self._axes(where)
        t = np.linspace(0.0, 1.0, PATH_POINTS)
        path, distance = self._in_plane(axes, self.coefficients(t))
        nodes, _ = self._in_plane(axes, torch.eye(len(self.nodes), dtype=torch.float64))
        drawn = np.concatenate([path, nodes])
        low, high = drawn.min(axis=0), drawn.max(axis=0)
        room = margin * float((high - low).max())
        low, high = low - room, high + room
        extent = ((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))
        directions = Directions.from_vectors(
            self.space,
            axes.to(objective.device, objective.dtype),
            center=self.nodes[0].to(objective.device, objective.dtype),
            labels=["distance from model A towards model B", "distance from the straight line"],
            attrs={"directions": "through both ends and the middle of a curve"},
        )
        surface = plane(objective, directions, extent, resolution, progress=progress)
        columns = {
            "path_alpha": ("t", path[:, 0]),
            "path_beta": ("t", path[:, 1]),
            "path_distance": ("t", distance),
            "node_alpha": ("node", nodes[:, 0]),
            "node_beta": ("node", nodes[:, 1]),
        }
        attrs = self._described("curve plane", objective)
        return surface.assign(columns).assign_coords(t=t).assign_attrs({**attrs, **surface.attrs})

    def save(self, path: str | Path) -> None:
        """Writes the curve as a safetensors file, whole or not at all."""
        write_curve(Path(path), self, {})

    @classmethod
    def load(cls, path: str | Path, objective: Objective) -> "Curve":
        """Reads a curve that `save` wrote, or the checkpoint of `connect`.

        Raises:
            ValueError: no such file, or one of another model.
        """
        return read_curve(Path(path), objective, "Curve.load")[0]

    # -- inner ------------------------------------------------------------------------------------

    def _require_fit(self, objective: Objective, where: str) -> None:
        require(
            isinstance(objective, Objective) and objective.space == self.space,
            f"{where}: objective must be one of the curve's architecture, got "
            f"{objective.space if isinstance(objective, Objective) else show(objective)} for "
            f"{self.space}.",
        )

    def _count(self) -> str:
        return f"{self.bends} bend{'s' * (self.bends > 1)}"

    def _directions(self, objective: Objective) -> Directions:
        nodes = self.nodes.to(objective.device, objective.dtype)
        return Directions.from_vectors(self.space, nodes)

    def _described(self, kind: str, objective: Objective) -> dict[str, Any]:
        ends = self.nodes[-1].double() - self.nodes[0].double()
        return {
            "kind": kind,
            "directions": f"{NAMES[self.kind]} with {self._count()}",
            "axis_labels": ["t: model A at 0, model B at 1"],
            "distance": float(ends.norm()),
            **self.attrs,
        }

    def _relative(self) -> Tensor:
        """The nodes from w_0 on, float64."""
        return self.nodes.double() - self.nodes[0].double()

    def _lengths(self, shares: Tensor) -> NDArray[np.float64]:
        """The length of the polygon up to each of its points."""
        relative = self._relative().cpu()
        steps = shares.diff(dim=0)
        squares = ((steps @ (relative @ relative.T)) * steps).sum(1).clamp(min=0)
        return np.concatenate([[0.0], squares.sqrt().cumsum(0).numpy()])

    def _axes(self, where: str) -> Tensor:
        """Orthonormal, float64 [2, P]."""
        relative = self._relative()
        along = relative[-1]
        middle = self.coefficients(0.5)[0].to(relative.device) @ relative
        require(
            bool(along.any()),
            f"{where}: the curve must join two different models, got equal end points.",
        )
        along = along / along.norm()
        beside = middle - (along @ middle) * along
        beside = beside - (along @ beside) * along
        require(
            bool(beside.norm() > 1e-6 * middle.norm()),
            f"{where}: the curve must have left the straight line, got a straight one. Train it "
            "for longer.",
        )
        return torch.stack([along, beside / beside.norm()])

    def _in_plane(
        self, axes: Tensor, shares: Tensor
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Coordinates [K, 2] of points sum_k shares[k] w_k, and their distances from the plane."""
        relative = self._relative()
        coordinates = relative @ axes.T
        rest = (relative - coordinates @ axes).cpu()
        squares = ((shares @ (rest @ rest.T)) * shares).sum(1).clamp(min=0)
        return (shares @ coordinates.cpu()).numpy(), squares.sqrt().numpy()


NAMES = {"bezier": "Bezier curve", "polychain": "polygonal chain"}


def require_kind(kind: Any, where: str) -> None:
    require(
        kind in get_args(CurveKind),
        f"{where}: curve must be one of {get_args(CurveKind)}, got {show(kind)}.",
    )


def curve_coefficients(kind: str, bends: int, t: NDArray[np.float64] | float) -> Tensor:
    """The shares c_k(t) of the nodes, float64 [K, bends + 2], see `Curve`."""
    at = torch.from_numpy(np.atleast_1d(np.asarray(t, dtype=np.float64)))[:, None]
    n = bends + 1
    k = torch.arange(n + 1, dtype=torch.float64)
    if kind == "polychain":
        return (1 - (n * at - k).abs()).clamp(min=0)
    binomial = torch.tensor([math.comb(n, j) for j in range(n + 1)], dtype=torch.float64)
    return binomial * (1 - at) ** (n - k) * at**k


def curve_point(nodes: Tensor, shares: Tensor) -> Tensor:
    """sum_k shares[k] nodes[k] [P]."""
    return shares.to(nodes) @ nodes


def with_fresh_statistics(objective: Objective) -> Objective:
    """The objective with the policy `recompute` where it has `frozen` statistics of BatchNorm."""
    if objective.has_batchnorm and objective.batchnorm == "frozen":
        return objective.replace(batchnorm="recompute")
    return objective


# -- files --------------------------------------------------------------------------------------


def write_curve(path: Path, curve: Curve, training: Mapping[str, Tensor]) -> None:
    """Writes a curve, with the further tensors that training resumes from."""
    tensors = {"nodes": curve.nodes} | dict(training)
    tensors |= {f"history.{n}": torch.from_numpy(v.values) for n, v in curve.history.items()}
    facts = {"kind": curve.kind, "attrs": curve.attrs}
    metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in facts.items()}
    stored = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_durably(path, lambda partial: save_file(stored, partial, metadata))


def read_curve(path: Path, objective: Objective, where: str) -> tuple[Curve, dict[str, Tensor]]:
    """A curve and the tensors to resume from."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(
            f"{where}: path must be the file of a curve, got {path}: {error}"
        ) from None
    nodes = tensors.pop("nodes", None)
    require(
        metadata.get("format") == FORMAT and nodes is not None,
        f"{where}: path must be the file of a curve, got {path} of format "
        f"{metadata.get('format')!r}.",
    )
    assert nodes is not None
    size = objective.space.size
    require(
        nodes.shape[1] == size,
        f"{where}: path must hold a curve of the objective's model with {size} parameters, got "
        f"{nodes.shape[1]}.",
    )
    names = [name for name in tensors if name.startswith("history.")]
    history = xr.Dataset(
        {n.removeprefix("history."): ("step", tensors.pop(n).numpy()) for n in names}
    )
    attrs = json.loads(metadata["attrs"])
    nodes = nodes.to(objective.device)
    return Curve(json.loads(metadata["kind"]), objective.space, nodes, history, attrs), tensors
