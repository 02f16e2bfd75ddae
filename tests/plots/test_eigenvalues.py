"""Eigenvalues with their residuals."""

import numpy as np
import pytest
from drawn import pairs_of

from pylandscape import plots


def test_eigenvalues_fall_and_carry_their_residuals():
    ax = plots.eigenvalues(pairs_of()).axes[0]
    bars = [container for container in ax.containers if container.has_yerr]
    heads = np.concatenate([bar.lines[0].get_xydata() for bar in bars])
    assert heads.tolist() == [[1, 42.0], [2, 7.0], [3, -0.5]]
    segments = np.concatenate([bar.lines[2][0].get_segments() for bar in bars])
    assert np.ptp(segments[:, :, 1], axis=1) == pytest.approx([0.4, 0.6, 0.2])
    labels = plots.eigenvalues(pairs_of(converged=False)).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in labels] == ["not converged"]
