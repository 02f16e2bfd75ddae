"""Captions: what a figure shows, from the attributes of the result."""

import re
from collections.abc import Mapping
from typing import Any

from pylandscape._checks import require, show
from pylandscape.plots._values import MINUS

FINGERPRINT = re.compile("[0-9a-f]{16}")  # data known only by its hash, of which 8 digits do
NEGATIVE = re.compile(r"(?<!\S)-(?=[\d.])")  # the sign of a number
GENERIC = re.compile(r"direction \d+")  # a name that says no more than the symbol of the axis


def caption(result: Any) -> str:
    """One or two sentences that say how a result was made, from its attributes.

    Named are, as far as the attributes hold them: loss function, model and its number of
    parameters P, data and number of samples N; then directions, normalisation, what is left out of
    it, seed, BatchNorm policy, engine and precision.

    Args:
        result: an `xarray.Dataset`, or anything else with a mapping `attrs`.

    Raises:
        TypeError: if `result` has no attributes.

    Example:
        >>> import xarray as xr
        >>> caption(xr.Dataset(attrs={"model": "CNN", "parameters": 61706, "seed": 3}))
        'Loss of CNN (P = 61,706). Seed 3.'
    """
    attrs = getattr(result, "attrs", None)
    require(
        isinstance(attrs, Mapping),
        f"plots.caption: result must have a mapping attrs, got {show(result)}.",
        TypeError,
    )
    assert isinstance(attrs, Mapping)
    return " ".join(filter(None, [_subject(attrs), _method(attrs)]))


def _subject(attrs: Mapping[Any, Any]) -> str:
    text = ""
    if "loss_function" in attrs:
        text += f" ({attrs['loss_function']})"
    if "model" in attrs:
        text += f" of {attrs['model']}"
    if "parameters" in attrs:
        text += f" (P = {_count(attrs['parameters'])})"
    if "data" in attrs:
        data = str(attrs["data"])
        text += f" on data {data[:8]}" if FINGERPRINT.fullmatch(data) else f" on {data}"
    if "samples" in attrs:
        samples, population = attrs["samples"], attrs.get("population", attrs["samples"])
        of_all = f" of {_count(population)}" if population != samples else ""
        text += f" (N = {_count(samples)}{of_all})"
    what = f"{attrs['matrix']} of the loss" if "matrix" in attrs else "Loss"
    return f"{what}{text}." if text else ""


def _method(attrs: Mapping[Any, Any]) -> str:
    directions, normalize = (str(attrs.get(key) or "") for key in ("directions", "normalize"))
    parts = [f"directions: {directions}" if directions else ""]
    if normalize and normalize not in directions:
        parts.append(f"normalisation {normalize}")
    if attrs.get("ignore") not in (None, "", "nothing"):
        parts.append(f"{attrs['ignore']} ignored")
    if "seed" in attrs:
        parts.append(f"seed {attrs['seed']}")
    if "batchnorm" in attrs:
        policy = str(attrs["batchnorm"])
        parts.append("no BatchNorm" if policy.startswith("none") else f"BatchNorm {policy}")
    if "engine" in attrs:
        parts.append(f"engine {attrs['engine']}")
    if "dtype" in attrs:
        parts.append(str(attrs["dtype"]).removeprefix("torch."))
    if attrs.get("device", "cpu") != "cpu":
        parts.append(f"on {attrs['device']}")
    text = ", ".join(filter(None, parts))
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _count(number: Any) -> str:
    return f"{number:,}" if isinstance(number, int) else str(number)


def compose(enabled: bool, result: Any, *notes: str) -> str:
    """The caption of a figure: how the result was made, then what the figure adds."""
    about = caption(result) if hasattr(result, "attrs") else ""
    return " ".join(filter(None, [about, *notes])) if enabled else ""


def axis_label(attrs: Mapping[Any, Any], index: int, symbol: str) -> str:
    """The label of an axis: its symbol and, where the result names its directions, the name."""
    labels = attrs.get("axis_labels")
    names = labels if isinstance(labels, list | tuple) else []
    name = NEGATIVE.sub(MINUS, str(names[index])) if index < len(names) else ""
    return symbol if not name or GENERIC.fullmatch(name) else f"{symbol}: {name}"
