"""The verdict logic on made-up measurements: every verdict of every claim can be reached."""

import math

import pytest

from pylandscape.study.claims import CLAIMS, Verdict, judge_all

HOLDS, MIXED, FAILS = Verdict.HOLDS, Verdict.MIXED, Verdict.FAILS


def six(sharpness, accuracy, rank):
    return {
        "solution_lambda_max": sharpness,
        "solution_test_accuracy": accuracy,
        "rank_lambda_max": [rank, rank],
    }


CASES = [
    ("descent", {"loss_fall": [0.05, 0.1], "gradient_fall": [0.3, 0.5]}, HOLDS),
    ("descent", {"loss_fall": [0.05, 0.05], "gradient_fall": [0.3, 0.6]}, MIXED),
    ("descent", {"loss_fall": [0.05, 0.2], "gradient_fall": [0.3, 0.3]}, MIXED),
    ("descent", {"loss_fall": [0.2, 0.05], "gradient_fall": [0.6, 0.3]}, FAILS),
    ("lambda_max", {"lambda_max": [20.5, 79], "lambda_max_residual": [0.5, 1]}, HOLDS),
    ("lambda_max", {"lambda_max": [20.5, 79], "lambda_max_residual": [0.6, 1]}, MIXED),
    ("lambda_max", {"lambda_max": [5, 30], "lambda_max_residual": [0.1, 0.1]}, MIXED),
    ("lambda_max", {"lambda_max": [19, 19], "lambda_max_residual": [2, 2]}, MIXED),
    ("lambda_max", {"lambda_max": [5, 300], "lambda_max_residual": [0.1, 1]}, FAILS),
    ("smooth", {"monotone_share": [0.95], "convex_share": [0.9]}, HOLDS),
    ("smooth", {"monotone_share": [1.0], "convex_share": [0.5]}, MIXED),
    ("smooth", {"monotone_share": [0.5], "convex_share": [1.0]}, MIXED),
    ("smooth", {"monotone_share": [0.9], "convex_share": [0.8]}, FAILS),
    ("wide", {"valley_radius": [0.25], "ball_rise": [0.1, 0.05]}, HOLDS),
    ("wide", {"valley_radius": [0.3], "ball_rise": [0.2, 0.05]}, MIXED),
    ("wide", {"valley_radius": [0.1], "ball_rise": [0.05, 0.05]}, MIXED),
    ("wide", {"valley_radius": [0.1], "ball_rise": [0.2, 0.2]}, FAILS),
    ("plane", {"plane_variance": [0.9, 0.95], "plane_descent": [-0.8, -0.9]}, HOLDS),
    ("plane", {"plane_variance": [0.8, 0.95], "plane_descent": [-0.9, -0.9]}, MIXED),
    ("plane", {"plane_variance": [0.95, 0.95], "plane_descent": [-0.9, 0.1]}, MIXED),
    ("plane", {"plane_variance": [0.7, 0.95], "plane_descent": [-0.9, 0.1]}, FAILS),
    ("connected", {"loss_barrier": [0.0, 0.1], "error_barrier": [0.0, 0.02]}, HOLDS),
    ("connected", {"loss_barrier": [0.5, 0.5], "error_barrier": [0.0, 0.02]}, MIXED),
    ("connected", {"loss_barrier": [0.05, 0.05], "error_barrier": [0.0, 0.1]}, MIXED),
    ("connected", {"loss_barrier": [0.05, 0.5], "error_barrier": [0.1, 0.0]}, FAILS),
    ("curved", {"curve_path": [0.0, 0.05, 0.0, 0.02, 9.0]}, HOLDS),
    ("curved", {"curve_path": [0.0, 0.06, 0.0, 0.02, 9.0]}, MIXED),
    ("curved", {"curve_path": [0.0, 0.05, 0.03, 0.0, 9.0]}, MIXED),
    ("curved", {"curve_path": [0.06, 0.0, 0.03, 0.0, 9.0]}, FAILS),
    ("flat", six([1, 2, 3, 1, 2, 3], [0.98, 0.97, 0.97, 0.98, 0.97, 0.97], 0.9), HOLDS),
    ("flat", six([1, 2, 3, 1, 2, 3], [0.98, 0.97, 0.97, 0.98, 0.97, 0.97], 0.7), MIXED),
    ("flat", six([1, 2, 3, 1, 2, 3], [0.98, 0.97, 0.97, 0.98, 0.97, 0.979], 0.9), MIXED),
    ("flat", six([1, 2, 3, 3, 2, 1], [0.98, 0.97, 0.97, 0.98, 0.97, 0.97], 0.9), MIXED),
    ("flat", six([3, 2, 1, 1, 2, 3], [0.98, 0.97, 0.97, 0.98, 0.97, 0.97], 0.2), FAILS),
    ("flat", six([3, 2, 1, 1, 2, 3], [0.98, 0.97, 0.97, 0.98, 0.97, 0.97], -0.9), FAILS),
]


@pytest.mark.parametrize(("name", "measurements", "expected"), CASES)
def test_verdict(name, measurements, expected):
    judgement = next(j for j in judge_all(measurements) if j.claim.name == name)
    assert judgement.verdict == expected


def test_every_verdict_of_every_claim_is_in_the_table():
    reached = {(name, verdict) for name, _, verdict in CASES}
    assert reached == {(claim.name, v) for claim in CLAIMS for v in (HOLDS, MIXED, FAILS)}


@pytest.mark.parametrize(("name", "measurements", "expected"), CASES)
def test_a_value_that_is_not_a_number_supports_no_claim(name, measurements, expected):
    broken = {key: [math.nan] * len(values) for key, values in measurements.items()}
    judgement = next(j for j in judge_all(broken) if j.claim.name == name)
    assert judgement.verdict in (FAILS, Verdict.MISSING)


def test_missing_measurements_are_named():
    judgement = next(j for j in judge_all({"lambda_max": [30.0]}) if j.claim.name == "lambda_max")
    assert judgement.verdict == Verdict.MISSING
    assert "lambda_max_residual" in judgement.measured
