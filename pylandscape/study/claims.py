"""The paper's claims, each with the criterion that judges it.

The criteria were fixed before the study was first run and are printed beside the verdicts. A claim
with two parts holds when both do, is mixed when one does, and does not hold when neither does; a
part holds only when it holds for every run that it was measured on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

# Losses are cross-entropies in nats. A rise of 0.1 nat takes 10% off the probability that the
# network gives to the right class, geometric mean over the samples: small but visible.
SMALL_RISE = 0.1
BALL_RADIUS = 0.1  # the default of the paper's S_eps

LOSS_FALL = 0.1
GRADIENT_FALL = 0.5
LAMBDA_RANGE = (20.0, 80.0)
MONOTONE_SHARE = 0.95
CONVEX_SHARE = 0.90
WIDE_RADIUS = 0.25
PLANE_VARIANCE = 0.90
PLANE_DESCENT = -0.80
ERROR_BARRIER = 0.02
CURVE_BARRIER = 0.05
ERROR_GAP = 0.005
RANK = 0.82

Measurements = Mapping[str, Sequence[float]]


class Verdict(StrEnum):
    """What the measurement says about a claim."""

    HOLDS = "holds"
    MIXED = "mixed"
    FAILS = "does not hold"
    MISSING = "not measured"


@dataclass(frozen=True)
class Claim:
    """A claim, and how it is judged.

    `needs` names the measurements that `judge` reads; each is one number per run or per data
    set. `judge` returns the verdict and the measured figures in words.
    """

    name: str
    statement: str
    criterion: str
    rationale: str
    needs: tuple[str, ...]
    judge: Callable[[Measurements], tuple[Verdict, str]]


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict and the figures behind it."""

    claim: Claim
    verdict: Verdict
    measured: str


def judge_all(measurements: Measurements) -> list[Judgement]:
    """Every claim judged; one whose measurements are not all there is `Verdict.MISSING`.

    Example:
        >>> found = judge_all({"lambda_max": [30.0, 90.0], "lambda_max_residual": [0.1, 0.1]})
        >>> [j.verdict.value for j in found if j.claim.name == "lambda_max"]
        ['mixed']
    """
    return [_judge(claim, measurements) for claim in CLAIMS]


def _judge(claim: Claim, measurements: Measurements) -> Judgement:
    missing = [name for name in claim.needs if not measurements.get(name)]
    if missing:
        return Judgement(claim, Verdict.MISSING, "missing: " + ", ".join(missing))
    return Judgement(claim, *claim.judge(measurements))


def _of_two(first: bool, second: bool) -> Verdict:
    if first and second:
        return Verdict.HOLDS
    return Verdict.MIXED if first or second else Verdict.FAILS


# all() and not max(): a comparison with NaN is False, so a part with NaN in it does not hold.
def _at_most(values: Sequence[float], limit: float) -> bool:
    return all(value <= limit for value in values)


def _at_least(values: Sequence[float], limit: float) -> bool:
    return all(value >= limit for value in values)


def _listed(values: Sequence[float], form: str = ".3g") -> str:
    return " and ".join(format(value, form) for value in values)


def _descent(m: Measurements) -> tuple[Verdict, str]:
    loss, gradient = m["loss_fall"], m["gradient_fall"]
    verdict = _of_two(_at_most(loss, LOSS_FALL), _at_most(gradient, GRADIENT_FALL))
    return verdict, (
        f"mini-batch loss ends at {_listed(loss, '.2%')} of its early value, "
        f"gradient norm at {_listed(gradient, '.2%')}"
    )


def _lambda_max(m: Measurements) -> tuple[Verdict, str]:
    low, high = LAMBDA_RANGE
    pairs = list(zip(m["lambda_max"], m["lambda_max_residual"], strict=True))
    inside = [low <= value - r and value + r <= high for value, r in pairs]
    touching = [value + r >= low and value - r <= high for value, r in pairs]
    otherwise = Verdict.MIXED if any(touching) else Verdict.FAILS
    measured = "lambda_max = " + " and ".join(
        f"{value:.4g} (residual {r:.1g})" for value, r in pairs
    )
    if "path_lambda_max" in m:
        measured += f"; at most {max(m['path_lambda_max']):.3g} at snapshots of run a"
    return Verdict.HOLDS if all(inside) else otherwise, measured


