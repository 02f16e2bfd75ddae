"""The host SIMT layer finds what it is for: a planted bug of each kind, beside the right kernel."""

import numpy as np
import pytest
import torch
from simt.kernels import load

simt = load()


def run(name: str, x: np.ndarray, outputs: int = 64, **options: bool) -> np.ndarray:
    out = np.full(outputs, np.nan)
    simt.run(name, x, out, **options)
    return out


def numbers(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal(size)


@pytest.mark.parametrize("size", [1, 63, 64, 200])
def test_shuffles_and_a_barrier(size: int) -> None:
    x = numbers(size)
    sums = run("block_sum", x, outputs=-(-size // 64))
    np.testing.assert_allclose(sums, [part.sum() for part in np.split(x, range(64, size, 64))])


def test_rounds_of_barriers() -> None:
    x = numbers(64)
    expected = x[::-1].copy()
    run("reverse", x)
    np.testing.assert_array_equal(x, expected)


def test_a_warp_among_itself() -> None:
    x = numbers(64)
    expected = np.concatenate([x[31::-1], x[:31:-1]])
    run("reverse in warp", x)
    np.testing.assert_array_equal(x, expected)


def test_votes() -> None:
    x = numbers(64)
    lanes, any_lane, all_lanes = run("votes", x)[:3]
    assert int(lanes) == sum(1 << i for i in range(32) if x[i] > 0)
    assert (any_lane, all_lanes) == (1, 0)


def test_atomics() -> None:
    x, counts = np.arange(1000.0) % 4, np.zeros(4)
    simt.run("histogram", x, counts)
    assert counts.tolist() == [250] * 4


def test_matrix_product_in_tf32() -> None:
    """Ten bits of the significand are left of the factors, the sums are exact enough."""
    a, b = (torch.randn(shape, generator=torch.manual_seed(0)) for shape in ((16, 8), (8, 16)))
    c = np.zeros((16, 16), np.float32)
    simt.product(a.numpy(), b.numpy(), c)
    rounded = [(x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32) for x in (a, b)]
    torch.testing.assert_close(torch.from_numpy(c), rounded[0] @ rounded[1])
    assert (torch.from_numpy(c) - a @ b).abs().max() > 1e-5


PLACE = r"block \(0, 0, 0\), thread \(\d+, 0, 0\)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("block_sum without barrier", rf"{PLACE}: reads .* nobody wrote"),
        ("reverse without second barrier", rf"{PLACE}: race: reads .* thread \(31, .* wrote"),
        ("shift in place", rf"{PLACE}: race: writes .* thread \(0, 0, 0\) read with no barrier"),
        ("reverse in warp without barrier", rf"{PLACE}: reads .* nobody wrote"),
        ("unwritten", r"thread \(10, 0, 0\): reads shared memory that nobody wrote"),
        ("histogram without atomics", rf"{PLACE}: race: "),
        ("divergent barrier", r"divergent: thread \(0, 0, 0\) waits at a barrier in line (\d+) "),
        ("leave before barrier", r"thread \(0, 0, 0\) waits at a barrier .*\(3, 0, 0\) has ended"),
        ("divergent shuffle", r"waits at a warp operation .* thread \(9, 0, 0\) has ended"),
        ("shuffle from outside", r"thread \(0, 0, 0\): reads lane 16, which takes no part"),
        ("too many blocks", r"cannot be launched as a grid of \(1, 70000, 1\)"),
    ],
)
def test_planted_bugs(name: str, message: str) -> None:
    with pytest.raises(simt.Error, match=message):
        run(name, np.zeros(64))
    run("block_sum", numbers(64), outputs=1)  # a failure leaves nothing behind


def test_out_of_range_names_kernel_block_and_thread() -> None:
    with pytest.raises(simt.Error) as error:
        run("past the end", numbers(60))
    assert str(error.value) == (
        "copy_past_the_end, block (0, 0, 0), thread (60, 0, 0): element 60 of x is out of range, "
        "it has 60"
    )


def test_a_lane_missing_from_a_matrix_product() -> None:
    a, b, c = (np.zeros(shape, np.float32) for shape in ((16, 8), (8, 16), (16, 16)))
    with pytest.raises(simt.Error, match=r"divergent: .*\(5, 0, 0\) has ended"):
        simt.product(a, b, c, bug=True)


def test_the_order_of_blocks_can_be_turned() -> None:
    """What a kernel must not depend on; operators are tested both ways."""
    forward, backward = np.ones(5), np.ones(5)
    run("running total", forward)
    run("running total", backward, reversed=True)
    assert forward.tolist() == [1, 2, 3, 4, 5]
    assert backward.tolist() == [1, 2, 2, 2, 2]
