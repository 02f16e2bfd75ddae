"""The table of barriers against the functions that it calls."""

import signal

import pytest
import torch
from models import normal
from torch import nn

import pylandscape as pl


def net(seed):
    torch.manual_seed(seed)
    layers = [nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)]
    return nn.Sequential(*layers).double()


def objective(count=24, seed=0):
    targets = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed))
    return pl.Objective(net(0), nn.CrossEntropyLoss(), (normal(count, 3, seed=seed), targets))


def test_its_rows_are_those_of_the_three_functions():
    models, train, test = [net(1), net(2), net(3)], objective(), objective(11, 3)
    training = {"steps": 6, "batch_size": 8, "curve": "polychain"}
    table = pl.barriers(train, models, resolution=5, test=test, seed=2, **training)
    assert list(zip(table.model_a.values, table.model_b.values, strict=True)) == [
        (0, 1), (0, 2), (1, 2)
    ]  # fmt: skip
    a, b = models[0], models[2]
    options = {"resolution": 5, "test": test}
    aligned = pl.align(train, a, b, seed=2)
    expected = {
        "straight": pl.interpolate(train, a, b, batchnorm="recompute", **options),
        "aligned": pl.interpolate(train, a, aligned, batchnorm="recompute", **options),
        "curve": pl.connect(train, a, b, seed=2, **training).evaluate(train, **options),
    }
    for path, line in expected.items():
        row = table.sel(path=path).isel(pair=1)
        for name in ("barrier", "accuracy_drop", "test_barrier", "test_accuracy_drop"):
            assert float(row[name]) == line.attrs[name], name
        assert torch.equal(torch.from_numpy(row.loss.values), torch.from_numpy(line.loss.values))
        length = line.attrs["length" if path == "curve" else "distance"]
        assert float(row["length"]) == length
    assert table[["barrier", "length"]].to_dataframe().shape[0] == 9
    assert table.attrs["batchnorm"] == "recompute"


class Pressed(nn.Module):
    """Somebody presses Ctrl-C during the n-th call."""

    def __init__(self):
        super().__init__()
        self.calls, self.n = [], 1 << 30

    def forward(self, x):
        self.calls.append(1)
        if len(self.calls) == self.n:
            signal.raise_signal(signal.SIGINT)
        return x


def test_an_interrupted_table_keeps_the_pairs_that_are_done():
    pressed = Pressed()
    train = pl.Objective(
        nn.Sequential(*net(0), pressed), nn.CrossEntropyLoss(), objective().data.first(24)
    )
    models, arguments = [net(1), net(2), net(3)], {"paths": ["straight"], "resolution": 4}
    pressed.calls.clear()
    expected = pl.barriers(train, models[:2], **arguments)
    pressed.n, calls = 2 * len(pressed.calls), pressed.calls
    calls.clear()
    with pytest.raises(pl.Interrupted) as caught:
        pl.barriers(train, models, **arguments)
    assert caught.value.result.identical(expected)


def test_bad_requests():
    models = [net(1), net(2)]
    with pytest.raises(ValueError, match="models must be a list of two or more"):
        pl.barriers(objective(), models[:1])
    with pytest.raises(ValueError, match="paths must be some of"):
        pl.barriers(objective(), models, ["crooked"])
    with pytest.raises(ValueError, match=r"models\[1\] must have the architecture"):
        pl.barriers(objective(), [net(1), nn.Linear(2, 2)])
