"""Figures of a comparison: errors and costs of all methods, costs over epochs, reliability, what tuning still gains.

Nothing here trains or chooses. A schedule has the same colour in all of them.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from support.shell import replacing
from support.statistics import PLAIN, by_method, expected_best

# --- what figures share ----------------------------------------------------------------------------------------------

# At least 24 apart in CIELAB, also from black and silver, and none too pale for a thin line on white.
PALETTE = (
    "#5f7f9f", "#d9a066", "#f58231", "#2f9e44", "#9a6324", "#e83ed8", "#3f63d8", "#1fb5d8", "#911eb4",
    "#e0b400", "#86c127", "#800000", "#10107a", "#0b7a75", "#f08cae", "#7a7a00", "#a58be8", "#e6194b",
)  # fmt: skip
SCHEDULE_COLOURS = ("#d95f02", "#1f5fbf")  # in the order in which the schedules come
MAIN = (PLAIN, "L2", "dropout", "everything")  # the methods of the figures that have a panel for each


def colours(methods: Sequence[str]) -> dict[str, str]:
    """One colour a method, the same in every figure; `methods` are all there are, whichever were run."""
    others = [method for method in methods if method != PLAIN]
    return {method: PALETTE[index % len(PALETTE)] for index, method in enumerate(others)} | {PLAIN: "#000000"}


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


def explain(figure, keys: dict[str, dict], x: str = "", y: str = "") -> None:
    """A legend above all panels, `keys` being the style of a line or mark by its text, and what both axes are."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=text, **({"color": "dimgrey"} | style)) for text, style in keys.items()]
    columns = 3 if len(keys) > 4 else len(keys)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)
    figure.supxlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)


def shades_of(rows: Iterable[dict]) -> dict[str, str]:
    """By schedule of `rows`, in their order, its colour."""
    return dict(zip(dict.fromkeys(row["schedule"] for row in rows), SCHEDULE_COLOURS, strict=False))


def schedule_keys(shades: dict[str, str], **style) -> dict[str, dict]:
    return {f"{schedule} schedule": {"color": shade} | style for schedule, shade in shades.items()}


