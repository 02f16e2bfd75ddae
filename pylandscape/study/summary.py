"""What a study found, as plain data: the content of `summary.json`, from which the page is made."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
import xarray as xr

from pylandscape._version import __version__
from pylandscape.study.analyses import Study
from pylandscape.study.claims import Judgement, judge_all
from pylandscape.study.config import SOLUTIONS
from pylandscape.study.figures import Figure, Measurements
from pylandscape.study.stages import STAGES


def summarise(
    study: Study,
    results: Mapping[str, xr.Dataset],
    measurements: Measurements,
    figures: Sequence[Figure],
) -> dict[str, Any]:
    """Settings, measurements, verdicts, figures and stages; only JSON types."""
    missing = [stage.title for stage in STAGES if stage.name not in results]
    done = {stage.name: results[stage.name] for stage in STAGES if stage.name in results}
    return {
        "complete": not missing,
        "missing": missing,
        "data": {"source": study.digits.describe(), "fingerprint": study.digits.fingerprint},
        "solutions": list(SOLUTIONS),
        "settings": asdict(study.config) | {"seeds": study.config.seeds},
        "samples": {
            "train": study.sizes[0],
            "test": study.sizes[1],
            "plane": study.plane_samples,
        },
        "engines": {n: r.attrs["engine"] for n, r in done.items() if "engine" in r.attrs},
        "measurements": measurements,
        "claims": [_claim(judgement) for judgement in judge_all(measurements)],
        "figures": [asdict(figure) for figure in figures],
        "seconds": {name: result.attrs["seconds"] for name, result in done.items()},
        "environment": {
            "pylandscape": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "processors": os.cpu_count(),
        },
    }


def _claim(judgement: Judgement) -> dict[str, str]:
    claim = judgement.claim
    return {
        "name": claim.name,
        "statement": claim.statement,
        "measured": judgement.measured,
        "verdict": judgement.verdict.value,
        "criterion": claim.criterion,
        "rationale": claim.rationale,
    }
