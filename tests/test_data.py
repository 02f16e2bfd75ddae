"""The samples of an objective: every form of data gives the same ones, on every pass."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import classifier, initialised, labels, mlp, normal
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

import pylandscape as pl
from pylandscape.data import Samples

N = 11
X, Y = normal(N, 4), labels(N, 3)
CPU = torch.device("cpu")


def samples(data: Any, **options: Any) -> Samples:
    return Samples(data, device=CPU, dtype=torch.float64, **options)


def everything(found: Samples) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*found.batches(4), strict=True)
    return torch.cat(inputs), torch.cat(targets)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class Noisy(Dataset):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return X[index] + torch.randn(()), Y[index]


FORMS = {
    "tensors": (X, Y),
    "list": [X, Y],
    "arrays": (X.numpy(), Y.numpy()),
    "dataset": TensorDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=3),
    "subset": Subset(TensorDataset(torch.cat([X, X]), torch.cat([Y, Y])), range(N)),
    "stream": Stream(),
    "loader of a stream": DataLoader(Stream(), batch_size=4),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("memory", [None, 0], ids=["kept", "streamed"])
def test_every_form_gives_the_same_samples(form: str, memory: int | None) -> None:
    found = samples(FORMS[form], memory=memory)
    for _ in range(2):
        inputs, targets = everything(found)
        assert torch.equal(inputs, X)
        assert torch.equal(targets, Y)
    assert found.count == found.population == N
    assert found.in_memory or memory == 0
    assert found.first(2)[0].shape == (2, 4)
    assert found.fingerprint == samples((X, Y)).fingerprint


def test_the_batches_of_kept_samples() -> None:
    sizes = [len(targets) for _, targets in samples((X, Y)).batches(4)]
    assert sizes == [4, 4, 3]


def test_streamed_samples_are_read_in_the_loaders_batches() -> None:
    found = samples(DataLoader(TensorDataset(X, Y), batch_size=5), memory=0)
    assert not found.in_memory
    assert [len(targets) for _, targets in found.batches(2)] == [5, 5, 1]


def test_batches_of_unlike_shapes_stay_apart() -> None:
    """Sequences padded batch by batch, as a collate function does it."""
    batches = [(normal(2, 3), labels(2, 3)), (normal(3, 5), labels(3, 3))]
    found = samples(DataLoader(batches, batch_size=None))
    assert found.count == 5
    assert [tuple(inputs.shape) for inputs, _ in found.batches(1)] == [(2, 3), (3, 5)]


def test_converted_to_the_precision_of_the_objective() -> None:
    inputs, targets = samples((X.float(), Y.int())).first(2)
    assert inputs.dtype == torch.float64
    assert targets.dtype == torch.int32


def test_fingerprint_tells_data_apart() -> None:
    same = samples((X.clone(), Y.clone()))
    other = X.clone()
    other[3, 2] += 1e-9
    prints = [samples((X, Y)), same, samples((other, Y)), samples((X, Y.flip(0)))]
    assert prints[0].fingerprint == prints[1].fingerprint
    assert len({found.fingerprint for found in prints}) == 3


@pytest.mark.parametrize("form", ["tensors", "dataset", "loader"])
def test_a_subset_is_drawn_without_replacement(form: str) -> None:
    first, again = samples(FORMS[form], limit=5), samples(FORMS[form], limit=5)
    other = samples(FORMS[form], limit=5, seed=1)
    assert (first.count, first.population) == (5, N)
    rows = everything(first)[0]
    assert len({tuple(row.tolist()) for row in rows} & {tuple(row.tolist()) for row in X}) == 5
    assert torch.equal(rows, everything(again)[0])
    assert not torch.equal(rows, everything(other)[0])


def test_a_subset_of_all_is_all() -> None:
    assert torch.equal(everything(samples((X, Y), limit=N))[0], X)


def test_a_subset_of_a_loader_that_shuffles() -> None:
    """The draw replaces the loader's order, so shuffling does no harm."""
    found = samples(DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True), limit=5)
    assert torch.equal(everything(found)[0], everything(samples((X, Y), limit=5))[0])


@pytest.mark.parametrize("memory", [None, 0], ids=["kept", "streamed"])
def test_reading_draws_no_random_numbers(memory: int | None) -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, generator=generator)
    before = torch.get_rng_state(), generator.get_state()
    everything(samples(loader, memory=memory))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(generator.get_state(), before[1])


def test_drop_last_is_warned_of() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, drop_last=True)
    with pytest.warns(UserWarning, match="drop_last=True: the samples of its last") as caught:
        objective = pl.Objective(mlp(), nn.CrossEntropyLoss(), loader)
    assert caught[0].filename == __file__
    assert objective.samples == 8


