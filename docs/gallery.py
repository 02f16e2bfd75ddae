"""Makes the figures of docs/gallery.md that are about sharpness and paths between solutions.

python docs/gallery.py [folder]: about two minutes on two cores, on the digits in the package.
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

import pylandscape as pl
from pylandscape.study.data import load_mnist

DECAY = 1e-3


class Mlp(nn.Sequential):
    """784-128-64-10."""

    def __init__(self) -> None:
        widths = (784, 128, 64, 10)
        layers: list[nn.Module] = [nn.Flatten()]
        for inside, outside in pairwise(widths):
            layers += [nn.Linear(inside, outside), nn.ReLU()]
        super().__init__(*layers[:-1])


def trained(seed: int, data: tuple[torch.Tensor, torch.Tensor], steps: int = 1000) -> nn.Module:
    torch.manual_seed(seed)
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=DECAY)
    for _ in range(steps):
        index = torch.randint(len(data[1]), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][index]), data[1][index]).backward()
        optimizer.step()
    return model


def save(figure: Figure, path: Path) -> None:
    _, pdf = pl.plots.save(figure, path)
    pdf.unlink()


def make(folder: Path) -> None:
    digits = load_mnist()
    models = [trained(seed, digits.train) for seed in (1, 2, 3)]
    objective = pl.Objective(models[0], nn.CrossEntropyLoss(), digits.train)
    test = objective.replace(data=digits.test)

    table = pl.barriers(objective, models, test=test, steps=2000, weight_decay=DECAY)
    print(table[["barrier", "test_barrier", "length"]].to_dataframe().to_string())
    save(pl.plots.barriers(table, scale="log"), folder / "barriers")

    curve = pl.connect(objective, *models[:2], steps=2000, weight_decay=DECAY)
    plane = curve.plane(objective, resolution=51)
    save(pl.plots.curve_plane(plane), folder / "curve_plane")

    profile = pl.sharpness.profile(objective)
    save(pl.plots.sharpness(profile), folder / "sharpness")
    print(pl.sharpness.table(objective).to_dataframe().to_string())


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "figures")
