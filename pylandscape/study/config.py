"""Every number that the study depends on, in one place."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace

# Solutions that differ in how they were trained: three batch sizes, without and with weight decay.
SIZES = ("small", "medium", "large")
SOLUTIONS = tuple(f"{size} batch{decay}" for decay in ("", ", decay") for size in SIZES)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained."""

    seed: int  # of the initialisation and of the order of the digits
    batch_size: int
    epochs: int  # at most
    learning_rate: float
    momentum: float
    weight_decay: float = 0.0
    until_loss: float = 0.0  # training ends with the epoch that leaves the training loss below this
    snapshots_per_epoch: int | None = None  # None: only at both ends


@dataclass(frozen=True)
class StudyConfig:
    """Settings of a study. Two studies with equal settings and equal digits give equal numbers.

    Training of runs a and b is plain SGD with momentum and a constant learning rate, no weight
    decay: the paper's method and nothing that would change the geometry on purpose. Six further
    solutions differ in batch size and weight decay.
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
    spectrum_samples: int = 500  # random training digits behind spectra of solution a
    spectrum_pairs: int = 3  # eigenvalues at each end
    spectrum_probes: int = 3
    spectrum_steps: int = 30
    layer_steps: int = 10  # of the spectra of single layers, from two probes
    curvature_points: int = 7  # snapshots of run a at which lambda_max is measured

    # Solutions are compared at one training loss, as sharpness depends on how far training went: a
    # cross-entropy of 0.01, as in Jiang et al. 2020. The large batch is a tenth of the digits
    # (Keskar et al. 2017).
    solution_batches: tuple[int, int, int] = (32, 128, 600)
    solution_decay: float = 1e-3
    solution_loss: float = 0.01
    solution_epochs: int = 60
    solution_learning_rate: float = 0.02
    sharpness: tuple[str, ...] = (  # measures of pylandscape.sharpness.table
        "ball",
        "keskar",
        "adaptive_l2",
        "adaptive_linf",
        "average",
        "sam",
    )
    flatness_samples: int = 500  # random training digits behind each measure of flatness
    trace_error: float = 0.15  # relative standard error of tr H
    trace_products: int = 100  # at most, to reach that
    curve_steps: int = 800
    curve_learning_rate: float = 0.02
    rescaling: float = 5.0  # of the first layer, undone in the second

    def recipe(self, run: str) -> Recipe:
        """How a run is trained: `a`, `b`, or one of `SOLUTIONS`."""
        if run in self.seeds:
            return Recipe(
                self.seeds[run],
                self.batch_size,
                self.epochs,
                self.learning_rate,
                self.momentum,
                snapshots_per_epoch=self.snapshots_per_epoch,
            )
        number = SOLUTIONS.index(run)
        return Recipe(
            self.seeds["a"],
            self.solution_batches[number % len(SIZES)],
            self.solution_epochs,
            self.solution_learning_rate,
            self.momentum,
            self.solution_decay if number >= len(SIZES) else 0.0,
            self.solution_loss,
        )

    @property
    def seeds(self) -> dict[str, int]:
        """The seed of each run: distinct for every study seed, so no two studies share a run."""
        return {"a": 2 * self.seed, "b": 2 * self.seed + 1}

    def key(self, fingerprint: str, version: str) -> str:
        """Identifies results that may be reused: same settings, same digits, same package."""
        text = json.dumps([asdict(self), fingerprint, version], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def default_config(seed: int = 0) -> StudyConfig:
    """The study on the embedded rows: about four minutes on two cores."""
    return StudyConfig(seed=seed)


def full_config(seed: int = 0) -> StudyConfig:
    """The study on all 60,000 and 10,000 digits; losses are means over all of them."""
    return replace(
        StudyConfig(seed=seed),
        full=True,
        epochs=10,
        plane_samples=None,
        slice_directions=1,
        solution_batches=(32, 256, 6_000),
        flatness_samples=10_000,
    )


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
        solution_batches=(25, 50, 250),
        solution_epochs=2,
        flatness_samples=100,
        trace_error=0.5,
        curve_steps=20,
    )