def _smooth(m: Measurements) -> tuple[Verdict, str]:
    monotone, convex = m["monotone_share"], m["convex_share"]
    verdict = _of_two(_at_least(monotone, MONOTONE_SHARE), _at_least(convex, CONVEX_SHARE))
    return verdict, (
        f"loss rises all the way along {_listed(monotone, '.0%')} of the rays; "
        f"{_listed(convex, '.0%')} of the second differences near the centre are not negative"
    )


def _wide(m: Measurements) -> tuple[Verdict, str]:
    radius, rise = m["valley_radius"], m["ball_rise"]
    verdict = _of_two(_at_least(radius, WIDE_RADIUS), _at_most(rise, SMALL_RISE))
    return verdict, (
        f"loss rises by {SMALL_RISE} at {_listed(radius)} of the filter norms (median ray); "
        f"S_eps = {_listed(rise)} nat"
    )


def _plane(m: Measurements) -> tuple[Verdict, str]:
    variance, descent = m["plane_variance"], m["plane_descent"]
    verdict = _of_two(_at_least(variance, PLANE_VARIANCE), _at_most(descent, PLANE_DESCENT))
    return verdict, (
        f"two components explain {_listed(variance, '.1%')} of the variance; rank correlation of "
        f"in-plane loss with time {_listed(descent, '.2f')}"
    )


def _connected(m: Measurements) -> tuple[Verdict, str]:
    loss, error = m["loss_barrier"], m["error_barrier"]
    verdict = _of_two(_at_most(loss, SMALL_RISE), _at_most(error, ERROR_BARRIER))
    return verdict, (
        f"barrier of {_listed(loss)} nat in the loss and of {_listed(error, '.1%')} in the error "
        "(training and test data)"
    )


def _curved(m: Measurements) -> tuple[Verdict, str]:
    train, test, drop, test_drop, _ = m["curve_path"]
    loss, error = (train, test), (drop, test_drop)
    verdict = _of_two(_at_most(loss, CURVE_BARRIER), _at_most(error, ERROR_BARRIER))
    return verdict, (
        f"barrier of {_listed(loss)} nat in the loss and of {_listed(error, '.1%')} in the error "
        "(training and test data)"
    )


