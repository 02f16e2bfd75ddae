"""The path of training as a film."""

from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from drawn import bowl, path_of, plane_of
from PIL import Image

from pylandscape import plots
from pylandscape.plots import _animation
from pylandscape.plots._trajectory import draw_scene, finish_scene


def test_a_film_follows_the_path_to_its_end(tmp_path):
    path = path_of(12)
    file = plots.animate(
        plane_of(bowl), path, tmp_path / "new" / "run.gif", seconds=1, rate=6, caption=False
    )
    assert [f.name for f in file.parent.iterdir()] == ["run.gif"]
    with Image.open(file) as film:
        frames = []
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.asarray(film.convert("L"), dtype=float))
            assert film.info["duration"] >= 150
    assert len(frames) == 6  # those that stay are one
    for before, after in pairwise(frames):
        assert np.abs(after - before).max() > 50


def test_a_film_shows_the_snapshots_up_to_a_time(monkeypatch, tmp_path):
    path = path_of(5)
    scene = draw_scene(plane_of(bowl), path, None, 10, "auto", "here")
    runner = _animation._Runner(scene.axes, scene.path)
    finish_scene(scene, plane_of(bowl), path, [runner.end], False)
    runner.show(2.5)
    points = np.array([segment[1] for segment in runner.line.get_segments()])
    alpha, beta = path.alpha.values, path.beta.values
    assert points[:, 0] == pytest.approx([alpha[1], alpha[2], (alpha[2] + alpha[3]) / 2])
    assert points[:, 1] == pytest.approx([beta[1], beta[2], (beta[2] + beta[3]) / 2])
    assert runner.end.get_xydata()[0] == pytest.approx(points[-1])
    assert scene.axes[0].get_legend().get_texts()[0].get_text() == "step 20 of 40"
    assert [line.get_xdata()[0] for line in runner.lines] == [25, 25]


def test_a_film_for_video_players(tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    monkeypatch.setitem(matplotlib.rcParams, "animation.ffmpeg_path", ffmpeg.get_ffmpeg_exe())
    file = plots.animate(
        plane_of(bowl), path_of(6), tmp_path / "run.mp4", seconds=1, rate=6, caption=False
    )
    assert [f.name for f in tmp_path.iterdir()] == ["run.mp4"]
    frames = ffmpeg.read_frames(str(file), pix_fmt="gray", bits_per_pixel=8)
    film = next(frames)
    assert (film["codec"], film["fps"]) == ("h264", 6)
    images = [np.frombuffer(frame, dtype=np.uint8).astype(float) for frame in frames]
    assert len(images) == 6 + 6  # the last one stays for a second
    for before, after in pairwise(images[:6]):
        assert np.abs(after - before).max() > 50


def test_a_film_without_ffmpeg_is_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(_animation.FFMpegWriter, "isAvailable", lambda: False)
    with pytest.raises(ValueError, match=r"end in .gif where ffmpeg is not installed"):
        plots.animate(plane_of(bowl), path_of(), tmp_path / "run.mp4")
    assert not list(tmp_path.iterdir())
