"""Trace, Frobenius norm and diagonal of a symmetric matrix from products with random vectors."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pylandscape._checks import all_finite, require, show, users_level
from pylandscape.curvature._krylov import SymmetricOperator, check_operator, described
from pylandscape.curvature._probes import Probes, Vectors, check_vectors
from pylandscape.objective import Interrupted
from pylandscape.progress import progress_bar

Method = Literal["xtrace", "hutch++", "hutchinson"]
Floats = NDArray[np.float64]

_LEAST = 6  # vectors before their spread is first looked at
_BLOCK = 8  # vectors multiplied at once


@dataclass(frozen=True)
class Estimate:
    """A quantity estimated from random vectors.

    Attributes:
        value: the estimate, a number; for a diagonal float64 [n].
        stderr: its standard error, of the same form, from the spread over the random vectors.
        products: matrix-vector products used.
        converged: the standard error is as small as was asked for.
        method, vectors, seed: how it was made.
        attrs: how the matrix was made.
    """

    value: Any
    stderr: Any
    products: int
    converged: bool
    method: str
    vectors: str
    seed: int
    attrs: dict[str, Any] = field(repr=False)


def trace(
    H: SymmetricOperator,
    tol: float = 0.05,
    atol: float = 0.0,
    method: Method = "xtrace",
    max_products: int = 1000,
    vectors: Vectors = "normal",
    memory: float = 2**30,
    seed: int = 0,
    progress: bool | None = None,
) -> Estimate:
    """tr H = sum_i lambda_i, to a standard error of at most max(tol |tr H|, atol).

    All methods use that E[z' H z] = tr H for random z with E[z z'] = I.

    - "hutchinson": the mean of z' H z. Its error is sqrt(2 / N) ||H||_F for N vectors.
    - "hutch++" (Meyer et al. 2021): with Q an orthonormal basis of H S, S a third of the vectors,
      tr H = tr Q' H Q + tr (I - QQ') H (I - QQ'), the first part exactly and the second, from which
      the large eigenvalues are gone, as above by the last third.
    - "xtrace" (Epperly, Tropp and Webber 2024): the same with all vectors but the i-th as S and the
      i-th for the rest, averaged over i, without more products. The standard error is the spread of
      these N / 2 estimates, as in the paper; they are not quite independent.

    The last two take two or three vectors of memory for each pair or triple of products, and far
    fewer products where a few eigenvalues are large; with Q as large as H they are exact.

    Args:
        H: a `pl.Hessian`, `pl.GGN`, `pl.Fisher`, or anything symmetric with `shape`, `dtype`,
            `device` and `@` for blocks [n, K]; float32 or float64.
        tol: the standard error to be reached, relative to |tr H|.
        atol: the same, absolute; the larger of both counts. Give it where tr H may be near zero.
        method: see above.
        max_products: stop after so many products, at the latest.
        vectors: "normal", directions uniform on the sphere, or "rademacher", random signs.
        memory: bytes for the vectors that "hutch++" and "xtrace" keep.
        seed: of the random vectors.
        progress: show a bar with the current value; by default on a terminal only.

    Raises:
        TypeError: `H` is not such an operator.
        ValueError: another argument is out of range, or a product is not finite.
        Interrupted: on Ctrl-C; its `result` is the estimate so far.

    Warns:
        UserWarning: the standard error was not reached.

    Example:
        >>> import torch, pylandscape as pl
        >>> H = torch.diag(torch.tensor([100.0, -3.0] + [0.1] * 300))
        >>> estimate = pl.trace(H)
        >>> abs(estimate.value - 127) < 4 * estimate.stderr <= 4 * 0.05 * 127
        True
    """
    where = "trace"
    check_operator(H, where)
    _check(where, tol, atol, max_products)
    check_vectors(vectors, seed, where)
    require(
        method in get_args(Method),
        f"{where}: method must be one of {', '.join(get_args(Method))}, got {show(method)}.",
    )
    run: _Run
    if method == "hutchinson":
        run = _Means(H, Probes(H, vectors, seed), torch.dot, root=False)
    else:
        run = _Deflated(H, Probes(H, vectors, seed), method, memory, where)
    return _until_small(run, where, tol, atol, max_products, progress)


def frobenius_norm(
    H: SymmetricOperator,
    tol: float = 0.05,
    atol: float = 0.0,
    max_products: int = 1000,
    vectors: Vectors = "normal",
    seed: int = 0,
    progress: bool | None = None,
) -> Estimate:
    """||H||_F = sqrt(sum_i lambda_i^2), to a standard error of at most max(tol ||H||_F, atol).

    The root of the mean of ||H z||^2 over random z with E[z z'] = I. The vectors of a seed are
    those of `trace`.

    Args:
        H, tol, atol, max_products, vectors, seed, progress: as for `trace`.

    Raises:
        TypeError, ValueError, Interrupted: as for `trace`.

    Warns:
        UserWarning: the standard error was not reached.

    Example:
        >>> import torch, pylandscape as pl
        >>> H = torch.diag(torch.tensor([3.0, -4.0] + [0.0] * 50))
        >>> estimate = pl.frobenius_norm(H, tol=0.1)
        >>> abs(estimate.value - 5) < 4 * estimate.stderr
        True
    """
    where = "frobenius_norm"
    check_operator(H, where)
    _check(where, tol, atol, max_products)
    check_vectors(vectors, seed, where)
    run = _Means(H, Probes(H, vectors, seed), lambda z, image: image.dot(image), root=True)
    return _until_small(run, where, tol, atol, max_products, progress)


def diagonal(
    H: SymmetricOperator, probes: int = 100, seed: int = 0, progress: bool | None = None
) -> Estimate:
    """The diagonal of H [n]: the mean of z * (H z) over vectors z of random signs (Bekas 2007).

    The error of entry i is sqrt(sum_{j != i} H_ij^2 / probes): small where H is nearly diagonal.
    Its standard error is given entry by entry.

    Args:
        H: as for `trace`.
        probes: the number of random vectors, at least 2.
        seed: of the random vectors.
        progress: show a bar; by default on a terminal only.

    Raises:
        TypeError, ValueError, Interrupted: as for `trace`.

    Example:
        >>> import torch, pylandscape as pl
        >>> pl.diagonal(torch.diag(torch.tensor([3.0, -4.0, 0.5])), probes=2).value.tolist()
        [3.0, -4.0, 0.5]
    """
    where = "diagonal"
    check_operator(H, where)
    require(
        isinstance(probes, int) and probes >= 2,
        f"{where}: probes must be an int >= 2, got {show(probes)}.",
    )
    check_vectors("rademacher", seed, where)
    drawn = Probes(H, "rademacher", seed)
    mean = torch.zeros(H.shape[0], dtype=torch.float64, device=H.device)
    squares = torch.zeros_like(mean)  # of the deviations from the mean, by Welford's recurrence
    done = 0

    def result() -> Estimate:
        stderr = (squares / max(1, done - 1) / max(1, done)).sqrt()
        return Estimate(
            mean.cpu(), stderr.cpu(), done, done == probes, "hutchinson", "rademacher", seed,
            described(H),
        )  # fmt: skip

    try:
        with progress_bar(probes, "diagonal", "product", progress) as bar:
            while done < probes:
                z = drawn.draw(min(_BLOCK, probes - done))
                images = _products(H, z)
                for values in (z * images).double():
                    done += 1
                    change = values - mean
                    mean += change / done
                    squares += change * (values - mean)
                bar.update(len(z))
    except KeyboardInterrupt:
        raise _interrupted(result() if done else None, done) from None
    return result()


class _Run(Protocol):
    """Random vectors, their products, and what they say of the quantity."""

    H: SymmetricOperator
    probes: Probes
    method: str
    unit: int  # products for each vector

    @property
    def vectors(self) -> int:
        """How many there are."""

    @property
    def room(self) -> float:
        """How many more there may be."""

    def add(self, count: int) -> None:
        """Further vectors, and their products."""

    def estimate(self) -> tuple[float, float]:
        """Value and standard error."""


class _Means:
    """The mean of a number per vector, or the root of that mean."""

    method, unit, room = "hutchinson", 1, np.inf

    def __init__(
        self, H: SymmetricOperator, probes: Probes, number: Callable[..., Tensor], root: bool
    ) -> None:
        self.H, self.probes, self.number, self.root = H, probes, number, root
        self.values = np.empty(0)

    @property
    def vectors(self) -> int:
        return len(self.values)

    def add(self, count: int) -> None:
        z = self.probes.draw(count)
        images = _products(self.H, z)
        found = [
            self.number(*pair).item() for pair in zip(z.double(), images.double(), strict=True)
        ]
        self.values = np.concatenate([self.values, found])

    def estimate(self) -> tuple[float, float]:
        value, error = _mean(self.values)
        if not self.root:
            return value, error
        return value**0.5, error / (2 * value**0.5) if value else 0.0


class _Deflated:
    """Vectors omega_i with H omega_i = Q r_i, Q orthonormal, and the matrix Q' H Q.

    For "hutch++", further vectors g_i as well, for the complement of Q.
    """

    def __init__(
        self, H: SymmetricOperator, probes: Probes, method: str, memory: float, where: str
    ) -> None:
        self.H, self.probes, self.method = H, probes, method
        self.unit = 2 if method == "xtrace" else 3
        n, row = H.shape[0], H.shape[0] * H.dtype.itemsize
        self.most = min(n, int(memory // (self.unit * row)))
        least = min(n, _LEAST)
        require(
            self.most >= least,
            f"{where}: memory must hold {self.unit * least} vectors, {self.unit * least * row} "
            f"bytes, for method {method!r}, got {show(memory)}. Give more, or use 'hutchinson'.",
        )
        self.basis = torch.empty(0, n, dtype=H.dtype, device=H.device)  # Q'
        self.tests = torch.empty_like(self.basis)  # omega_i or g_i
        self.images = torch.empty_like(self.basis)  # H g_i
        self.R = np.empty((0, 0))
        self.core = np.empty((0, 0))  # Q' H Q

    @property
    def vectors(self) -> int:
        return len(self.basis)

    @property
    def room(self) -> int:
        return self.most - self.vectors

    def add(self, count: int) -> None:
        omega = self.probes.draw(count)
        new = self._extend(_products(self.H, omega))
        inner = _inner(self.basis, _products(self.H, new))
        size = len(inner)
        core = np.zeros((size, size))
        core[: size - count, : size - count] = self.core
        core[:, size - count :] = inner
        core[size - count :] = inner.T
        self.core = core
        if self.method == "hutch++":
            omega = self.probes.draw(count)
            self.images = torch.cat([self.images, _products(self.H, omega)])
        self.tests = torch.cat([self.tests, omega])

    def _extend(self, images: Tensor) -> Tensor:
        """Takes the span of `images` into Q; returns the new vectors, rows."""
        before, count = self.vectors, len(images)
        R = np.zeros((before + count, before + count))
        R[:before, :before] = self.R
        triangle, new = np.eye(count), images
        # Twice is enough, also where an image lies in the span but for rounding.
        for _ in range(2):
            inside = _inner(self.basis, new)
            R[:before, before:] += inside @ triangle
            new = new - torch.from_numpy(inside.T).to(new) @ self.basis
            Q, r = torch.linalg.qr(new.T)
            new = Q.T.contiguous()
            triangle = r.double().cpu().numpy() @ triangle
        R[before:, before:] = triangle
        self.R, self.basis = R, torch.cat([self.basis, new])
        return new

    def estimate(self) -> tuple[float, float]:
        known = float(np.trace(self.core))
        if self.vectors == self.H.shape[0]:
            return known, 0.0  # Q spans the space
        W = _inner(self.basis, self.tests)
        if self.method == "hutch++":
            V = _inner(self.basis, self.images)
            whole = (self.tests.double() * self.images.double()).sum(1).cpu().numpy()
            rest = whole - 2 * (W * V).sum(0) + (W * (self.core @ W)).sum(0)
            value, error = _mean(rest)
            return known + value, error
        return _mean(known + self._left_out(W))

    def _left_out(self, W: Floats) -> Floats:
        """For each i, what changes in tr Q' H Q without omega_i, and its guess of the rest.

        Without omega_i the basis loses the direction s_i orthogonal to all other r_j, so that
        s_i is parallel to R^-T e_i.
        """
        n, size = self.H.shape[0], self.vectors
        left, sizes, right = np.linalg.svd(self.R)
        floor = torch.finfo(self.H.dtype).eps * (sizes[0] or 1.0)
        S = left @ (right / np.maximum(sizes, floor)[:, None])
        S /= np.linalg.norm(S, axis=0)
        inside = W - S * (S * W).sum(0)  # omega_i in the smaller basis
        rest = (W * self.R).sum(0) - 2 * (inside * self.R).sum(0)
        rest += (inside * (self.core @ inside)).sum(0)
        if self.probes.vectors == "normal":
            # the direction in the complement is uniform there: its length says nothing
            rest *= (n - size + 1) / (n - (inside**2).sum(0))
        return rest - (S * (self.core @ S)).sum(0)


def _until_small(
    run: _Run, where: str, tol: float, atol: float, max_products: int, progress: bool | None
) -> Estimate:
    """Adds vectors until the standard error is small, looking at it each time there are half more.

    Looking after every vector would stop where the spread is small by chance.
    """

    def result() -> Estimate:
        value, stderr = run.estimate()
        reached = stderr <= max(tol * abs(value), atol)
        return Estimate(
            value, stderr, run.unit * run.vectors, reached, run.method, run.probes.vectors,
            run.probes.seed, described(run.H),
        )  # fmt: skip

    most = int(min(max_products // run.unit, run.room))
    look_at = min(_LEAST, most)
    try:
        with progress_bar(None, where, "product", progress) as bar:
            while True:
                count = min(look_at - run.vectors, _BLOCK)
                run.add(count)
                bar.update(run.unit * count)
                if run.vectors < look_at:
                    continue
                found = result()
                bar.set_postfix_str(f"{found.value:.5g} +- {found.stderr:.1g}")
                if found.converged or run.vectors == most:
                    break
                look_at = min(most, look_at + -(-look_at // 2))
    except KeyboardInterrupt:
        done = run.unit * run.vectors
        raise _interrupted(result() if run.vectors > 1 else None, done) from None
    if not found.converged:
        warnings.warn(
            f"{where}: not converged: after {found.products} products the standard error is "
            f"{found.stderr:.3g}, asked for {max(tol * abs(found.value), atol):.3g}. "
            + ("Raise max_products, tol or atol." if run.room else "Raise memory, tol or atol."),
            stacklevel=users_level(),
        )
    return found


def _interrupted(result: Estimate | None, products: int) -> Interrupted:
    stop = Interrupted({}, products, "products")
    stop.result = result
    return stop


def _products(H: SymmetricOperator, rows: Tensor) -> Tensor:
    """H z for each row z, as rows."""
    images = (H @ rows.T).T
    require(
        all_finite(images),
        "H @ v must be finite, got NaN or infinity. Look for them in the matrix.",
    )
    return images


def _inner(rows: Tensor, others: Tensor) -> Floats:
    """The inner products of two sets of rows, [len(rows), len(others)]."""
    return (rows @ others.T).double().cpu().numpy()


def _mean(values: Floats) -> tuple[float, float]:
    """The mean and its standard error; infinite for a single value."""
    count = len(values)
    error = float(values.std(ddof=1)) / count**0.5 if count > 1 else np.inf
    return float(values.mean()), error


def _check(where: str, tol: float, atol: float, max_products: int) -> None:
    require(
        isinstance(tol, (int, float)) and 0 <= tol < 1,
        f"{where}: tol must be at least 0 and below 1, got {show(tol)}.",
    )
    require(
        isinstance(atol, (int, float)) and atol >= 0 and tol + atol > 0,
        f"{where}: atol must be at least 0, above 0 where tol is 0, got {show(atol)}.",
    )
    least = 3 * _LEAST
    require(
        isinstance(max_products, int) and max_products >= least,
        f"{where}: max_products must be an int >= {least}, got {show(max_products)}.",
    )
