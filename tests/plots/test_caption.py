"""Captions: how a result was made, in words."""

import xarray as xr
from drawn import LONG, bowl, caption_of, find, plane_of, words

from pylandscape import plots
from pylandscape.plots._caption import axis_label


def test_caption_says_how_the_result_was_made():
    text = plots.caption(plane_of(bowl))
    for part in ("SmallCNN", "P = 61,706", "N = 2,000 of 60,000", "cross-entropy", "MNIST",
                 "filter-normalised", "biasbn ignored", "seed 7", "BatchNorm frozen",
                 "engine torch", "float32"):  # fmt: skip
        assert part in text
    assert text.count(". ") == 1
    assert text in words(plots.contour(plane_of(bowl)))


def test_caption_leaves_out_what_is_not_known():
    assert plots.caption(xr.Dataset()) == ""
    assert plots.caption(xr.Dataset(attrs={"seed": 0})) == "Seed 0."
    fingerprint = plots.caption(xr.Dataset(attrs={"data": "0123456789abcdef"}))
    assert "01234567" in fingerprint
    assert "89abcdef" not in fingerprint


def test_caption_can_be_left_out():
    assert not find(plots.contour(plane_of(bowl), caption=False), "caption")


def test_a_long_caption_keeps_all_its_characters():
    surface = plane_of(bowl, **LONG)
    drawn = "".join(caption_of(plots.contour(surface)).split())
    assert drawn == "".join(plots.caption(surface).split())


def test_numbers_in_names_of_axes_have_a_minus():
    attrs = {"axis_labels": ["eigenvector of -0.5", "run-1 to run-2", "-.25 -x"]}
    assert [axis_label(attrs, i, "α") for i in range(3)] == [
        "α: eigenvector of \u22120.5", "α: run-1 to run-2", "α: \u2212.25 -x",
    ]  # fmt: skip