@contextlib.contextmanager
def reproducible_figures() -> Iterator[None]:
    """Inside, figures look alike everywhere, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save_figure(figure, path: Path) -> None:
    """`figure` as PNG; `path` has no suffix."""
    with replacing(path.with_name(f"{path.name}.png")) as beside:
        figure.savefig(beside, format="png", dpi=120)


# --- figures ---------------------------------------------------------------------------------------------------------


def draw_methods(groups: dict[tuple[str, str], list[dict]], order: Sequence[str]):
    """Test error and test cost of every run as dots and their median as a mark, by method and schedule.

    The cost has two more marks: at the lowest validation cost, and after the last epoch once a temperature is fitted.
    """
    figure, axes = panels(2, 2, 5.2, 0.42 * len(order) + 0.5, sharey=True)
    shades = shades_of(run for runs in groups.values() for run in runs)
    hollow = {"markerfacecolor": "white", "markersize": 5}
    of_runs = {"markersize": 3, "alpha": 0.45, "markeredgewidth": 0}
    marks = {"error/test": "o", "loss/test": "o", "best/loss/test": "<", "tempered/test": "d"}
    for (method, schedule), runs in groups.items():
        place = order.index(method) + 0.38 * list(shades).index(schedule) - 0.19 if method in order else None
        for column, mark in marks.items() if method in order else ():
            axis, factor = (axes[0], 100) if column == "error/test" else (axes[1], 1)
            values = [factor * run[column] for run in runs if run.get(column, "") != ""]
            shade, look = shades[schedule], {"markeredgecolor": "black", "markersize": 7} if mark == "o" else hollow
            if mark == "o":  # spread by fold, so that dots do not hide each other
                axis.plot(values, place + 0.12 * np.linspace(-1, 1, len(values)), "o", color=shade, **of_runs)
            if values:
                axis.plot(np.median(values), place, mark, zorder=3, color=shade, **look)
    for axis, text in zip(axes, ("test error in %", "test cost in nats"), strict=True):
        axis.set_xscale("log")
        plain_ticks(axis.xaxis)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlabel(text)
        for place in range(0, len(order), 2):
            axis.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.05, linewidth=0)
    axes[0].set_yticks(range(len(order)), order)
    axes[0].set_ylim(len(order) - 0.5, -0.5)
    keys = schedule_keys(shades, marker="s", linestyle="") | {"a run": {"marker": "o", "linestyle": ""} | of_runs}
    keys |= {"median, last epoch": {"marker": "o", "linestyle": "", "markeredgecolor": "black"}}
    keys |= {"stopped at the lowest validation cost": {"marker": "<", "linestyle": ""} | hollow}
    explain(figure, keys | {"last epoch, after one temperature": {"marker": "d", "linestyle": ""} | hollow})
    return figure


def draw_costs(curves: Sequence[dict], groups: dict[tuple[str, str], list[dict]]):
    """Costs over the epochs, median and range over the folds, and where each fold had its lowest validation cost."""
    shades, methods = shades_of(curves), [method for method in MAIN if method in by_method(curves)]
    pairs = [(method, schedule) for schedule in shades for method in methods]
    figure, axes = panels(len(pairs), len(methods), 2.7, 2.3, sharex=True, sharey=True)
    styles = {"validation": {"linestyle": "-"}, "training": {"linestyle": "--"}, "test": {"linestyle": ":"}}
    dot = {"color": "black", "marker": "o", "markersize": 3.5, "alpha": 0.6, "markeredgewidth": 0, "linestyle": ""}
    for axis, (method, schedule) in zip(axes, pairs, strict=True):
        for split, style in zip(("val", "train", "test"), styles.values(), strict=True):
            key = method, schedule, split
            rows = [row for row in curves if (row["method"], row["schedule"], row["split"]) == key and row["epoch"]]
            epochs, median, low, high = ([row[name] for row in rows] for name in ("epoch", "median", "low", "high"))
            axis.plot(epochs, median, color=shades[schedule], **style)
            if split != "test":  # it lies on that of validation
                axis.fill_between(epochs, low, high, color=shades[schedule], alpha=0.18, linewidth=0)
        stops = [[run[f"best/{name}"] for run in groups[method, schedule]] for name in ("epoch", "loss/val")]
        axis.plot(*stops, **dot)
        axis.set_title(f"{method}, {schedule}", fontsize=9)
        axis.grid(alpha=0.3)
    axes[0].set_xscale("log")
    axes[0].set_yscale("log")
    axes[0].set_ylim(bottom=max(1e-4, axes[0].get_ylim()[0]))
    explain(figure, styles | {"where a fold would be stopped": dot}, "epoch", "cross-entropy in nats")
    return figure


def draw_reliability(bins: Sequence[dict]):
    """Share of right answers by their confidence, over all folds; a dot is as large as its bin has many images."""
    shades, methods = shades_of(bins), [method for method in MAIN if method in by_method(bins)]
    figure, axes = panels(len(methods), 4, 2.7, 2.7, sharex=True, sharey=True)
    for axis, method in zip(axes, methods, strict=True):
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle=":")
        for schedule, shade in shades.items():
            rows = [row for row in bins if (row["method"], row["schedule"]) == (method, schedule)]
            confidence, right = ([row[name] for row in rows] for name in ("confidence", "right"))
            images = np.array([row["images"] for row in rows])
            axis.plot(confidence, right, color=shade, linewidth=1.2)
            axis.scatter(confidence, right, 4 + 90 * np.sqrt(images / images.sum()), color=shade, alpha=0.7)
        axis.set_title(method, fontsize=10)
        axis.grid(alpha=0.3)
    keys = schedule_keys(shades) | {"as often right as confident; over-confident lies below": {"linestyle": ":"}}
    explain(figure, keys, "confidence of the answer", "share of right answers")
    return figure


def draw_tuning(tuned: Sequence[dict], methods: Sequence[str]):
    """By method and schedule, the expected best validation error of k of its points, on the first fold, where all ran.

    Only the points of the method's own design: those taken over from its parts were not drawn from its space.
    """
    shades = shades_of(tuned)
    designed = by_method(row for row in tuned if row["origin"] == "design" and row["val_error_fold_0"] != "")
    named = [method for method in methods if method in designed]
    figure, axes = panels(len(named), 4, 2.5, 1.9, sharex=True)
    for axis, method in zip(axes, named, strict=True):
        lines = []
        for schedule, shade in shades.items():
            errors = [100 * row["val_error_fold_0"] for row in designed[method] if row["schedule"] == schedule]
            lines.append(expected_best(errors))
            axis.plot(range(1, len(errors) + 1), lines[-1], "o-", markersize=3, color=shade)
        low = min(line[-1] for line in lines if line)
        axis.set_title(method, fontsize=10)
        # all panels span the same ratio, so that a slope means the same relative gain in each
        axis.set_yscale("log")
        axis.set_ylim(low * 0.96, low * 2)
        ticks = np.linspace(low, low * 1.9, 4)
        axis.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_xticks([1, 4, 8, 12, 16])
    explain(figure, schedule_keys(shades), "random points tried", "expected best validation error in %")
    return figure
