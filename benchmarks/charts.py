"""Charts and tables of what `make bench-peers` measured, from its report alone.

    python -m benchmarks.charts                            # the committed report
    python -m benchmarks.charts --report build/benchmarks/peers-cpu.json --output build/charts

Charts are SVG, on a transparent ground in colors that are read on white and on black; the line
styles and markers tell contenders apart in grayscale, too. With the committed report the tables of
README.md and docs/speed.md are written anew, between the lines `<!-- speed:begin -->` and
`<!-- speed:end -->`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.contenders import OURS, TEXTBOOK

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "benchmarks" / "results" / "peers-cpu.json"
FIGURES = ROOT / "docs" / "figures"
MARKED = re.compile(r"(<!-- speed:begin -->\n).*?(<!-- speed:end -->)", re.DOTALL)
INPUTS = {"normal": "standard normal frames", "walk": "random walks"}
LEAST, MOST = 1e-9, 1e3  # of the errors that are shown

GRAY = "#808080"  # is read on white and on black
STYLE: Any = {
    "svg.hashsalt": "softdtw-kernels",  # the same file every time
    "svg.fonttype": "path",
    "savefig.transparent": True,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    **{
        name: GRAY
        for name in (
            "axes.edgecolor",
            "axes.labelcolor",
            "axes.titlecolor",
            "legend.labelcolor",
            "text.color",
            "xtick.color",
            "ytick.color",
        )
    },
}
# Ours is drawn last, thick and whole; of the others no two share color, line and marker.
LOOKS = (
    ("#c77700", "--", "s"),
    ("#9467bd", "-.", "^"),
    ("#2e9e5b", ":", "v"),
    ("#d1495b", (0, (5, 1)), "D"),
    ("#8c6d46", (0, (3, 1, 1, 1)), "P"),
    ("#7f9f00", (0, (1, 1)), "X"),
    ("#c060a0", (0, (8, 2)), "<"),
)


def looks(names: list[str]) -> dict[str, dict[str, Any]]:
    """How the line of each contender is drawn, the same in every chart."""
    styles: dict[str, dict[str, Any]] = {}
    others = [name for name in names if not name.startswith(OURS)]
    for name, (color, line, marker) in zip(others, LOOKS, strict=False):
        styles[name] = {"color": color, "linestyle": line, "marker": marker, "linewidth": 1.2}
    for name in names:
        if name.startswith(OURS):
            styles[name] = {"color": "#3b82d0", "marker": "o", "linewidth": 2.6, "zorder": 5}
    return {name: {"markersize": 5} | style for name, style in styles.items()}


def nanoseconds(row: dict[str, Any]) -> float:
    """Forward and backward, a cell: the median of the rounds."""
    return statistics.median(row["samples_train_s"]) / math.prod(row["shape"]) * 1e9


def title(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def short(contender: str) -> str:
    return contender.removesuffix(" float32")


def shown(report: dict[str, Any]) -> list[str]:
    """The contenders of the charts: float32, ours first."""
    labels = list(dict.fromkeys(row["contender"] for row in report["speed"]))
    return [label for label in labels if label.endswith("float32")]


def time_a_cell(report: dict[str, Any]) -> Figure:
    figure, ax = plt.subplots(figsize=(9, 3.9), layout="constrained")
    shapes = [list(s) for s in dict.fromkeys(tuple(row["shape"]) for row in report["speed"])]
    for name, look in looks(shown(report)).items():
        times = [nanoseconds(row) for row in report["speed"] if row["contender"] == name]
        ax.plot(range(len(times)), times, label=short(name), **look)
    ax.set(yscale="log", ylabel="nanoseconds a cell", xlabel="batch x N x M")
    ax.set_xticks(range(len(shapes)), [f"{b} x\n{n} x {m}" for b, n, m in shapes])
    ax.set_ylim(1, None)
    ax.set_title("forward + backward, float32, one thread of the CPU: lower is better")
    figure.legend(loc="outside right center")
    return figure


def bars(ax: Any, values: dict[str, float], write: str) -> None:
    """Horizontal bars with their numbers, the smallest on top; ours is filled."""
    names = sorted(values, key=lambda name: -values[name])
    fills = ["#3b82d0" if name.startswith(OURS) else "none" for name in names]
    drawn = ax.barh(
        [short(name) for name in names],
        [values[name] for name in names],
        facecolor=fills,
        edgecolor=["#3b82d0" if fill != "none" else GRAY for fill in fills],
    )
    ax.bar_label(drawn, [write.format(values[name]) for name in names], padding=4, color=GRAY)
    ax.margins(x=0.18)


def memory(report: dict[str, Any]) -> Figure:
    figure, ax = plt.subplots(figsize=(9, 2.9), layout="constrained")
    bars(
        ax,
        {n: 100 * v for n, v in report["memory"].items() if not n.startswith(TEXTBOOK)},
        "{:.0f} %",
    )
    ax.set_xlabel("% of the cost matrix")
    ax.set_title(
        "peak memory of forward + backward, beyond the cost and its gradient, "
        + title(report["memory_shape"])
    )
    return figure


def gradient_error(report: dict[str, Any]) -> Figure:
    gammas = list(dict.fromkeys(row["gamma"] for row in report["errors"]))
    names = list(dict.fromkeys(row["contender"] for row in report["errors"]))
    figure, axes = plt.subplots(
        1, len(gammas), figsize=(9, 3.9), layout="constrained", sharey=True, squeeze=False
    )
    for gamma, ax in zip(gammas, axes[0], strict=True):
        for name, look in looks(names).items():
            rows = [r for r in report["errors"] if (r["gamma"], r["contender"]) == (gamma, name)]
            # Below what the axis shows an error is 0, above it, or NaN, there is no gradient.
            errors = [float(row["gradient_error"]) for row in rows]
            heights = [MOST if math.isnan(e) else min(max(e, LEAST), MOST) for e in errors]
            ax.loglog([r["length"] for r in rows], heights, label=short(name), **look)
        ax.axhline(1.0, color=GRAY, linewidth=0.6, linestyle="--")
        ax.set(title=f"gamma = {gamma:g}", xlabel="N = M", ylim=(LEAST / 2, MOST * 2))
        sizes = sorted({row["length"] for row in report["errors"]})
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
    axes[0][0].set_ylabel("largest error of the gradient\n(top: 1000 or more, or NaN)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def small_calls(report: dict[str, Any]) -> Figure:
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in report["small_calls"]))
    figure, axes = plt.subplots(
        1, len(shapes), figsize=(9, 3.1), layout="constrained", sharey=False, squeeze=False
    )
    for shape, ax in zip(shapes, axes[0], strict=True):
        rows = [row for row in report["small_calls"] if tuple(row["shape"]) == shape]
        times = {r["contender"]: statistics.median(r["samples_train_s"]) * 1e6 for r in rows}
        bars(ax, times, "{:.0f}")
        ax.set(xscale="log", xlabel="microseconds")
        ax.set_xlim(min(times.values()) / 3, max(times.values()) * 3)
        batch, length, features = shape
        ax.set_title(f"{batch} x {length} x {length} of {features} features")
    return figure


# Each with what it says to those who do not see it, and to those who do.
CHARTS = {
    "peers-time": (
        time_a_cell,
        "Time a cell over batch and length, of each implementation",
        "The times of the table.",
    ),
    "peers-memory": (
        memory,
        "Peak memory of each implementation, as a share of the cost",
        "One pair; what float32 takes, and ours in float64.",
    ),
    "peers-gradient": (
        gradient_error,
        "The error of float32 gradients over length and gamma",
        "One pair of random walks in four dimensions, against float64. No entry of the gradient "
        "exceeds 1.",
    ),
    "peers-small": (
        small_calls,
        "Microseconds of a small call of each implementation",
        "From features, forward and backward, float32; no call can take less than torch.sum.",
    ),
}


def table(report: dict[str, Any]) -> str:
    """What README and docs/speed.md say of the report, as Markdown."""
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in report["speed"]))
    labels = list(dict.fromkeys(row["contender"] for row in report["speed"]))
    found = {(r["contender"], tuple(r["shape"])): nanoseconds(r) for r in report["speed"]}
    versions = report["versions"]
    named = ", ".join(
        f"{name} {versions[name]}"
        for name in ("pysdtw", "tslearn", "dtw-loss-functions", "ddtw", "torch")
        if name in versions
    )
    lines = [
        f"{report['cpu']}, one thread, medians of {report['rounds']} rounds, gamma "
        f"{report['gamma']:g}, the cost given: squared distances of {INPUTS[report['inputs']]} of "
        f"four features ({report['date']}, commit {report['commit']}; "
        f"{named}):",
        "",
        "| forward + backward, ns a cell | " + " | ".join(map(title, map(list, shapes))) + " |",
        "|---|" + "---:|" * len(shapes),
    ]
    for label in labels:
        cells = " | ".join(f"{found[label, shape]:.1f}" for shape in shapes)
        lines.append(f"| {label} | {cells} |")
    ratios = " | ".join(f"{row['ratio']:.2f} x" for row in report["threads"])
    lines += [f"| {OURS} float32, 2 threads over 1 | {ratios} |", ""]
    ours = [share for name, share in report["memory"].items() if name.startswith(OURS)]
    others = [
        share for name, share in report["memory"].items() if not name.startswith((OURS, TEXTBOOK))
    ]
    lines.append(
        f"Peak memory at {title(report['memory_shape'])} beyond the cost and its gradient is at "
        f"most {max(ours):.0%} of the cost here, and {min(others):.0%} to {max(others):.0%} "
        "elsewhere."
    )
    for name, reason in report["failed_the_check"].items():
        lines.append(f"Not timed, as it fails the check against float64: {name} ({reason}).")
    left = "; ".join(f"{name} ({reason})" for name, reason in report["left_out"].items())
    return "\n".join([*lines, "", f"Not measured: {left}.", ""])


def summary(report: dict[str, Any]) -> str:
    """Ours beside the fastest other one in float32, a column a shape: for the README."""
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in report["speed"]))
    ours, others = [], []
    for shape in shapes:
        rows = [row for row in report["speed"] if tuple(row["shape"]) == shape]
        times = {r["contender"]: nanoseconds(r) for r in rows if r["contender"].endswith("float32")}
        ours.append(times.pop(f"{OURS} float32"))
        others.append(min(times.values()))
    lines = [
        "| forward + backward, float32, ns a cell | "
        + " | ".join(title(list(shape)) for shape in shapes)
        + " |",
        "|---|" + "---:|" * len(shapes),
        f"| {OURS} | " + " | ".join(f"{t:.1f}" for t in ours) + " |",
        "| the fastest other | " + " | ".join(f"{t:.1f}" for t in others) + " |",
    ]
    return "\n".join([*lines, ""])


def pictures() -> str:
    """The charts, for docs/speed.md."""
    return "\n\n".join(
        f"![{text}](figures/{name}.svg)\n\n*{caption}*"
        for name, (_, text, caption) in CHARTS.items()
    )


def rewrite(page: Path, text: str) -> None:
    """The table of a page, if the page has a place for it."""
    old = page.read_text()
    new = MARKED.sub(lambda found: found[1] + text + found[2], old)
    if new != old:
        page.write_text(new)
        print(f"Wrote the table of {page.relative_to(ROOT)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--output", type=Path, default=FIGURES, help="folder of the charts")
    options = parser.parse_args()
    report = json.loads(options.report.read_text())
    options.output.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, (draw, _, _) in CHARTS.items():
            figure = draw(report)
            figure.savefig(options.output / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
            print(f"Drew {options.output / name}.svg")
    if options.report.resolve() == REPORT:
        rewrite(ROOT / "README.md", summary(report))
        rewrite(ROOT / "docs" / "speed.md", f"{table(report)}\n{pictures()}\n")
    else:
        print(summary(report), table(report), sep="\n")


if __name__ == "__main__":
    main()
