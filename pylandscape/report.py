"""The page and the summary of a study: STUDY.md and summary.json."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pylandscape._files import replacing

Summary = Mapping[str, Any]

INTRODUCTION = """\
# The loss landscape of a small network on MNIST

Two networks of the same architecture are trained from different initialisations by SGD with
momentum. Then the loss around and between the two solutions is looked at, and what the paper
"Loss Landscape Geometry & Optimization Dynamics in Neural Networks" says about it is tested. Each
verdict follows from a criterion that is part of the program.
"""

LIMITS = """\
## What these pictures do not show

- A plane is two directions out of as many as there are parameters. Along a random direction the
  curvature is close to the average of all eigenvalues, so a random slice looks flat even where a
  few directions are steep: compare the curvature along the slices with the largest eigenvalue.
- Filter normalisation makes slices of different networks comparable; it does not make them
  typical of the path that training took.
- The principal plane contains most of the path but not all of it: the loss that it shows at a
  projected snapshot is not the loss of that snapshot.
- A barrier on the straight line between two solutions does not say that no path connects them:
  a curved path may, or a permutation of hidden units may take the barrier away.
- Verdicts are about this network, these digits and these two runs.
"""


def write(folder: str | Path, summary: Summary) -> None:
    """Write `summary.json` and the page made from it, `STUDY.md`.

    Args:
        folder: where to.
        summary: what `pylandscape.study.summary.summarise` gives.
    """
    for name, text in (
        ("summary.json", json.dumps(summary, indent=2) + "\n"),
        ("STUDY.md", page(summary)),
    ):
        with replacing(Path(folder) / name) as partial:
            partial.write_text(text, encoding="utf-8")


def page(summary: Summary) -> str:
    """The page, Markdown."""
    parts = [
        INTRODUCTION,
        _missing(summary["missing"]),
        _facts(summary),
        _verdicts(summary["claims"]),
        _curvature(summary["measurements"]),
        _figures(summary["figures"]),
        LIMITS,
        _making(summary),
    ]
    return "\n".join(part for part in parts if part)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(table(["x", "y"], [["1", "a|b"]]), end="")
        | x | y |
        |---|---|
        | 1 | a\\|b |
    """
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    text = ["| " + " | ".join(line) + " |" for line in cells]
    text[1] = "|" + "|".join(cells[1]) + "|"
    return "\n".join(text) + "\n"


def _missing(stages: Sequence[str]) -> str:
    if not stages:
        return ""
    return (
        f"**This study is not complete.** Not done yet: {'; '.join(stages)}. Run the same command "
        "with `--resume` to finish it.\n"
    )


def _facts(summary: Summary) -> str:
    m, s, samples = summary["measurements"], summary["settings"], summary["samples"]
    lines = [
        f"- **Data:** {summary['data']['source']}, fingerprint `{summary['data']['fingerprint']}`.",
        "- **Network:** Conv(1, 16, 3), ReLU, pooling, Conv(16, 32, 3), ReLU, pooling, "
        "Linear(1568, 128), ReLU, Linear(128, 10); 206,922 parameters; cross-entropy loss.",
        f"- **Training:** SGD, learning rate {s['learning_rate']}, momentum {s['momentum']}, "
        f"batches of {s['batch_size']}, {s['epochs']} epochs, "
        f"seeds {s['seeds']['a']} (run a) and {s['seeds']['b']} (run b).",
        f"- **Loss:** the mean over all {samples['train']:,} training digits where nothing else is "
        f"said; on planes over {samples['plane']:,} of them.",
    ]
    if "train_loss" in m:
        rows = [
            [
                f"run {run}",
                f"{m['train_loss'][k]:.2g}",
                f"{m['train_accuracy'][k]:.2%}",
                f"{m['test_loss'][k]:.3g}",
                f"{m['test_accuracy'][k]:.2%}",
            ]
            for k, run in enumerate("ab")
        ]
        head = ["", "training loss", "training accuracy", "test loss", "test accuracy"]
        lines += ["", table(head, rows).rstrip()]
    return "\n".join(lines) + "\n"


