"""The study of the paper: two networks on MNIST, every analysis, and a verdict on each claim.

`run_study` does it all; `config` holds the numbers, `data`, `model` and `training` what is looked
at, `analyses` the stages, `store` their results on disk, `measures` the numbers read off them,
`claims` the criteria, `figures` the pictures. `pylandscape.report` writes the page.
"""

from pylandscape.study.config import StudyConfig, default_config, full_config, quick_config
from pylandscape.study.data import load_mnist
from pylandscape.study.run import run_study
from pylandscape.study.store import StudyError

__all__ = [
    "StudyConfig",
    "StudyError",
    "default_config",
    "full_config",
    "load_mnist",
    "quick_config",
    "run_study",
]