def _flat(m: Measurements) -> tuple[Verdict, str]:
    sharpness, accuracy = m["solution_lambda_max"], m["solution_test_accuracy"]
    # small, medium and large batch without weight decay, then with it
    pairs = [(0, 2), (3, 5)]
    sharper = [sharpness[large] > sharpness[small] for small, large in pairs]
    gaps = [accuracy[small] - accuracy[large] for small, large in pairs]
    rank = m["rank_lambda_max"][0]
    verdict = _of_two(all(sharper) and _at_least(gaps, ERROR_GAP), rank >= RANK)
    ratios = [sharpness[large] / sharpness[small] for small, large in pairs]
    return verdict, (
        f"large batch against small, without and with weight decay: lambda_max times "
        f"{_listed(ratios)}, test error {_listed([100 * gap for gap in gaps], '+.2f')} points; "
        f"rank correlation of lambda_max with the test error {rank:.2f}"
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="descent",
        statement="During training the loss falls and the norm of the gradient decays.",
        criterion=(
            f"Mean over the last tenth of the steps against the first tenth: loss at most "
            f"{LOSS_FALL:.0%}, gradient norm at most {GRADIENT_FALL:.0%}."
        ),
        rationale=(
            "Means over many steps take out mini-batch noise; a fall by ten and by two are beyond "
            "what is left of it."
        ),
        needs=("loss_fall", "gradient_fall"),
        judge=_descent,
    ),
    Claim(
        name="lambda_max",
        statement="The largest Hessian eigenvalue at the solution is typically 20 to 80.",
        criterion=(
            f"lambda_max with its residual as error bar lies within {LAMBDA_RANGE[0]:.0f} to "
            f"{LAMBDA_RANGE[1]:.0f} in both runs; mixed where one run does or a bar crosses an end."
        ),
        rationale="The range is the paper's; an eigenvalue lies within a residual of the estimate.",
        needs=("lambda_max", "lambda_max_residual"),
        judge=_lambda_max,
    ),
    Claim(
        name="smooth",
        statement="Filter-normalised slices through the solution are smooth and look convex.",
        criterion=(
            f"(1) On at least {MONOTONE_SHARE:.0%} of 16 rays of the plane from the centre to its "
            "edge no step falls by more than 1% of the ray's rise. (2) At least "
            f"{CONVEX_SHARE:.0%} of the second differences along both axes are not negative, "
            "where both coordinates are at most half the extent."
        ),
        rationale=(
            "A rough surface has dips along rays. Convexity is asked for only where the noise is "
            "at most half as large as the weights: far out the loss of any ReLU net grows about "
            "linearly."
        ),
        needs=("monotone_share", "convex_share"),
        judge=_smooth,
    ),
    Claim(
        name="wide",
        statement="SGD ends in a wide, flat valley.",
        criterion=(
            f"(1) Along the median of 16 rays the loss rises by {SMALL_RISE} nat no nearer than at "
            f"{WIDE_RADIUS} of the filter norms. (2) S_eps, the worst rise within the ball of "
            f"radius eps = {BALL_RADIUS}, is at most {SMALL_RISE} nat in both runs."
        ),
        rationale=(
            "Random slices show an average over directions and miss the few steep ones, so the "
            "worst direction is asked as well. A rise of 0.1 nat takes 10% off the probability "
            "of the right class."
        ),
        needs=("valley_radius", "ball_rise"),
        judge=_wide,
    ),
    Claim(
        name="plane",
        statement="The path of SGD lies in a low-dimensional plane and descends within it.",
        criterion=(
            f"(1) Two principal components explain at least {PLANE_VARIANCE:.0%} of the variance "
            "of the snapshots in both runs. (2) The loss at the snapshots projected onto the plane "
            f"has a rank correlation with time of at most {PLANE_DESCENT}."
        ),
        rationale=(
            "A random walk in many dimensions already gives 76% (Antognini and Sohl-Dickstein "
            "2018: the k-th component takes 6 / (pi k)^2), so a plane that means something must "
            "explain clearly more."
        ),
        needs=("plane_variance", "plane_descent"),
        judge=_plane,
    ),
    Claim(
        name="connected",
        statement="Independently trained solutions are connected by a valley of low loss.",
        criterion=(
            f"On the straight line between the two solutions (1) the barrier in the loss is at "
            f"most {SMALL_RISE} nat and (2) the barrier in the error at most {ERROR_BARRIER:.0%}, "
            "on training and on test data."
        ),
        rationale=(
            "Two per cent is the noise level of Frankle et al. 2020 for linear mode connectivity. "
            "A barrier on the straight line does not rule out a curved path."
        ),
        needs=("loss_barrier", "error_barrier"),
        judge=_connected,
    ),
    Claim(
        name="curved",
        statement="A curved path of low loss connects independently trained solutions.",
        criterion=(
            f"On a trained Bezier curve between the two solutions (1) the barrier in the loss is "
            f"at most {CURVE_BARRIER} nat and (2) the barrier in the error at most "
            f"{ERROR_BARRIER:.0%}, on training and on test data."
        ),
        rationale=(
            "Garipov et al. 2018 find such curves where straight lines have barriers. The limit is "
            "half of the rise that counts as small on a straight line, as this path was trained "
            "for low loss."
        ),
        needs=("curve_path",),
        judge=_curved,
    ),
    Claim(
        name="flat",
        statement="Flat minima generalise better than sharp ones.",
        criterion=(
            "Six solutions at one training loss. (1) Without and with weight decay, the one of the "
            "large batch has a larger lambda_max than that of the small batch and a test error "
            f"larger by {ERROR_GAP:.1%} or more. (2) The rank correlation of lambda_max with the "
            f"test error over all six is at least {RANK}."
        ),
        rationale=(
            "Keskar et al. 2017 compare batch sizes. On 2,000 test digits half a per cent is "
            "little more than the standard error of one accuracy, so that less would say nothing. "
            "Independent ranks of six exceed 0.82 in 3 % of cases. That sharpness is no property "
            "of the function alone is shown below."
        ),
        needs=("solution_lambda_max", "solution_test_accuracy", "rank_lambda_max"),
        judge=_flat,
    ),
)
