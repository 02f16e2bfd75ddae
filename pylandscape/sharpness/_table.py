"""All measures of sharpness of one model, side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xarray as xr
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.curvature import Hessian, eigenpairs
from pylandscape.objective import Objective
from pylandscape.sharpness._adaptive import RHO, adaptive
from pylandscape.sharpness._average import average
from pylandscape.sharpness._ball import ball
from pylandscape.sharpness._checks import checked_center
from pylandscape.sharpness._critical import critical
from pylandscape.sharpness._keskar import keskar
from pylandscape.sharpness._sam import sam


def _lambda_max(objective: Objective, at: Tensor, **options: Any) -> float:
    return float(eigenpairs(Hessian(objective, at=at), **options).values[0])


def _value(function: Callable[..., Any]) -> Callable[..., float]:
    return lambda objective, at, **options: function(objective, at=at, **options).value


# name: definition, the parameters shown, how it is computed
MEASURES: Mapping[str, tuple[str, Mapping[str, Any], Callable[..., float]]] = {
    "lambda_max": (
        "the largest eigenvalue of the Hessian",
        {"k": 1, "tol": 1e-2, "seed": 0},
        _lambda_max,
    ),
    "ball": (
        "max over ||v|| <= epsilon of L(w + v) - L(w)",
        {"epsilon": 0.1, "steps": 30, "restarts": 2, "seed": 0},
        _value(ball),
    ),
    "keskar": (
        "100 max over |v_i| <= epsilon (|w_i| + 1) of (L(w + v) - L(w)) / (1 + L(w))",
        {"epsilon": 1e-3, "iterations": 10, "restarts": 1, "seed": 0},
        _value(keskar),
    ),
    "keskar_subspace": (
        "100 max over |y_i| <= epsilon (|(A^+ w)_i| + 1) of (L(w + A y) - L(w)) / (1 + L(w)), "
        "A [P, subspace] random",
        {"epsilon": 1e-3, "subspace": 100, "iterations": 10, "restarts": 1, "seed": 0},
        _value(keskar),
    ),
    "adaptive_l2": (
        "max over sum (v_i / w_i)^2 <= rho^2 of L(w + v) - L(w)",
        {"norm": "l2", "rho": RHO["l2"], "m": None, "steps": 20, "restarts": 1, "seed": 0},
        _value(adaptive),
    ),
    "adaptive_linf": (
        "max over |v_i| <= rho |w_i| of L(w + v) - L(w)",
        {"norm": "linf", "rho": RHO["linf"], "m": None, "steps": 20, "restarts": 1, "seed": 0},
        _value(adaptive),
    ),
    "average": (
        "mean over v ~ N(0, rho^2 diag(w^2)) of L(w + v) - L(w)",
        {"rho": 0.05, "adaptive": True, "draws": 25, "seed": 0},
        _value(average),
    ),
    "sam": (
        "L(w + rho g / ||g||) - L(w)",
        {"rho": 0.05},
        _value(sam),
    ),
    "critical": (
        "2 / eta, the smallest eta with L(w - eta g) > L(w)",
        {"rtol": 1e-2},
        _value(critical),
    ),
}


def table(
    objective: Objective,
    measures: Sequence[str] | None = None,
    *,
    at: Tensor | None = None,
    progress: bool | None = None,
    **parameters: Mapping[str, Any],
) -> xr.Dataset:
    """The largest eigenvalue of the Hessian and all measures of sharpness, with their definitions.

    They do not measure one thing: `lambda_max`, `ball`, `sam` and `critical` change when a ReLU
    network is rescaled without changing its function, the adaptive ones do not, `keskar` in part.

    Args:
        objective: the loss L.
        measures: which, by name: `lambda_max`, `ball`, `keskar`, `keskar_subspace`, `adaptive_l2`,
            `adaptive_linf`, `average`, `sam`, `critical`; all by default.
        at: the point w [P]; the model's parameters by default.
        progress: show bars; by default on a terminal only.
        parameters: for a measure by name, arguments other than those shown, for example
            `ball={"epsilon": 0.5}`.

    Returns:
        A dataset over `measure` with `value`, `definition` and `parameters`, the latter in words.
        `table.to_dataframe()` is the table to print.

    Raises:
        ValueError: an unknown measure or parameter, or as for the single measures.
        TypeError: `objective` is not an Objective.

    Example:
        >>> import torch, pylandscape as pl
        >>> data = torch.randn(30, 4), torch.randint(0, 3, (30,))
        >>> objective = pl.Objective(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(), data)
        >>> table = pl.sharpness.table(objective, ["ball", "sam"], ball={"epsilon": 0.5})
        >>> str(table.parameters.sel(measure="sam").item())
        'rho = 0.05'
    """
    where = "sharpness.table"
    center = checked_center(where, objective, at)
    chosen = list(MEASURES) if measures is None else list(measures)
    unknown = sorted({*chosen, *parameters} - MEASURES.keys())
    require(
        bool(chosen) and not unknown,
        f"{where}: measures must be some of {tuple(MEASURES)}, got {show(unknown or measures)}.",
    )
    settings = {}
    for name in chosen:
        _, usual, _ = MEASURES[name]
        given = dict(parameters.get(name, {}))
        require(
            given.keys() <= usual.keys(),
            f"{where}: {name} must have parameters among {tuple(usual)}, got {tuple(given)}.",
        )
        settings[name] = dict(usual) | given
    if "keskar_subspace" in chosen:  # no subspace is larger than the space
        p = settings["keskar_subspace"]["subspace"]
        settings["keskar_subspace"]["subspace"] = min(p, objective.space.size)
    values = []
    for name in chosen:
        quiet = {} if name in ("sam", "critical") else {"progress": progress}
        values.append(MEASURES[name][2](objective, center, **settings[name], **quiet))
    words = [
        ", ".join(f"{key} = {value}" for key, value in settings[name].items()) for name in chosen
    ]
    return xr.Dataset(
        {
            "value": ("measure", values),
            "definition": ("measure", [MEASURES[name][0] for name in chosen]),
            "parameters": ("measure", words),
        },
        coords={"measure": chosen},
        attrs={
            "kind": "sharpness table",
            **objective.describe(derivatives=True),
            "loss": objective.loss(center),
        },
    )