@pytest.mark.parametrize(
    "data",
    [
        DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
        DataLoader(Noisy(), batch_size=4),
        Noisy(),
    ],
    ids=["shuffled", "augmented", "augmented dataset"],
)
def test_data_that_change_are_caught(data: Any) -> None:
    model, before = mlp(), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"the same on every pass.*shuffled or augmented. Use"):
        pl.Objective(model, nn.CrossEntropyLoss(), data)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X[:5], Y), {}, r"as many inputs as targets.* got \[5, 4\] and \[11\]"),
        ((X, Y[0]), {}, r"as many inputs as targets.* and \[\]"),
        ((X, [1] * N), {}, r"must be tensors.* and int and int and int and int and 7 more"),
        ((X[:0], Y[:0]), {}, "at least one sample, got none"),
        (TensorDataset(X[:0], Y[:0]), {}, "at least one sample, got none"),
        (X, {}, r"must be a pair \(inputs, targets\).*got a tensor of shape \[11, 4\]"),
        ((X, Y, Y), {}, "must be a pair .*got tuple of 3"),
        (TensorDataset(X), {}, "must give pairs .*got list of 1. Wrap the dataset"),
        (DataLoader([{"x": X[0], "y": Y[0]}]), {}, "must give pairs .*got dict"),
        (DataLoader([("a", 1), ("b", 2)]), {}, "must be tensors"),
        ((X, Y), {"samples": 0}, "samples must be an integer from 1 to 11, got 0"),
        ((X, Y), {"samples": N + 1}, "samples must be an integer from 1 to 11, got 12"),
        ((X, Y), {"samples": 2.5}, "samples must be an integer from 1 to 11, got 2.5"),
        (TensorDataset(X, Y), {"samples": 12}, "samples must be an integer from 1 to 11, got 12"),
        (Stream(), {"samples": 2}, "samples must be None for an iterable dataset.*got 2"),
        (
            DataLoader(TensorDataset(X, Y), sampler=SubsetRandomSampler([1, 2])),
            {"samples": 2},
            "a sampler of its own",
        ),
        ((normal(N, 5), Y), {}, r"inputs that the model runs on, got inputs of shape \[8, 5\]"),
        ((normal(N, 3, 5), Y), {}, r"inputs that the model runs on.*\[8, 3, 5\]: RuntimeError"),
        ((X.to(torch.uint8), Y), {}, "inputs that the model runs on"),
        ((X, Y + 2), {}, r"loss must accept.*shape \[8, 3\] and targets.*\[8\]: Target"),
    ],
)
def test_wrong_data(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^Objective: .*{message}"):
        pl.Objective(mlp(), nn.CrossEntropyLoss(), data, **options)


class Two(nn.Module):
    """A model of two inputs, one of which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.net(x if scale is None else x * scale)


def test_inputs_of_several_tensors() -> None:
    model, scale = initialised(Two()), normal(N, 1, seed=6)
    expected = F.cross_entropy(model(X, scale), Y).item()
    pairs = [((x, s), y) for x, s, y in zip(X, scale, Y, strict=True)]
    named = [({"x": x, "scale": s}, y) for x, s, y in zip(X, scale, Y, strict=True)]
    for data in (
        ((X, scale), Y),
        ([X.numpy(), scale.numpy()], Y.numpy()),
        ({"x": X, "scale": scale}, Y),
        DataLoader(pairs, batch_size=4),
        DataLoader(named, batch_size=4),
    ):
        objective = pl.Objective(model, nn.CrossEntropyLoss(), data, batch_size=3)
        assert objective.loss() == pytest.approx(expected, rel=1e-12)


def test_targets_of_several_tensors() -> None:
    weight = normal(N, seed=7).abs()

    def loss(outputs: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(outputs, targets[0], reduction="none") * targets[1]

    model = mlp()
    objective = pl.Objective(model, loss, (X, (Y, weight)), batch_size=4)
    assert objective.loss() == pytest.approx(loss(model(X), (Y, weight)).mean().item())


@pytest.mark.parametrize("policy", ["frozen", "batch", "recompute"])
def test_streamed_data_give_the_same_objective(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = initialised(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    loader = DataLoader(TensorDataset(X, Y), batch_size=4)
    kept = pl.Objective(model, nn.CrossEntropyLoss(), loader, batchnorm=policy, batch_size=4)
    monkeypatch.setattr("pylandscape.data._free_memory", lambda device: 0)
    streamed = pl.Objective(model, nn.CrossEntropyLoss(), loader, batchnorm=policy)
    assert kept.data.in_memory
    assert not streamed.data.in_memory
    points = kept.center + 0.1 * normal(5, kept.space.size, seed=2)
    monkeypatch.setattr("pylandscape.engines.eager.STREAM_BYTES", 8 * 2 * kept.space.size)
    a, b = kept.evaluate(points), streamed.evaluate(points)
    assert a.keys() == b.keys() == {"loss", "loss_stderr", "accuracy"}
    for name, values in a.items():
        torch.testing.assert_close(b[name], values)
    v = normal(kept.space.size)
    torch.testing.assert_close(streamed.gradient(), kept.gradient())
    torch.testing.assert_close(streamed.hessian_vector_product(v), kept.hessian_vector_product(v))


def test_padded_sequences_batch_by_batch() -> None:
    """L over batches of unlike lengths equals the mean over all the sequences."""
    model = initialised(nn.Sequential(nn.Embedding(7, 4), nn.AdaptiveAvgPool2d((1, None))))
    model = nn.Sequential(model, nn.Flatten(), initialised(nn.Linear(4, 3)))
    batches = [(labels(2, 7, 3), labels(2, 3)), (labels(3, 7, 5), labels(3, 3, seed=2))]
    objective = pl.Objective(model, F.cross_entropy, DataLoader(batches, batch_size=None))
    total = sum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in batches)
    assert objective.loss() == pytest.approx(total / 5, rel=1e-12)


def test_worker_processes() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=3, num_workers=1)
    assert torch.equal(everything(samples(loader))[0], X)


def test_labels_beyond_the_first_batch_reach_the_loss() -> None:
    objective = classifier(count=300)
    assert objective.samples == 300


def test_arrays_of_another_byte_width() -> None:
    model = mlp().float()
    data = (X.numpy(), Y.numpy().astype(np.int64))
    assert pl.Objective(model, F.cross_entropy, data).loss() > 0
