"""The path that training took: recording it, reading it, and the plane it lies in."""

from pylandscape.trajectory.callbacks import huggingface_callback, lightning_callback
from pylandscape.trajectory.path import Trajectory
from pylandscape.trajectory.plane import TrajectoryPlane, trajectory_plane
from pylandscape.trajectory.principal import principal_directions, project
from pylandscape.trajectory.recorder import Recorder

__all__ = [
    "Recorder",
    "Trajectory",
    "TrajectoryPlane",
    "huggingface_callback",
    "lightning_callback",
    "principal_directions",
    "project",
    "trajectory_plane",
]
