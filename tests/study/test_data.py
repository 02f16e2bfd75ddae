"""The embedded digits are MNIST's own, and data are found where they should be."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pylandscape.study import data

CANDIDATES = [
    os.environ.get("PYLANDSCAPE_DATA"),
    Path(__file__).parents[3] / "shared" / "data" / "mnist",
]
FULL = next((Path(c) for c in CANDIDATES if c and (Path(c) / "MNIST" / "raw").is_dir()), None)
needs_mnist = pytest.mark.skipif(FULL is None, reason="all of MNIST is not at hand")


@pytest.fixture(autouse=True)
def _no_data_elsewhere(monkeypatch, tmp_path):
    monkeypatch.delenv("PYLANDSCAPE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty-cache"))


def test_embedded_digits_are_balanced_and_standardised():
    digits = data.load_mnist()
    assert "embedded" in digits.source
    for (images, labels), count in ((digits.train, 6_000), (digits.test, 2_000)):
        assert images.shape == (count, 1, 28, 28)
        assert images.dtype == torch.float32
        assert labels.bincount().tolist() == [count // 10] * 10
        assert abs(images.mean()) < 0.05
        assert abs(images.std() - 1) < 0.05


def test_embedded_digits_can_be_told_apart():
    """The nearest class mean finds most test digits: images and labels belong together."""
    (images, labels), (test_images, test_labels) = data.load_mnist().train, data.load_mnist().test
    means = torch.stack([images[labels == c].mean(0).flatten() for c in range(10)])
    nearest = torch.cdist(test_images.flatten(1), means).argmin(1)
    assert (nearest == test_labels).double().mean() > 0.75


@needs_mnist
def test_embedded_digits_are_rows_of_mnist():
    full = data.load_mnist(FULL, full=True)
    embedded = data.load_mnist()
    for name, rows in zip(("train", "test"), data.embedded_rows(), strict=True):
        images, labels = getattr(full, name)
        chosen = torch.from_numpy(rows.astype(np.int64))
        assert torch.equal(images[chosen], getattr(embedded, name)[0])
        assert torch.equal(labels[chosen], getattr(embedded, name)[1])


@needs_mnist
def test_without_full_a_folder_gives_the_embedded_rows(monkeypatch):
    monkeypatch.setenv("PYLANDSCAPE_DATA", str(FULL))
    found = data.load_mnist()
    monkeypatch.delenv("PYLANDSCAPE_DATA")
    embedded = data.load_mnist()
    assert found.fingerprint == embedded.fingerprint
    assert torch.equal(found.train[0], embedded.train[0])
    assert found.source != embedded.source


@needs_mnist
def test_the_cache_is_found(monkeypatch, tmp_path):
    (tmp_path / "pylandscape").symlink_to(FULL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(data.load_mnist(full=True).train[1]) == 60_000


def test_a_root_without_mnist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root must be a folder with MNIST/raw.*got"):
        data.load_mnist(tmp_path)


def test_a_variable_without_mnist_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PYLANDSCAPE_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="PYLANDSCAPE_DATA must be a folder"):
        data.load_mnist()


def test_full_needs_a_folder():
    with pytest.raises(FileNotFoundError, match="only the embedded subset"):
        data.load_mnist(full=True)


def test_fingerprint_sees_a_single_pixel_and_what_is_left_out():
    digits = data.load_mnist()
    images = digits.test[0].clone()
    images[7, 0, 3, 3] += 0.01
    other = replace(digits, test=(images, digits.test[1]))
    fewer = digits.first(None, 1_000)
    assert len({digits.fingerprint, other.fingerprint, fewer.fingerprint}) == 3
    assert replace(digits).fingerprint == digits.fingerprint


def test_balanced_rows_refuses_what_it_cannot_balance():
    with pytest.raises(ValueError, match="multiple of 2 of at most 4"):
        data.balanced_rows(np.array([0, 0, 0, 1, 1]), 6)
