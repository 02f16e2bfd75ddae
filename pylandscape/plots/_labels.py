"""Numbers on contour lines, placed so that they can be read."""

import re
from collections.abc import Callable

import numpy as np
from matplotlib.contour import QuadContourSet
from scipy.spatial import KDTree

from pylandscape.plots._values import Floats, number_texts

SIZE = 5.5  # points
SPACING = 2.0  # pixels between the points that stand for a line when distances are measured
PIECES = 8  # the longest pieces of a line that are tried
PLACES = 48  # places tried on each of them


def label_lines(lines: QuadContourSet, avoid: Floats | None = None) -> None:
    """Writes the level on each contour line that has room for it, and on the others nothing.

    matplotlib's own placement looks at one line at a time, so that numbers on dense contours run
    into one another. Here a number goes where its line is nearly straight over the width of the
    text and far from the other lines, from the border, from the centre, from other numbers and from
    the points to `avoid` [K, 2].
    """
    ax = lines.axes
    assert ax is not None
    height = SIZE * ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    values = np.asarray(lines.levels, dtype=np.float64)
    texts = dict(zip(values.tolist(), number_texts(values), strict=True))
    pieces = [_pieces(ax.transData.transform, segments) for segments in lines.allsegs]
    taken = [ax.transData.transform([(0.0, 0.0)])]
    if avoid is not None:
        taken.append(ax.transData.transform(avoid))
    box = np.asarray(ax.get_window_extent().extents)
    levels, positions = [], []
    for k, level in enumerate(texts):
        width = (0.65 * _length(texts[level]) + 0.5) * height
        others = [piece for m, group in enumerate(pieces) if m != k for piece in group]
        place = _best_place(pieces[k], width, height, others, taken, box)
        if place is not None:
            taken.append(place)
            levels.append(level)
            x, y = ax.transData.inverted().transform(place[len(place) // 2])
            positions.append((float(x), float(y)))
    if levels:
        lines.clabel(levels, fontsize=SIZE, fmt=texts, inline_spacing=1, manual=positions)


def _length(text: str) -> int:
    """The number of characters that a text takes, about, when its mathematics is set."""
    return len(re.sub(r"[${}^\\]|cdot", "", text))


def _pieces(to_pixels: Callable[[Floats], Floats], segments: list[Floats]) -> list[Floats]:
    """The pieces of a contour line as points at even distances in pixels, longest first."""
    pieces = []
    for segment in segments:
        points = to_pixels(segment)
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        if along[-1] > 0:
            even = np.linspace(0, along[-1], max(2, round(along[-1] / SPACING) + 1))
            pieces.append(np.stack([np.interp(even, along, axis) for axis in points.T], axis=1))
    return sorted(pieces, key=len, reverse=True)


def _best_place(
    pieces: list[Floats],
    width: float,
    height: float,
    others: list[Floats],
    taken: list[Floats],
    box: Floats,
) -> Floats | None:
    """The stretch of a line, as points, that a number of `width` x `height` pixels best lies on."""
    lines = KDTree(np.concatenate(others)) if others else None
    numbers = KDTree(np.concatenate(taken))
    span = max(2, round(width / SPACING))
    best, best_score = None, 0.0
    for piece in pieces[:PIECES]:
        if len(piece) < 2 * span:
            break
        closed = bool(np.allclose(piece[0], piece[-1]))
        circuit = np.concatenate([piece, piece[1:span]]) if closed else piece
        for start in np.unique(np.linspace(0, len(circuit) - span, PLACES).astype(int)):
            stretch = circuit[start : start + span]
            inside = (stretch > box[:2] + height).all() and (stretch < box[2:] - height).all()
            bend = _bend(stretch)
            away = float(numbers.query(stretch)[0].min())
            if not inside or bend > 0.3 * height or away < 2 * height:
                continue
            free = float(lines.query(stretch)[0].min()) if lines else 4 * height
            score = min(free, 3 * height) + 0.5 * min(away, 6 * height) - 2 * bend
            if free > 0.65 * height and score > best_score:
                best, best_score = stretch, score
    return best


def _bend(stretch: Floats) -> float:
    """The largest distance of the points from the chord between the first and the last."""
    chord = stretch[-1] - stretch[0]
    length = float(np.hypot(*chord))
    offset = stretch - stretch[0]
    if length == 0:
        return float("inf")
    return float(np.abs(chord[0] * offset[:, 1] - chord[1] * offset[:, 0]).max() / length)
