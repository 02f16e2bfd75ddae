"""The command line: `pylandscape study`, `pylandscape doctor` and `pylandscape gpu-check`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from pylandscape import doctor as build
from pylandscape import gpu_check as gpu
from pylandscape._version import __version__
from pylandscape.study import StudyError, default_config, full_config, quick_config, run_study
from pylandscape.study.run import Existing
from pylandscape.study.store import Store

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

app = App(
    name="pylandscape",
    help="The geometry of a neural network's loss.",
    version=__version__,
    help_format="markdown",
)


@app.command
def study(
    *,
    out: Path,
    data: Path | None = None,
    seed: int = 0,
    full: Annotated[bool, Parameter(negative="")] = False,
    quick: Annotated[bool, Parameter(negative="")] = False,
    resume: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(name=["--overwrite", "--yes"], negative="")] = False,
) -> None:
    """Train two CNNs on MNIST, look at their loss landscape, and test the paper's claims.

    Writes STUDY.md, summary.json, figures and the data behind them into one folder. Takes about
    four minutes on two cores. Ctrl-C keeps the finished stages; --resume goes on from there.

    Parameters
    ----------
    out: Path
        Folder for everything that is written.
    data: Path
        Folder with MNIST, as torchvision.datasets.MNIST lays it out. By default
        $PYLANDSCAPE_DATA, then the cache, then 6,000 and 2,000 digits that come with the package.
    seed: int
        Of everything random. The same seed gives the same numbers on the same machine.
    full: bool
        All 60,000 training and 10,000 test digits; needs a data folder, and an hour.
    quick: bool
        A few hundred digits and coarse grids: a look at the output in under a minute.
    resume: bool
        Go on with a study that is in the folder already; finished stages are kept.
    overwrite: bool
        Replace a study that is in the folder already.
    """
    if full and quick:
        raise StudyError("--full and --quick must not be given together. Choose one.")
    if resume and overwrite:
        raise StudyError("--resume and --overwrite must not be given together. Choose one.")
    if seed < 0:
        raise StudyError(f"--seed must not be negative, got {seed}.")
    make_config = full_config if full else quick_config if quick else default_config
    existing: Existing = "resume" if resume else "overwrite" if overwrite else "refuse"
    if existing == "refuse" and Store.holds_study(out) and sys.stdin.isatty():
        existing = _ask(out)
    summary = run_study(out, make_config(seed), data=data, existing=existing)
    for claim in summary["claims"]:
        print(f"{claim['verdict']:>14}  {claim['statement']}")
    print(f"the study is in {out / 'STUDY.md'}")


@app.command
def doctor() -> None:
    """Print what was built, for which instruction sets, and why."""
    print(build.report())


@app.command
def gpu_check() -> None:
    """Compare the CUDA operators with the CPU's and time them: a text for an issue."""
    if (why := gpu.obstacle()) is not None:
        print(f"pylandscape gpu-check: nothing was checked, {why}.")
        return
    text, passed = gpu.report()
    print(text)
    if not passed:
        raise SystemExit(1)


def main(tokens: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a wrong request, 130 after Ctrl-C."""
    try:
        command, bound, _ = app.parse_args(tokens, print_error=False, exit_on_error=False)
        command(*bound.args, **bound.kwargs)
    except (CycloptsError, StudyError, FileNotFoundError) as error:
        print(f"pylandscape: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("pylandscape: interrupted. --resume goes on from here.", file=sys.stderr)
        return INTERRUPTED
    return 0


def _ask(out: Path) -> Existing:
    """What to do with a study that is there already; only asked on a terminal."""
    answers: dict[str, Existing] = {"r": "resume", "o": "overwrite"}
    question = f"{out} holds a study already: [r]esume, [o]verwrite or [c]ancel? "
    while (answer := input(question).strip().lower()[:1]) != "c":
        if answer in answers:
            return answers[answer]
    raise StudyError("cancelled, nothing was changed.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
