"""random_normal against a naive Philox4x32-10 and Box-Muller in float64, and as statistics."""

import numpy as np
import pytest
import scipy.stats
import torch

from pylandscape import _ops

LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox(counter: list[np.ndarray], key: tuple[int, int]) -> list[np.ndarray]:
    """The four words of Philox4x32-10 for arrays of counters."""
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    k = list(key)
    for _ in range(10):
        first = c[0] * np.uint64(0xD2511F53)
        second = c[2] * np.uint64(0xCD9E8D57)
        c = [
            (second >> HALF) ^ c[1] ^ np.uint64(k[0]),
            second & LOW,
            (first >> HALF) ^ c[3] ^ np.uint64(k[1]),
            first & LOW,
        ]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def naive(seed: int, elements: np.ndarray) -> np.ndarray:
    """Elements of the stream of `seed`, in float64."""
    block = elements.astype(np.uint64) // np.uint64(4)
    zero = np.zeros_like(block)
    key = (seed % 2**32, (seed % 2**64) >> 32)
    words = [
        word.astype(np.float64) for word in philox([block & LOW, block >> HALF, zero, zero], key)
    ]
    pair = elements % 4 // 2
    radius_word, angle_word = np.where(pair == 0, words[:2], words[2:])
    radius = np.sqrt(-2 * np.log((radius_word + 0.5) / 2**32))
    angle = 2 * np.pi * angle_word / 2**32
    return radius * np.where(elements % 2 == 0, np.cos(angle), np.sin(angle))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_the_reference_gives_the_known_answers(counter: str, key: str, words: str) -> None:
    """Of the Random123 distribution (Salmon et al. 2011)."""
    blocks = [np.array(int(word, 16)) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    assert " ".join(f"{int(word):08x}" for word in philox(blocks, (low, high))) == words


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32, 2**63 - 1, -1, -(2**63)])
def test_against_the_reference(device: str, seed: int) -> None:
    size = 10_001
    z = _ops.random_normal(seed, size, device).double().cpu().numpy()
    expected = naive(seed, np.arange(size))
    np.testing.assert_allclose(z, expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 31, 32, 33, 64, 16383, 16384, 16385, 70_001])
def test_every_size_is_the_start_of_the_same_stream(device: str, size: int) -> None:
    longest = _ops.random_normal(9, 70_001)
    assert torch.equal(_ops.random_normal(9, size, device).cpu(), longest[:size])


def test_levels_give_the_same_bits() -> None:
    streams = []
    before = _ops.isa()
    for level in _ops.isa_levels():
        _ops.set_isa(level)
        streams.append(_ops.random_normal(torch.tensor([3, -7]), 300_007))
    _ops.set_isa(before)
    assert all(torch.equal(stream, streams[0]) for stream in streams)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_matter(level: str, threads: int) -> None:
    seeds = torch.tensor([5, 6, 7])
    torch.set_num_threads(1)
    expected = _ops.random_normal(seeds, 50_001)
    torch.set_num_threads(threads)
    assert torch.equal(_ops.random_normal(seeds, 50_001), expected)


def test_rows_are_the_streams_of_their_seeds() -> None:
    together = _ops.random_normal(torch.tensor([4, 2, 4]), 1001)
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1], _ops.random_normal(2, 1001))


def test_distribution() -> None:
    z = _ops.random_normal(2024, 1_000_000).double().numpy()
    n = len(z)
    # standard errors of the first four moments of a normal sample
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
    assert np.abs(z).max() < 6.764


def test_each_position_of_a_block_is_normal() -> None:
    blocks = _ops.random_normal(77, 400_000).double().numpy().reshape(-1, 4)
    for position in range(4):
        assert scipy.stats.kstest(blocks[:, position], "norm").pvalue > 1e-3
    correlation = np.corrcoef(blocks.T) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(blocks))
    squares = np.corrcoef(blocks.T**2) - np.eye(4)  # a pair shares its radius, not its norm
    assert np.abs(squares).max() < 5 / np.sqrt(len(blocks))


def test_streams_are_independent() -> None:
    seeds = torch.tensor([0, 1, 2, 3, 2**32, 2**33, -1, 123456789])
    z = _ops.random_normal(seeds, 200_000).double()
    correlation = z @ z.T / z.shape[1] - torch.eye(len(seeds))
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5 / z.shape[1] ** 0.5
    shifted = (z[:, 1:] * z[:, :-1]).mean(dim=1)
    assert shifted.abs().max() < 5 / z.shape[1] ** 0.5


@pytest.mark.parametrize(
    ("seeds", "size", "message"),
    [
        (torch.tensor([1.0]), 3, r"random_normal: seeds must be int64 of shape \[D\], got"),
        (torch.tensor(1), 3, r"random_normal: seeds must be int64 of shape \[D\], got"),
        (0, -1, "random_normal: size must be at least 0, got -1"),
    ],
)
def test_bad_arguments(seeds: torch.Tensor | int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _ops.random_normal(seeds, size)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.pylandscape.random_normal, (torch.tensor([1, 2]), 37))
