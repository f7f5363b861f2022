"""Statistics, table and figures of a comparison, from the files that it wrote: results.csv, curves.csv, histograms.csv.

Nothing here trains, and nothing here chooses: methods stand in the order of their validation error.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from shell import replacing

BASELINE = "baseline"
LAYERS = ("linear1", "linear2", "linear3", "linear4")

# --- files -----------------------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: Sequence[dict]) -> None:
    """A table with the columns of its first row."""
    with replacing(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict]:
    """Undoes `write_csv`; what looks like a number is one."""
    with path.open(newline="") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


# --- statistics ------------------------------------------------------------------------------------------------------


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the n `values` and half the width of its 95 % confidence interval, by Student's t with n - 1 degrees."""
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return float(np.mean(values)), float(half)


def probability_of_improvement(differences: Sequence[float]) -> float:
    """The share of pairs whose difference is negative, ties counted half (Agarwal et al. 2021, for one run a task)."""
    differences = np.asarray(differences)
    return float(np.mean((differences < 0) + 0.5 * (differences == 0)))


def holm(p_values: Sequence[float]) -> list[float]:
    """`p_values` adjusted for their number, in the same order (Holm 1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def wilcoxon(differences: Sequence[float]) -> float:
    """p of the signed-rank test; from the exact distribution, since the normal one is far off for a dozen pairs."""
    return float(stats.wilcoxon(differences, method="exact").pvalue) if any(differences) else 1.0


def by_method(rows: Iterable[dict]) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    return found


def summarize(rows: Sequence[dict]) -> list[dict]:
    """One row a method, in the order of the validation error; `rows` are those of results.csv.

    Errors and differences are (mean, half width of the 95 % interval); a difference is to the baseline, paired by fold.
    """
    groups = by_method(rows)
    baseline = {row["fold"]: row["test_error"] for row in groups[BASELINE]}
    table = []
    for method, runs in groups.items():
        table.append(
            {
                "method": method,
                "settings": runs[0]["settings"],
                "n": len(runs),
                "diverged": sum(run["status"] == "diverged" for run in runs),
                "val_error": mean_and_interval([run["val_error"] for run in runs]),
                "test_error": mean_and_interval([run["test_error"] for run in runs]),
                "seconds": float(np.mean([run["seconds"] for run in runs])),
            }
        )
        if method != BASELINE:
            # rounded, so that equal differences of two fractions are equal numbers, and count as ties
            differences = [round(run["test_error"] - baseline[run["fold"]], 12) for run in runs]
            table[-1] |= {
                "difference": mean_and_interval(differences),
                "improvement": probability_of_improvement(differences),
                "p": wilcoxon(differences),
            }
    others = [row for row in table if row["method"] != BASELINE]
    for row, adjusted in zip(others, holm([row["p"] for row in others]), strict=True):
        row["p"] = adjusted
    return sorted(table, key=lambda row: row["val_error"][0])


# --- table -----------------------------------------------------------------------------------------------------------


def table_lines(table: Sequence[dict], rows: Sequence[dict]) -> list[str]:
    """table.md, line by line."""
    folds = sorted({row["fold"] for row in rows})
    consecutive = folds == list(range(folds[0], folds[-1] + 1))
    named = f"{folds[0]} to {folds[-1]}" if consecutive else ", ".join(map(str, folds))
    data_set = rows[0]["data"]
    lines = [
        "| method | settings of `train.py` | n | validation error | test error | difference to the baseline | "
        "P(better) | p | s/run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table:
        n = f"{row['n']} ({row['diverged']} diverged)" if row["diverged"] else str(row["n"])
        cells = [row["method"], f"`{row['settings']}`", n, percent(*row["val_error"]), percent(*row["test_error"])]
        if row["method"] == BASELINE:
            cells += ["", "", ""]
        else:
            mean, half = row["difference"]
            p = "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}"
            cells += [f"{mean * 100:+.2f} ± {half * 100:.2f}", f"{row['improvement']:.2f}", p]
        lines.append(" | ".join(["", *cells, f"{row['seconds']:.0f}", ""]).strip())
    begun, ended = min(row["begun"] for row in rows), max(row["ended"] for row in rows)
    hours = sum(row["seconds"] for row in rows) / 3600
    lines += [
        "",
        f"{len(rows)} runs on {data_set}, one seed each, folds {named}, which tuned nothing; from "
        f"{begun} to {ended} UTC, {hours:.1f} hours of training in all. Errors after the last epoch, mean over the "
        "folds and its 95 % interval (Student's t), in the order of the validation error. The difference is paired by "
        "fold, in percentage points of test error; P(better) is the share of folds on which the method beats the "
        "baseline; p is Wilcoxon's signed-rank test of the pairs, corrected for the number of methods (Holm). All "
        "runs share one test set: the intervals speak of other training images and seeds, not of other test images.",
    ]
    return lines


def percent(mean: float, half: float) -> str:
    return f"{mean:.2%} ± {half:.2%}".replace("%", " %")


# --- figures ---------------------------------------------------------------------------------------------------------


def colours(methods: Sequence[str]) -> dict[str, str]:
    """One colour a method, the same in every figure; `methods` are all there are, whichever were run."""
    from matplotlib import colormaps

    palette = [colour for name in ("tab10", "Dark2") for colour in colormaps[name].colors]
    return {method: palette[index % len(palette)] for index, method in enumerate(methods)} | {BASELINE: "black"}


def draw_errors(table: Sequence[dict], rows: Sequence[dict], colour: dict):
    """The test error of every run as a dot, mean and interval of every method, in the order of the validation error."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 0.42 * len(table) + 1), layout="constrained")
    groups = by_method(rows)
    for place, row in enumerate(table):
        errors = 100 * np.array([run["test_error"] for run in groups[row["method"]]])
        spread = place + 0.22 * np.linspace(-1, 1, len(errors))  # by fold, so that dots do not hide each other
        mean, half = 100 * row["test_error"][0], 100 * row["test_error"][1]
        shade = colour.get(row["method"], "grey")
        axis.plot(errors, spread, "o", markersize=4, alpha=0.6, markeredgewidth=0, color=shade)
        axis.errorbar(mean, place, xerr=half, fmt="D", markersize=4.5, color="black", markerfacecolor=shade, capsize=4)
        text = f"{mean:.2f} ± {half:.2f}"
        axis.text(1.01, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.set_yticks(range(len(table)), [row["method"] for row in table])
    axis.invert_yaxis()
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [tick for tick in (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 80) if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.xaxis.minorticks_off()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("test error in %: every run, mean and its 95 % interval")
    return figure


def draw_costs(table: Sequence[dict], curves: Sequence[dict], colour: dict):
    """Costs on training and validation images over the epochs: one panel a method, the baseline grey in each."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    columns = min(5, len(table))
    lines = math.ceil(len(table) / columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(2.3 * columns + 0.6, 2 * lines + 0.6),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    groups = by_method(curves)

    def draw(axis, method: str, shade, **more) -> None:
        for split, style in (("train", "--"), ("val", "-")):
            points = [row for row in groups[method] if row["split"] == split and row["epoch"] > 0]
            epochs = [row["epoch"] for row in points]
            axis.plot(epochs, [row["mean"] for row in points], style, color=shade, **more)
            axis.fill_between(
                epochs, [row["low"] for row in points], [row["high"] for row in points],
                color=shade, alpha=0.2, linewidth=0,
            )  # fmt: skip

    for axis, row in zip(axes.flat, table, strict=False):
        if row["method"] != BASELINE:
            draw(axis, BASELINE, "silver", linewidth=1)
        draw(axis, row["method"], colour.get(row["method"], "grey"), linewidth=1.6)
        axis.set_title(row["method"], fontsize=10)
        axis.grid(alpha=0.3)
    axis = axes.flat[0]
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(bottom=max(1e-4, axis.get_ylim()[0]))
    for place in range(len(table), lines * columns):
        axes.flat[place].axis("off")
        axes.flat[place - columns].tick_params(labelbottom=True)
    keys = [
        Line2D([], [], color="black", linestyle="-", label="validation: mean and range over the folds"),
        Line2D([], [], color="black", linestyle="--", label="training"),
        Line2D([], [], color="silver", linestyle="-", label="the baseline's"),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=3, frameon=False)
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel("cross-entropy in nats", fontsize=10)
    return figure


def draw_histograms(histograms: Sequence[dict], colour: dict):
    """Weights of every linear layer, and entropy of the output on test images, after the last epoch."""
    import matplotlib.pyplot as plt

    groups = by_method(histograms)
    methods = list(groups)
    figure, axes = plt.subplots(
        2, len(methods), figsize=(2.3 * len(methods) + 0.8, 5), sharex="row", sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip

    def buckets(method: str, tag: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left and right end of each, and the share of all values in it."""
        found = [row for row in groups[method] if row["tag"] == tag]
        left, right, counts = (np.array([row[key] for row in found], float) for key in ("left", "right", "count"))
        return left, right, counts / counts.sum()

    def draw_weights(axis, method: str, layer: str, **more) -> None:
        left, right, shares = buckets(method, f"weights/{layer}")
        axis.stairs(shares / (right - left), [*left, right[-1]], label=layer, **more)

    def draw_entropy(axis, method: str, tag: str, **more) -> None:
        left, right, shares = buckets(method, tag)
        shares, edges = np.histogram((left + right) / 2, bins=40, range=(0, top), weights=shares)
        axis.stairs(shares, edges, **more)

    def reach(method: str, layer: str) -> float:
        """Within which all but a thousandth of the weights lie."""
        left, right, shares = buckets(method, f"weights/{layer}")
        distance = np.maximum(abs(left), abs(right))
        nearest = np.argsort(distance)
        return distance[nearest][np.searchsorted(np.cumsum(shares[nearest]), 0.999)]

    top = max(row["right"] for row in histograms if row["tag"].startswith("entropy/"))
    limit = max(reach(method, layer) for method in methods for layer in LAYERS)

    for column, method in enumerate(methods):
        shade = colour.get(method, "grey")
        for layer, style in zip(LAYERS, ("-", "--", "-.", ":"), strict=True):
            draw_weights(axes[0, column], method, layer, color=shade, linestyle=style)
        draw_entropy(axes[1, column], method, "entropy/untrained", color="grey", hatch="////", label="before training")
        draw_entropy(axes[1, column], method, "entropy/test", color=shade, fill=True, alpha=0.6, label="after training")
        axes[0, column].set_title(method, fontsize=10)
    for axis in axes.flat:
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("density of the weights")
    axes[1, 0].set_ylabel("share of the images")
    axes[0, -1].legend(fontsize=7)
    axes[1, -1].legend(fontsize=7)
    axes[0, 0].set_xlim(-limit, limit)
    for axis in axes[0]:
        axis.set_xlabel("weight", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("entropy of the output in nats", fontsize=9)
    return figure


# --- all of it -------------------------------------------------------------------------------------------------------


def write_report(folder: Path, methods: Sequence[str]) -> list[str]:
    """Writes table.md and the figures beside the three files in `folder`; returns the table's lines.

    `methods` are all there are, for their colours.
    """
    rows = read_csv(folder / "results.csv")
    table = summarize(rows)
    lines = table_lines(table, rows)
    with replacing(folder / "table.md") as path:
        path.write_text("\n".join(lines) + "\n")
    write_figures(folder, table, rows, colours(methods))
    return lines


def write_figures(folder: Path, table: Sequence[dict], rows: Sequence[dict], colour: dict) -> None:
    """Every figure as PNG and as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "compare"  # the same file from the same results
    import matplotlib.pyplot as plt

    figures = {
        "errors": draw_errors(table, rows, colour),
        "costs": draw_costs(table, read_csv(folder / "curves.csv"), colour),
        "histograms": draw_histograms(read_csv(folder / "histograms.csv"), colour),
    }
    for name, figure in figures.items():
        for kind, more in (("png", {"dpi": 120}), ("svg", {"metadata": {"Date": None}})):
            with replacing(folder / f"{name}.{kind}") as path:
                figure.savefig(path, format=kind, **more)
        plt.close(figure)
