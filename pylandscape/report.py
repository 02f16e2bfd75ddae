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
momentum, and six more with other batch sizes and weight decays. Then the loss around and between
the solutions is looked at, and what the paper "Loss Landscape Geometry & Optimization Dynamics in
Neural Networks" says about it is tested. Each verdict follows from a criterion that is part of the
program.
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
  the curved path and the aligned units above are two that may.
- Six solutions of one network say little about flatness and generalisation in general, and
  differences of test accuracy near the standard error say nothing.
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
        _flatness(summary["measurements"], summary["solutions"], summary["settings"]),
        _paths(summary["measurements"]),
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
            [f"{epoch:.3g}", _with_residual(*pair), f"{rise:.3g}"]
            for epoch, pair, rise in zip(m["path_epoch"], pairs, m["path_sam"], strict=True)
        ]
        parts.append(
            "The largest eigenvalue on the way there, run a, over the samples of the planes, and "
            "the rise of the loss at a distance of 0.05 along the gradient (SAM's sharpness):\n\n"
            + table(["epoch", "largest eigenvalue", "rise"], rows)
        )
    if not parts:
        return ""
    return (
        "## Curvature\n\nExtreme eigenvalues of the Hessian of the training loss by Lanczos; in "
        "brackets the residual ||Hv - lambda v||, within which an eigenvalue lies.\n\n"
        + "\n".join(parts)
    )


RANKED = {
    "lambda_max": "largest eigenvalue",
    "trace": "trace",
    "ball": "S_eps, eps = 0.1",
    "keskar": "Keskar's, in %",
    "adaptive_l2": "adaptive, l2",
    "adaptive_linf": "adaptive, l-infinity",
    "average": "adaptive, average",
    "sam": "SAM's",
}


def _flatness(
    m: Mapping[str, Sequence[float]], solutions: Sequence[str], settings: Mapping[str, Any]
) -> str:
    if "solution_lambda_max" not in m:
        return ""
    measures = [name for name in RANKED if f"solution_{name}" in m]
    rows = [
        [
            name,
            f"{m['solution_batch_size'][k]:.0f}",
            f"{m['solution_weight_decay'][k]:g}",
            f"{m['solution_epochs'][k]:.0f}",
            f"{m['solution_train_loss'][k]:.2g}",
            f"{m['solution_train_accuracy'][k]:.2%}",
            f"{m['solution_test_loss'][k]:.3g}",
            f"{m['solution_test_accuracy'][k]:.2%}",
            *(f"{m[f'solution_{measure}'][k]:.3g}" for measure in measures),
        ]
        for k, name in enumerate(solutions)
    ]
    head = ["", "batch", "weight decay", "epochs", "training loss", "training accuracy"]
    head += ["test loss", "test accuracy", *(RANKED[measure] for measure in measures)]
    ranks = [[RANKED[name], *(f"{value:+.2f}" for value in m[f"rank_{name}"])] for name in measures]
    text = (
        "## Flatness and generalisation\n\nSix networks from one initialisation, learning rate "
        f"{settings['solution_learning_rate']}, trained until the training loss is at most "
        f"{settings['solution_loss']} (or for {settings['solution_epochs']} epochs); curvature and "
        f"sharpness over the same {settings['flatness_samples']:,} random training digits. One "
        f"standard error of a test accuracy is {m['test_error_stderr'][0]:.2%}.\n\n"
        + table(head, rows)
        + "\nRank correlation over the six; positive where sharper solutions are worse. Of "
        "independent ranks of six, 3 % correlate by 0.83 or more and 5 % by 0.77.\n\n"
        + table(["sharpness by", "with test error", "with test loss"], ranks)
    )
    if "rescaled_lambda_max" not in m:
        return text
    rescaled = [
        [RANKED[name], *(f"{value:.4g}" for value in m[f"rescaled_{name}"])]
        for name in measures
        if f"rescaled_{name}" in m
    ]
    factor = m["rescaling_factor"][0]
    return text + (
        "\nNone of this is about the function alone. A ReLU network computes the same with its "
        f"first layer times {factor:g} and its second over {factor:g} (Dinh et al. 2017). Solution "
        "a, and the same so rescaled:\n\n"
        + table(["", "solution a", "rescaled"], rescaled)
        + "\nFilter-normalised pictures do not change: along the same random direction the two "
        f"lines differ by at most {m['rescaled_line_difference'][0]:.1g} of their range. Nor do "
        "the adaptive measures, up to what their maximisation leaves open.\n"
    )


def _paths(m: Mapping[str, Sequence[float]]) -> str:
    names = {
        "straight": "straight line",
        "aligned": "straight, b's hidden units in the order of a's",
        "curve": "trained Bezier curve, one bend",
    }
    rows = [
        [
            text,
            *(f"{value:.3g}" for value in m[f"{name}_path"][:2]),
            *(f"{value:.2%}" for value in m[f"{name}_path"][2:4]),
            f"{m[f'{name}_path'][4]:.3g}",
        ]
        for name, text in names.items()
        if f"{name}_path" in m
    ]
    if not rows:
        return ""
    head = ["from a to b", "barrier, training", "barrier, test"]
    head += ["accuracy drop, training", "accuracy drop, test", "length"]
    return "## Paths between the two solutions\n\n" + table(head, rows)


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
