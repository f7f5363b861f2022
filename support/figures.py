"""Figures of a comparison: errors, costs, histograms, combinations beside their parts, and what tuning still gains.

Nothing here trains or chooses.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from support.shell import replacing
from support.statistics import BASELINE, MARGIN, WITHOUT, Estimate, by_method, expected_best, percent

# --- figures ---------------------------------------------------------------------------------------------------------


# At least 24 apart in CIELAB, also from black and silver, and none too pale for a thin line on white.
PALETTE = (
    "#5f7f9f", "#d9a066", "#f58231", "#2f9e44", "#9a6324", "#e83ed8", "#3f63d8", "#1fb5d8", "#911eb4",
    "#e0b400", "#86c127", "#800000", "#10107a", "#0b7a75", "#f08cae", "#7a7a00", "#a58be8", "#e6194b",
)  # fmt: skip


def colours(methods: Sequence[str]) -> dict[str, str]:
    """One colour a method, the same in every figure; `methods` are all there are, whichever were run."""
    others = [method for method in methods if method != BASELINE]
    return {method: PALETTE[index % len(PALETTE)] for index, method in enumerate(others)} | {BASELINE: "#000000"}


def panels(number: int, columns: int, width: float, height: float, **more):
    """A figure of `number` axes in rows of `columns`, each `width` by `height` inches, and the axes."""
    from matplotlib.figure import Figure

    columns = min(columns, number)
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(width * columns + 0.6, height * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **more)
    for place in range(number, lines * columns):
        axes.flat[place].axis("off")
        axes.flat[place - columns].tick_params(labelbottom=True)
    return figure, axes.flat[:number]


def plain_ticks(axis, ticks: Sequence[float] = ()) -> None:
    """Ticks of a logarithmic `axis`, an xaxis or yaxis, in plain numbers: `ticks`, or round ones within its limits."""
    low, high = axis.get_view_interval()
    if not ticks:
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 30 * low else (1, 3) if high < 1000 * low else (1,)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def draw_estimate(axis, place: float, value: Estimate, shade: str) -> None:
    """A diamond with the interval over folds as a thick line, and the one over folds and test images as a thin one."""
    mean, half, both = (100 * one for one in value)
    axis.errorbar(mean, place, xerr=half, fmt="none", elinewidth=2.6, color="black", zorder=3)
    axis.errorbar(mean, place, xerr=both, fmt="none", elinewidth=0.9, capsize=4, color="black", zorder=3)
    axis.plot(mean, place, "D", markersize=5, color=shade, markeredgecolor="black", zorder=4)


def draw_errors(table: Sequence[dict], rows: Sequence[dict], colour: dict):
    """The test error of every run as a dot, and mean and intervals of every method, in the order of `table`."""
    figure, (axis,) = panels(1, 1, 8.4, 0.36 * len(table) + 0.4)
    groups = by_method(rows)
    for place, row in enumerate(table):
        errors = 100 * np.array([run["error/test"] for run in groups[row["method"]]])
        spread = place + 0.22 * np.linspace(-1, 1, len(errors))  # by fold, so that dots do not hide each other
        shade = colour.get(row["method"], "grey")
        axis.plot(errors, spread, "o", markersize=4, alpha=0.7, markeredgewidth=0, color=shade)
        draw_estimate(axis, place, row["test"], shade)
        axis.text(1.01, place, percent(row["test"]), transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.set_yticks(range(len(table)), [row["method"] for row in table])
    axis.set_ylim(len(table) - 0.4, -0.6)
    axis.set_xscale("log")
    plain_ticks(axis.xaxis)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(
        "test error in %: every run, and the mean with its 95 % interval\n"
        "over folds (thick) and over folds and test images (thin)"
    )
    return figure


def draw_costs(table: Sequence[dict], curves: Sequence[dict], colour: dict):
    """Costs on training and validation images over the epochs: one panel a method, the baseline grey in each."""
    from matplotlib.lines import Line2D

    groups = by_method(curves)
    methods = [row["method"] for row in table if row["method"] in groups]
    figure, axes = panels(len(methods), 5, 2.3, 1.9, sharex=True, sharey=True)

    def draw(axis, method: str, shade, **more) -> None:
        for split, style in (("train", "--"), ("val", "-")):
            points = [row for row in groups[method] if row["split"] == split and row["epoch"] > 0]
            epochs, mean, low, high = ([row[key] for row in points] for key in ("epoch", "mean", "low", "high"))
            axis.plot(epochs, mean, style, color=shade, **more)
            axis.fill_between(epochs, low, high, color=shade, alpha=0.2, linewidth=0)

    for axis, method in zip(axes, methods, strict=True):
        if method != BASELINE and BASELINE in groups:
            draw(axis, BASELINE, "silver", linewidth=1)
        draw(axis, method, colour.get(method, "grey"), linewidth=1.6)
        axis.set_title(method, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[0].set_ylim(bottom=max(1e-4, axes[0].get_ylim()[0]))
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
    groups = by_method(histograms)
    methods = list(groups)
    figure, axes = panels(2 * len(methods), len(methods), 2.3, 2.2, sharex="row", sharey="row")
    upper, lower = axes[: len(methods)], axes[len(methods) :]

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
        nearest = np.argsort(distance, kind="stable")
        return distance[nearest][np.searchsorted(np.cumsum(shares[nearest]), 0.999)]

    top = max(row["right"] for row in histograms if row["tag"].startswith("entropy/"))
    layers = [
        tag.removeprefix("weights/") for tag in dict.fromkeys(row["tag"] for row in histograms) if "weights/" in tag
    ]
    limit = max(reach(method, layer) for method in methods for layer in layers)

    for above, below, method in zip(upper, lower, methods, strict=True):
        shade = colour.get(method, "grey")
        for layer, style in zip(layers, itertools.cycle(("-", "--", "-.", ":"))):
            draw_weights(above, method, layer, color=shade, linestyle=style)
        draw_entropy(below, method, "entropy/untrained", color="grey", hatch="////", label="before training")
        draw_entropy(below, method, "entropy/test", color=shade, fill=True, alpha=0.6, label="after training")
        above.set_title(method, fontsize=10)
        above.set_xlabel("weight", fontsize=9)
        below.set_xlabel("entropy of the output in nats", fontsize=9)
    for axis in axes:
        axis.set_yscale("log")
        axis.grid(alpha=0.3)
    upper[0].set_ylabel("density of the weights")
    lower[0].set_ylabel("share of the images")
    upper[-1].legend(fontsize=7)
    lower[-1].legend(fontsize=7)
    upper[0].set_xlim(-limit, limit)
    return figure


def draw_combinations(table: Sequence[dict], without: Sequence[dict], parts: dict[str, Sequence[str]], colour: dict):
    """A panel a combination: its test error with both intervals, above those of its parts; and what it is without."""
    tests = {row["method"]: row["test"] for row in [*table, *without]}
    wholes = {whole: [name for name in names if name in tests] for whole, names in parts.items() if whole in tests}
    groups = [[whole, *sorted(names, key=lambda name: tests[name].mean)] for whole, names in wholes.items() if names]
    for whole in dict.fromkeys(row["reference"] for row in without):
        names = [row["method"] for row in without if row["reference"] == whole]
        groups.append([whole, *sorted(names, key=lambda name: tests[name].mean)])
    groups.sort(key=len)
    lines = [max(map(len, groups[start : start + 3])) for start in range(0, len(groups), 3)]
    heights = [0.24 * line + 0.4 for line in lines]
    shape = {"gridspec_kw": {"height_ratios": heights}}
    figure, axes = panels(len(groups), 3, 3.6, sum(heights) / len(heights) + 0.2, **shape)
    for number, (axis, names) in enumerate(zip(axes, groups, strict=True)):
        for place, name in enumerate(names):
            draw_estimate(axis, place, tests[name], colour.get(name, "silver"))
        axis.axvspan(*(100 * (tests[names[0]].mean + side * MARGIN) for side in (-1, 1)), color="grey", alpha=0.2)
        labels = [name.replace(f"{names[0]}{WITHOUT}", "without ") for name in names]
        axis.set_yticks(range(len(names)), labels, fontsize=9)
        axis.get_yticklabels()[0].set_fontweight("bold")
        axis.set_ylim(lines[number // 3] - 0.4, -0.6)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel(
        "test error in %: mean and 95 % interval over folds (thick),\n"
        "over folds and test images (thin); grey: within\n"
        f"{100 * MARGIN:g} points of the combination",
        fontsize=9,  # it has to fit below a single panel
    )
    return figure


def draw_tuning(tuned: Sequence[dict], methods: Sequence[str], colour: dict):
    """By method, the expected best validation error of k of its points, on the first fold, where all of them ran.

    Only the points of the method's own design: those taken over from its parts were not drawn from its space.
    """
    designs = {
        method: [
            100 * row["val_error_fold_0"]
            for row in trials
            if row["origin"] == "design" and row["val_error_fold_0"] != ""
        ]
        for method, trials in by_method(tuned).items()
    }
    named = [method for method in dict.fromkeys([*methods, *designs]) if designs.get(method)]
    figure, axes = panels(len(named), 5, 2.3, 1.9, sharex=True)
    for axis, method in zip(axes, named, strict=True):
        best = expected_best(designs[method])
        axis.plot(range(1, len(best) + 1), best, "o-", markersize=3, color=colour.get(method, "grey"))
        axis.set_title(method, fontsize=10)
        # all panels span the same ratio, so that a slope means the same relative gain in each
        axis.set_yscale("log")
        axis.set_ylim(best[-1] * 0.96, best[-1] * 1.5)
        ticks = np.linspace(best[-1], best[-1] * 1.4, 4)
        axis.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        half = (len(best) + 1) // 2
        text = f"from {half} to {len(best)}: {best[-1] - best[half - 1]:+.2f}"
        axis.text(0.96, 0.93, text, transform=axis.transAxes, ha="right", va="top", fontsize=8)
    axes[0].set_xticks([k for k in (1, 4, 8, 12, 16, 24, 32) if k <= max(map(len, designs.values()))])
    figure.supxlabel("random points tried; in each panel, what the second half of them gained, in points", fontsize=10)
    figure.supylabel("expected best validation error in %", fontsize=10)
    return figure


@contextlib.contextmanager
def reproducible_figures() -> Iterator[None]:
    """Inside, figures look alike everywhere, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save_figure(figure, path: Path) -> None:
    """`figure` as PNG."""
    with replacing(path.with_name(f"{path.name}.png")) as beside:
        figure.savefig(beside, format="png", dpi=120)
