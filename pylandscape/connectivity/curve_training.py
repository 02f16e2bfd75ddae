"""Training a curve of low loss between two models (Garipov et al. 2018)."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pylandscape._checks import require, show
from pylandscape.connectivity._models import Model, vector_of
from pylandscape.connectivity.curves import (
    Curve,
    CurveKind,
    curve_coefficients,
    curve_point,
    read_curve,
    require_kind,
    write_curve,
)
from pylandscape.objective import Interrupted, Objective
from pylandscape.progress import progress_bar

SAVE_EVERY = 200  # steps between two writings of the checkpoint


def connect(
    objective: Objective,
    model_a: Model,
    model_b: Model,
    curve: CurveKind = "bezier",
    bends: int = 1,
    *,
    steps: int = 1000,
    learning_rate: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    seed: int = 0,
    loader: Iterable[Any] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
) -> Curve:
    """Trains a curve w(t) between two models along which the loss is low (mode connectivity).

    The bends start on the straight line. Every step draws t ~ U(0, 1) and a batch, and descends

        E_t [ L(w(t)) + weight_decay / 2 ||w(t)||^2 ]

    by SGD with momentum over the bends w_k, whose gradient is c_k(t) times that of the point. So a
    step costs one ordinary step of training and a few operations on vectors [P]. The end points are
    the given models and never move. The learning rate is constant for half of the steps, falls
    linearly to a hundredth of that until nine tenths, and stays there (Garipov et al. 2018).

    Steps are steps of training: dropout is on and BatchNorm uses the statistics of the batch. No
    model is changed. `Curve.evaluate` gives the loss along the curve, `Curve.plane` the plane that
    it lies in.

    Args:
        objective: L, on a model of the same architecture, with the data to train on.
        model_a, model_b: w(0) and w(1): modules, state dicts or flat vectors.
        curve: `bezier` or `polychain`, see `Curve`.
        bends: how many nodes are trained; one is enough for most networks.
        steps: of SGD.
        learning_rate, momentum: of SGD; about as for the models themselves.
        weight_decay: best that of the models' own training; it acts on the point of the curve.
        batch_size: of the batches that are drawn from the objective's samples, in random order.
        seed: of t and of that order, and of what the model draws in training, such as dropout.
        loader: gives the batches (inputs, targets) instead, over and over: where the samples are
            not kept in memory, or are to be augmented. It may shuffle.
        checkpoint: a file to write the state of training to every 200 steps, at the end and on
            Ctrl-C. Where it exists and was written with the same arguments, training goes on from
            it, to the same curve (a `loader` starts anew).
        progress: show a bar; default on a terminal only.

    Raises:
        ValueError: an argument out of range, models of another architecture, a checkpoint of other
            arguments, or a loss that is not finite.
        Interrupted: on Ctrl-C, with the curve so far as `result`.

    Example:
        >>> import torch, pylandscape as pl
        >>> a, b = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        >>> data = torch.randn(30, 4), torch.randint(0, 3, (30,))
        >>> objective = pl.Objective(a, torch.nn.CrossEntropyLoss(), data)
        >>> curve = pl.connect(objective, a, b, steps=20, batch_size=10)
        >>> torch.equal(curve.point(1.0), objective.space.flatten(b))
        True
        >>> along = curve.evaluate(objective, resolution=11)
        >>> float(along.loss[0]) == objective.loss()
        True
    """
    _check(curve, bends, steps, learning_rate, momentum, weight_decay, batch_size, seed)
    require(
        loader is not None or objective.data.in_memory,
        "connect: loader must be given where the objective's samples do not fit into memory, got "
        "none. A DataLoader that shuffles is right here.",
    )
    require(
        loader is not None or not objective.has_batchnorm or min(batch_size, objective.samples) > 1,
        "connect: batch_size must be 2 or more for a model with BatchNorm, which normalises by the "
        f"statistics of the batch, got {batch_size} of {objective.samples} samples.",
    )
    models = {"model_a": model_a, "model_b": model_b}
    ends = [vector_of(objective, model, "connect", name) for name, model in models.items()]
    settings = {
        "curve": curve,
        "bends": bends,
        "steps": steps,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "batch_size": batch_size if loader is None else "as the loader gives them",
        "seed": seed,
        "trained_on": objective.data.fingerprint if loader is None else "a loader",
    }
    training = _Training(objective, ends, settings)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        training.resume(path)
    if loader is None:
        batches = _drawn(objective, batch_size, seed, training.done)
    else:
        given = itertools.chain.from_iterable(itertools.repeat(loader))
        batches = map(objective.data.pair, given)
    try:
        with progress_bar(steps, f"{curve} curve", "step", progress) as bar:
            bar.update(training.done)
            training.run(batches, path, bar)
    except KeyboardInterrupt:
        stop = Interrupted({}, training.done, "steps")
        stop.result = training.curve()
        if path is not None:
            training.save(path)
        raise stop from None
    if path is not None:
        training.save(path)
    return training.curve()


def _check(
    curve: Any, bends: Any, steps: Any, rate: Any, momentum: Any, decay: Any, batch: Any, seed: Any
) -> None:
    require_kind(curve, "connect")
    counts = {"bends": (bends, 1), "steps": (steps, 1), "batch_size": (batch, 1), "seed": (seed, 0)}
    for name, (value, least) in counts.items():
        require(
            isinstance(value, int) and value >= least,
            f"connect: {name} must be an integer >= {least}, got {show(value)}.",
        )
    rates = {"learning_rate": rate, "momentum": momentum, "weight_decay": decay}
    for name, value in rates.items():
        require(
            isinstance(value, (int, float)) and 0 <= value < np.inf,
            f"connect: {name} must be a number >= 0, got {show(value)}.",
        )
    require(momentum < 1, f"connect: momentum must be below 1, got {show(momentum)}.")


class _Training:
    """The nodes of a curve in training, and all that a checkpoint needs."""

    def __init__(self, objective: Objective, ends: list[Tensor], settings: dict[str, Any]) -> None:
        self.objective, self.settings = objective, settings
        shares = torch.linspace(0, 1, settings["bends"] + 2, dtype=torch.float64)[:, None]
        a, b = (end.double() for end in ends)
        shares = shares.to(a.device)
        self.nodes = ((1 - shares) * a + shares * b).to(ends[0].dtype)
        self.nodes[0], self.nodes[-1] = ends
        self.velocity = torch.zeros_like(self.nodes[1:-1])
        self.losses: list[float] = []
        self.random: Tensor | None = (
            None  # the state of torch's generator, as dropout draws from it
        )
        draws = torch.Generator().manual_seed(settings["seed"])
        self.t = torch.rand(settings["steps"], generator=draws, dtype=torch.float64)
        self.shares = curve_coefficients(settings["curve"], settings["bends"], self.t.numpy())

    @property
    def done(self) -> int:
        return len(self.losses)

    def run(self, batches: Iterator[Any], path: Path | None, bar: Any) -> None:
        with (
            torch.random.fork_rng(devices=_cuda(self.objective)),
            self.objective.training() as step,
        ):
            torch.manual_seed(self.settings["seed"])
            if self.random is not None:
                torch.set_rng_state(self.random)
            for k in range(self.done, self.settings["steps"]):
                self.random = torch.get_rng_state()
                self._step(step, k, next(batches))
                bar.update(1)
                if k % 20 == 0:
                    bar.set_postfix_str(f"loss {np.mean(self.losses[-20:]):.4g}", refresh=False)
                if path is not None and self.done % SAVE_EVERY == 0:
                    self.random = torch.get_rng_state()
                    self.save(path)
            self.random = torch.get_rng_state()

    def _step(self, step: Any, k: int, batch: Any) -> None:
        shares = self.shares[k].to(self.nodes)
        point = curve_point(self.nodes, shares)
        loss, gradient = step(point, batch)
        value = float(loss)
        require(
            bool(np.isfinite(value)),
            f"connect: the loss must stay finite, got {value} at step {k} of t = "
            f"{float(self.t[k]):.3f}. Use a smaller learning_rate than "
            f"{self.settings['learning_rate']}.",
        )
        decay, momentum = self.settings["weight_decay"], self.settings["momentum"]
        if decay:
            gradient.add_(point, alpha=decay)
        rate = self.settings["learning_rate"] * _schedule(k / self.settings["steps"])
        # all at once, after what may fail or be interrupted
        self.velocity.mul_(momentum).addr_(shares[1:-1], gradient)
        self.nodes[1:-1].add_(self.velocity, alpha=-rate)
        self.losses.append(value)

    def curve(self) -> Curve:
        history = xr.Dataset(
            {
                "t": ("step", self.t[: self.done].numpy()),
                "loss": ("step", np.asarray(self.losses, dtype=np.float64)),
            }
        )
        settings = self.settings
        space, nodes = self.objective.space, self.nodes.clone()
        return Curve(settings["curve"], space, nodes, history, dict(settings))

    def save(self, path: Path) -> None:
        training = {"velocity": self.velocity}
        if self.random is not None:
            training["random"] = self.random
        write_curve(path, self.curve(), training)

    def resume(self, path: Path) -> None:
        found, tensors = read_curve(path, self.objective, "connect")
        for name, value in self.settings.items():
            require(
                found.attrs.get(name) == value,
                f"connect: checkpoint must have been written with the same arguments, got {name} = "
                f"{show(found.attrs.get(name))} in {path} where {show(value)} is asked for. Give "
                "another file, or delete this one.",
            )
        same = [torch.equal(found.nodes[k], self.nodes[k]) for k in (0, -1)]
        require(
            all(same) and "velocity" in tensors,
            f"connect: checkpoint must belong to the given models, got another end point in "
            f"{path}. Give another file, or delete this one.",
        )
        self.nodes = found.nodes
        self.velocity = tensors["velocity"].to(found.nodes.device)
        self.random = tensors.get("random")
        self.losses = found.history["loss"].values.tolist()


def _schedule(progress: float) -> float:
    """The factor of the learning rate after a share of the steps, see `connect`."""
    if progress <= 0.5:
        return 1.0
    return 1.0 - (progress - 0.5) / 0.4 * 0.99 if progress <= 0.9 else 0.01


def _drawn(objective: Objective, size: int, seed: int, skip: int) -> Iterator[Any]:
    """Batches of the objective's samples without end, in another order in every epoch.

    Samples that do not fill a last batch wait for the next epoch. The first `skip` batches are
    left out, as training that goes on has had them.
    """
    count = objective.samples
    size = min(size, count)
    per_epoch = count // size
    for epoch in itertools.count(skip // per_epoch):
        order = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
        chosen = torch.randperm(count, generator=order).split(size)[:per_epoch]
        for index in chosen[skip % per_epoch if epoch == skip // per_epoch else 0 :]:
            yield objective.data.take(index.to(objective.device))


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint32)[0])


def _cuda(objective: Objective) -> list[torch.device]:
    return [objective.device] if objective.device.type == "cuda" else []
