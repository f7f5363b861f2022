"""Figures of a comparison, from what its files hold: errors and costs, costs over epochs, reliability, tuning.

matplotlib is imported where it draws: whoever runs a comparison, or only --help, does not wait for it.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support.shell import replacing
from support.statistics import PLAIN, by_method, expected_best

# At least 24 apart in CIELAB, also from black and silver, and none too pale for a thin line on white.
PALETTE = (
    "#5f7f9f", "#d9a066", "#f58231", "#2f9e44", "#9a6324", "#e83ed8",
    "#3f63d8", "#1fb5d8", "#911eb4", "#e0b400", "#86c127", "#800000",
)  # fmt: skip
SHADES = {"constant": "#d95f02", "one-cycle": "#1f5fbf"}  # by schedule, in every figure
MAIN = (PLAIN, "L2", "dropout", "everything")  # the methods of the figures that have a panel for each


def panels(titles: Sequence[str], columns: int, width: float, height: float, **more):
    """A figure of axes with these `titles` in rows of `columns`, each `width` by `height` inches, and the axes."""
    from matplotlib.figure import Figure

    number, columns = len(titles), min(columns, len(titles))
    lines = math.ceil(number / columns)
    figure = Figure(figsize=(width * columns + 0.6, height * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, **more)
    for place in range(number, lines * columns):
        axes.flat[place].axis("off")
        axes.flat[place - columns].tick_params(labelbottom=True)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    return figure, axes.flat[:number]


def plain_ticks(axis) -> None:
    """Few ticks on a logarithmic `axis`, an xaxis or yaxis, in plain numbers."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 30 * low else (1, 3) if high < 1000 * low else (1,)
    axis.set_major_locator(AutoLocator() if high < 3 * low else LogLocator(subs=steps, numticks=7))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def explain(figure, axis, x: str = "", y: str = "") -> None:
    """A legend above all panels, of what has a label in one of them, `axis`; and what both axes are."""
    handles, labels = axis.get_legend_handles_labels()
    columns = 3 if len(labels) > 4 else len(labels)
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)


def reproducible_figures():
    """`with` it, figures look alike everywhere, whatever the user's matplotlibrc says."""
    from matplotlib import style

    return style.context("default")


def save_figure(figure, path: Path) -> Path:
    """`figure` as a PNG file; returns where it is: `path`, which has no suffix, with one."""
    path = path.with_name(f"{path.name}.png")
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    return path


def draw_methods(groups: dict[tuple[str, str], list[dict]], order: Sequence[str]):
    """Test error and test cost of every run as dots and their median as a mark, by method and schedule."""
    titles, height = ("test error in %; a dot is a run", "test cost in nats"), 0.42 * len(order) + 0.5
    figure, (left, right) = panels(titles, 2, 5.2, height, sharey=True)
    full = {"marker": "o", "markersize": 7, "markeredgecolor": "black"}
    stopped = {"marker": "<", "markersize": 5, "markerfacecolor": "white"}
    marks = [
        (left, "error/test", 100, "median, last epoch", full), (right, "loss/test", 1, "median, last epoch", full),
        (right, "best/loss/test", 1, "stopped at the lowest validation cost", stopped),
        (right, "tempered/test", 1, "last epoch, after one temperature", stopped | {"marker": "d"}),
    ]  # fmt: skip
    for (method, schedule), runs in groups.items():
        if method not in order:  # "everything" without a part
            continue
        place = order.index(method) + 0.38 * list(SHADES).index(schedule) - 0.19
        for axis, column, factor, text, look in marks:
            values = [factor * run[column] for run in runs if run.get(column, "") != ""]
            look = {"color": SHADES[schedule], "linestyle": ""} | look
            if look["marker"] == "o":  # spread by fold, so that dots do not hide each other
                spread = place + 0.12 * np.linspace(-1, 1, len(values))
                axis.plot(values, spread, **look | {"markersize": 3, "alpha": 0.45, "markeredgewidth": 0})
            label = f"{schedule}: {text}" if method == order[0] else None
            axis.plot(np.median(values) if values else math.nan, place, zorder=3, label=label, **look)
    for axis in (left, right):
        axis.set_xscale("log")
        plain_ticks(axis.xaxis)
    left.set_yticks(range(len(order)), order)
    left.set_ylim(len(order) - 0.5, -0.5)
    explain(figure, right)
    return figure