def _verdicts(claims: Sequence[Mapping[str, str]]) -> str:
    rows = [[c["statement"], c["measured"], f"**{c['verdict']}**"] for c in claims]
    criteria = [
        f"- *{c['statement']}*\n  Criterion: {c['criterion']}\n  Why: {c['rationale']}"
        for c in claims
    ]
    counts = Counter(claim["verdict"] for claim in claims)
    return (
        "## The claims of the paper\n\n"
        + f"Of {len(claims)} claims: {', '.join(f'{name} {n}' for name, n in counts.items())}.\n\n"
        + table(["claim", "measured", "verdict"], rows)
        + "\nHow each claim was judged; losses are in nats:\n\n"
        + "\n".join(criteria)
        + "\n"
    )


def _figures(figures: Sequence[Mapping[str, str]]) -> str:
    if not figures:
        return ""
    parts = ["## Figures\n"]
    for number, figure in enumerate(figures, 1):
        file = f"figures/{figure['name']}"
        parts.append(
            f"### {number}. {figure['title']}\n\n"
            f"![{figure['title']}]({file}.png)\n\n"
            f"{figure['text']} ([PDF]({file}.pdf), data in `results/{figure['source']}.zarr`)\n"
        )
    return "\n".join(parts)


def _curvature(m: Mapping[str, Sequence[float]]) -> str:
    parts = []
    if "lambda_max" in m:
        rows = [
            [
                f"solution {run}",
                _with_residual(m["lambda_max"][k], m["lambda_max_residual"][k]),
                _with_residual(m["lambda_min"][k], m["lambda_min_residual"][k]),
                f"{m['gradient_norm'][k]:.2g}",
            ]
            for k, run in enumerate("ab")
        ]
        head = ["", "largest eigenvalue", "smallest eigenvalue", "gradient norm"]
        parts.append(table(head, rows))
    if "eigenvalues" in m:
        pairs = zip(m["eigenvalues"], m["eigenvalue_residuals"], strict=True)
        listed = ", ".join(_with_residual(*pair) for pair in pairs)
        parts.append(f"First and last eigenvalues over fewer digits, solution a: {listed}.\n")
    if "trace" in m:
        parts.append(
            f"Trace there: {m['trace'][0]:.4g} +- {m['trace'][1]:.1g} (one standard error).\n"
        )
    layers = {name.removeprefix("layer "): row for name, row in m.items() if name[:6] == "layer "}
    if layers:
        rows = [
            [name, f"{row[0]:,.0f}", _with_residual(*row[1:3]), f"{row[3]:.3g} +- {row[4]:.1g}"]
            for name, row in layers.items()
        ]
        head = ["layer", "parameters", "largest eigenvalue", "trace"]
        parts.append("The diagonal blocks of the layers there:\n\n" + table(head, rows))
    if "path_lambda_max" in m:
        pairs = zip(m["path_lambda_max"], m["path_lambda_max_residual"], strict=True)
        rows = [
            [f"{epoch:.3g}", _with_residual(*pair)]
            for epoch, pair in zip(m["path_epoch"], pairs, strict=True)
        ]
        parts.append(
            "The largest eigenvalue on the way there, run a, over the samples of the planes:\n\n"
            + table(["epoch", "largest eigenvalue"], rows)
        )
    if not parts:
        return ""
    return (
        "## Curvature\n\nExtreme eigenvalues of the Hessian of the training loss by Lanczos; in "
        "brackets the residual ||Hv - lambda v||, within which an eigenvalue lies.\n\n"
        + "\n".join(parts)
    )


def _with_residual(value: float, residual: float) -> str:
    return f"{value:.4g} ({residual:.1g})"


def _making(summary: Summary) -> str:
    seconds, env = summary["seconds"], summary["environment"]
    engines = [
        f"{engine} for {', '.join(stage for stage, e in summary['engines'].items() if e == engine)}"
        for engine in sorted(set(summary["engines"].values()))
    ]
    rows = [[name, f"{value:.1f}"] for name, value in seconds.items()]
    rows.append(["sum", f"{sum(seconds.values()):.1f}"])
    return (
        "## How it was made\n\n"
        f"pylandscape {env['pylandscape']} on torch {env['torch']}, Python {env['python']}, "
        f"{env['machine']}, {env['threads']} threads. Engines: {'; '.join(engines) or 'none'}. "
        "The same settings on the same machine give the same numbers; the settings, and "
        "every number on this page, are in `summary.json`, the data behind the figures in "
        "`results/` (`xarray.open_zarr(path, consolidated=False)`), the recorded runs in "
        "`run-a/` and `run-b/` (`pylandscape.Trajectory`).\n\n" + table(["stage", "seconds"], rows)
    )
