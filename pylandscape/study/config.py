"""Every number that the study depends on, in one place."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study. Two studies with equal settings and equal digits give equal numbers.

    Training is plain SGD with momentum and a constant learning rate, no weight decay: the paper's
    method and nothing that would change the geometry on purpose.
    """

    seed: int = 0
    full: bool = False
    train_count: int | None = None  # only the first digits; None takes all
    test_count: int | None = None

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.9
    snapshots_per_epoch: int = 4

    # Samples behind each point of a plane and behind lambda_max along the path. What is measured at
    # the solutions and on lines uses all of them.
    plane_samples: int | None = 2_000
    plane_resolution: int = 31
    plane_extent: float = 1.0  # 1 = noise as large as the weights, filter by filter
    slice_directions: int = 3
    slice_resolution: int = 51
    interpolation_resolution: int = 41
    # A Lanczos run starts almost inside the null space of H, where a small residual comes early: at
    # 1e-3 it can stop before a negative eigenvalue has shown itself.
    eigenvalue_tolerance: float = 3e-4
    spectrum_samples: int = 1_000  # random training digits behind spectra of solution a
    spectrum_pairs: int = 3  # eigenvalues at each end
    spectrum_probes: int = 3
    spectrum_steps: int = 30
    layer_steps: int = 10  # of the spectra of single layers, from two probes
    curvature_points: int = 7  # snapshots of run a at which lambda_max is measured

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each run: distinct for every study seed, so no two studies share a run."""
        return {"a": 2 * self.seed, "b": 2 * self.seed + 1}

    def key(self, fingerprint: str, version: str) -> str:
        """Identifies results that may be reused: same settings, same digits, same package."""
        text = json.dumps([asdict(self), fingerprint, version], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_config(seed: int = 0) -> StudyConfig:
    """The study on the embedded rows: about five minutes on two cores."""
    return StudyConfig(seed=seed)


def full_config(seed: int = 0) -> StudyConfig:
    """The study on all 60,000 and 10,000 digits; every loss is a mean over all of them."""
    return StudyConfig(seed=seed, full=True, epochs=10, plane_samples=None, slice_directions=1)


def quick_config(seed: int = 0) -> StudyConfig:
    """A look at what the study writes, in well under a minute; its numbers mean little."""
    return replace(
        StudyConfig(seed=seed),
        train_count=500,
        test_count=200,
        epochs=2,
        batch_size=50,
        plane_samples=200,
        plane_resolution=5,
        slice_directions=1,
        slice_resolution=9,
        interpolation_resolution=9,
        eigenvalue_tolerance=1e-2,
        spectrum_samples=100,
        spectrum_pairs=1,
        spectrum_probes=2,
        spectrum_steps=6,
        layer_steps=3,
        curvature_points=2,
    )
