"""SGD with momentum on the digits, recorded."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

import pylandscape as pl
from pylandscape.progress import progress_bar
from pylandscape.study.config import Recipe
from pylandscape.study.data import Digits, Split


def train(
    model: nn.Module,
    digits: Digits,
    recipe: Recipe,
    folder: str | Path,
    progress: bool | None = None,
) -> xr.Dataset:
    """Train `model` in place and record the run in `folder`, replacing one that is there.

    The order of the digits comes from the recipe's seed through a generator of its own, so the
    result does not depend on what else draws random numbers.

    Returns:
        Over `step`: mini-batch `loss`, `grad_norm` and `learning_rate`. Over `epoch`
        (finished epochs, from 0): `train_loss`, `train_accuracy`, `test_loss` and
        `test_accuracy` over all digits of the split.
    """
    labels = digits.train[1]
    steps = Steps(model, digits, recipe)
    shuffle = torch.Generator().manual_seed(recipe.seed)
    splits = {"train": _objective(model, digits.train), "test": _objective(model, digits.test)}
    evaluations = [_evaluate(splits)]
    steps_per_epoch = -(-len(labels) // recipe.batch_size)
    name = f"training, seed {recipe.seed}, batches of {recipe.batch_size}"
    with (
        pl.Recorder(folder, _schedule(recipe, steps_per_epoch), overwrite=True).attach(
            model, steps.optimizer
        ) as recorder,
        progress_bar(recipe.epochs * steps_per_epoch, name, "step", progress) as bar,
    ):
        for _ in range(recipe.epochs):
            model.train()
            for batch in torch.randperm(len(labels), generator=shuffle).split(recipe.batch_size):
                steps.step(batch, recorder)
                bar.update(1)
            recorder.end_epoch()
            evaluations.append(_evaluate(splits))
            if evaluations[-1]["train_loss"] <= recipe.until_loss:
                break
    return _result(pl.Trajectory(folder).log, evaluations, recipe.seed, splits["train"])


class Steps:
    """SGD on batches of the digits, for a model that it sets channels-last."""

    def __init__(self, model: nn.Module, digits: Digits, recipe: Recipe) -> None:
        self.model = model.to(memory_format=torch.channels_last)
        self.images, self.labels = digits.train
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )

    def step(self, batch: Tensor, recorder: pl.Recorder | None = None) -> None:
        """One step on the digits with the numbers `batch`."""
        inputs = self.images[batch].contiguous(memory_format=torch.channels_last)
        self.optimizer.zero_grad()
        loss = self.criterion(self.model(inputs), self.labels[batch])
        loss.backward()
        if recorder is not None:
            recorder.log(loss=loss.detach())
        self.optimizer.step()


def _schedule(recipe: Recipe, steps_per_epoch: int) -> int | Callable[[int], bool]:
    if recipe.snapshots_per_epoch is None:
        return lambda step: False  # there is one at each end anyway
    return max(1, steps_per_epoch // recipe.snapshots_per_epoch)


def _objective(model: nn.Module, split: Split) -> pl.Objective:
    return pl.Objective(model, nn.CrossEntropyLoss(), split)


def _evaluate(splits: dict[str, pl.Objective]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, objective in splits.items():
        values = objective.evaluate(objective.center[None])
        found |= {f"{name}_{key}": values[key].item() for key in ("loss", "accuracy")}
    return found


def _result(
    log: xr.Dataset, evaluations: list[dict[str, float]], seed: int, objective: pl.Objective
) -> xr.Dataset:
    per_step = log[["loss", "grad_norm", "learning_rate"]]
    per_epoch = {
        name: ("epoch", np.array([each[name] for each in evaluations])) for name in evaluations[0]
    }
    result = per_step.assign(per_epoch).assign_coords(epoch=np.arange(len(evaluations)))
    described = objective.describe()
    del described["engine"]  # the steps are plain PyTorch
    return result.assign_attrs(kind="training", seed=seed, **described)
