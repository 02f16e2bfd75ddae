"""How long the study will take here: the expected work of its stages times measured paces."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

import pylandscape as pl
from pylandscape.study.analyses import Study
from pylandscape.study.model import SmallCNN
from pylandscape.study.stages import Stage
from pylandscape.study.training import Steps

SAMPLES = 512  # behind each reading of the clock


@dataclass(frozen=True)
class Pace:
    """What things cost on this machine, each as the stages do it.

    Attributes:
        loss, gradient, product: seconds per sample of a loss, a gradient, a product with the
            Hessian, through the engine that `Objective` chooses.
        step: seconds of a step of training, in PyTorch, by the size of the batch.
    """

    loss: float
    gradient: float
    product: float
    step: Mapping[int, float]

    @classmethod
    def measure(cls, study: Study, stages: Iterable[Stage]) -> "Pace":
        """The paces that the work of some stages asks for, in a second or two."""
        digits = study.digits.first(SAMPLES, 0)
        objective = pl.Objective(SmallCNN(), nn.CrossEntropyLoss(), digits.train)
        directions = pl.random_directions(objective, count=1)
        coordinates = torch.zeros(8, 1)
        vector = directions.vectors[0]

        def losses() -> object:
            return objective.evaluate_along(objective.center, directions, coordinates)

        return cls(
            loss=_fastest(losses) / (objective.samples * len(coordinates)),
            gradient=_fastest(objective.gradient) / objective.samples,
            product=_fastest(lambda: objective.hessian_vector_product(vector)) / objective.samples,
            step={
                size: _fastest(_training_step(study, size))
                for size in sorted({size for stage in stages for size in stage.work(study).steps})
            },
        )

    def seconds(self, stages: Iterable[Stage], study: Study) -> float:
        """The expected duration of some stages."""
        work = [stage.work(study) for stage in stages]
        return sum(
            each.losses * self.loss
            + each.gradients * self.gradient
            + each.products * self.product
            + sum(count * self.step[size] for size, count in each.steps.items())
            for each in work
        )


def _training_step(study: Study, size: int) -> Callable[[], object]:
    recipe = replace(study.config.recipe("a"), batch_size=size)
    steps = Steps(SmallCNN(), study.digits, recipe)
    batch = torch.arange(min(size, study.sizes[0]))
    return lambda: steps.step(batch)


def _fastest(function: Callable[[], object], repeats: int = 4) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def duration(seconds: float) -> str:
    """A duration as a person would say it.

    Example:
        >>> duration(3.2), duration(75), duration(5400)
        ('5 s', '1 min 20 s', '1 h 30 min')
    """
    if seconds < 3570:
        whole = max(5, 5 * round(seconds / 5)) if seconds < 57.5 else 10 * round(seconds / 10)
        minutes, rest = divmod(whole, 60)
        return " ".join([f"{minutes} min"] * (minutes > 0) + [f"{rest} s"] * (rest > 0))
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"