def draw_costs(curves: Sequence[dict], groups: dict[tuple[str, str], list[dict]]):
    """Costs over the epochs, median and range over the folds, and where each fold had its lowest validation cost."""
    methods = [method for method in MAIN if method in by_method(curves)]
    pairs = [(method, schedule) for schedule in SHADES for method in methods]
    titles = [f"{method}, {schedule}" for method, schedule in pairs]
    figure, axes = panels(titles, len(methods), 2.7, 2.3, sharex=True, sharey=True)
    lines = {"val": ("validation", "-"), "train": ("training", "--"), "test": ("test", ":")}
    for axis, (method, schedule) in zip(axes, pairs, strict=True):
        for split, (text, look) in lines.items():
            key = method, schedule, split
            rows = [row for row in curves if (row["method"], row["schedule"], row["split"]) == key and row["epoch"]]
            epochs, median, low, high = ([row[name] for row in rows] for name in ("epoch", "median", "low", "high"))
            axis.plot(epochs, median, look, color=SHADES[schedule], label=text)
            if split != "test":  # it lies on that of validation
                axis.fill_between(epochs, low, high, color=SHADES[schedule], alpha=0.18, linewidth=0)
        stops = [[run[f"best/{name}"] for run in groups[method, schedule]] for name in ("epoch", "loss/val")]
        axis.plot(*stops, "ko", markersize=3.5, alpha=0.6, markeredgewidth=0, label="where a fold would be stopped")
    axes[0].set(xscale="log", yscale="log")
    axes[0].set_ylim(bottom=max(1e-4, axes[0].get_ylim()[0]))
    explain(figure, axes[0], "epoch", "cross-entropy in nats")
    return figure


def draw_reliability(bins: Sequence[dict]):
    """Share of right answers by their confidence, over all folds; a dot is as large as its bin has many images."""
    methods = [method for method in MAIN if method in by_method(bins)]
    figure, axes = panels(methods, 4, 2.7, 2.7, sharex=True, sharey=True)
    for axis, method in zip(axes, methods, strict=True):
        for schedule, shade in SHADES.items():
            rows = [row for row in bins if (row["method"], row["schedule"]) == (method, schedule)]
            confidence, right, images = (np.array([row[x] for row in rows]) for x in ("confidence", "right", "images"))
            axis.plot(confidence, right, color=shade, linewidth=1.2, label=f"{schedule} schedule")
            axis.scatter(confidence, right, 4 + 90 * np.sqrt(images / images.sum()), color=shade, alpha=0.7)
        axis.plot([0, 1], [0, 1], ":", color="grey", label="as often right as confident; over-confident lies below")
    explain(figure, axes[0], "confidence of the answer", "share of right answers")
    return figure


def draw_tuning(tuned: Sequence[dict], methods: Sequence[str]):
    """By method and schedule, the expected best validation error of k points of its own design, on the first fold."""
    designed = by_method(row for row in tuned if row["origin"] == "design" and row["val_error_fold_0"] != "")
    named = [method for method in methods if method in designed]
    figure, axes = panels(named, 4, 2.5, 1.9, sharex=True)
    for axis, method in zip(axes, named, strict=True):
        errors = {schedule: [] for schedule in SHADES}
        for row in designed[method]:
            errors[row["schedule"]].append(100 * row["val_error_fold_0"])
        for schedule, found in errors.items():
            look = {"markersize": 3, "color": SHADES[schedule], "label": f"{schedule} schedule"}
            axis.plot(range(1, len(found) + 1), expected_best(found), "o-", **look)
        low = min(map(min, filter(None, errors.values())))
        axis.set(yscale="log", ylim=(low * 0.96, low * 2))  # in every panel a slope means the same gain
        plain_ticks(axis.yaxis)
    axes[0].set_xticks([1, 4, 8, 12, 16])
    explain(figure, axes[0], "random points tried", "expected best validation error in %")
    return figure
