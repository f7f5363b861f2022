"""Tables and figures of the class's sentences: sweeps of one setting over values, from the files that they wrote.

A folder holds a CSV file for each sentence, whose rows are described in support/verdicts.py. Nothing here trains.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support import figures, report, statistics
from support.shell import as_text
from support.verdicts import COST, JUDGES, SMALL, UNDECIDED, means, methods_of, series

# Of a column: what it is, by how much it is multiplied, and its scale.
LABELS = {
    "error/test": ("test error in %", 100, "log"),
    "ratio": ("test error over the baseline's", 1, "log"),
    "rms": ("root mean square of the weights", 1, "log"),
    "small": (f"share of weights below {SMALL:g}", 1, "linear"),
    "loss/train": ("training cost in nats", 1, "log"),
    "epochs to cost": (f"epochs to a training cost of {COST:g}", 1, "log"),
    "never": (f"share of runs that never come to {COST:g}", 1, "linear"),
    "6 and 9": ("confusions of 6 and 9", 1, "linear"),
    "effect": ("change of the test error in points", 100, "linear"),
}
X_LABELS = {
    "images": "training images", "seconds": "seconds of training", "lr": "learning rate", "batch_size": "batch size",
    "rotate": "rotation of up to so many degrees, either way",
}  # fmt: skip


def derived(rows: Sequence[dict]) -> list[dict]:
    """`rows` with the columns that follow from others: ratio, never, and 6 and 9."""
    base = series(rows, statistics.BASELINE, "error/test")
    found = []
    for row in rows:
        row = dict(row)
        if (reference := base.get(row["value"], {}).get(row["fold"])) and "error/test" in row:
            row["ratio"] = row["error/test"] / reference
        if "epochs to cost" in row:
            row["never"] = int(row["epochs to cost"] in (None, ""))
        if row.get("6 as 9") not in (None, ""):
            row["6 and 9"] = row["6 as 9"] + row["9 as 6"]
        found.append(row)
    return found


def draw(one, rows: Sequence[dict], colour: dict[str, str]):
    """A panel for each column that is drawn: means and 95 % intervals over folds, a line a method."""
    figure, axes = figures.panels(len(one.drawn), 2, 4.6, 3.4)
    counted = {row["method"]: f": number of {row['axis']}" for row in rows if one.x == "seconds"}
    for column, axis in zip(one.drawn, axes, strict=True):
        text, factor, scale = LABELS[column]
        axis.set_xscale("log" if one.log else "linear")  # here, since it takes away the names of places
        places, positive = set(), False
        for number, method in enumerate(methods_of(rows)):
            values = series(rows, method, column)
            at = means(series(rows, method, one.x)) if one.x != "value" else {value: value for value in values}
            if any(isinstance(value, str) for value in values):
                at = {value: place + 0.08 * number for place, value in enumerate(values)}
            estimates = [statistics.mean_and_interval(list(values[value].values())) for value in values]
            x = np.array([at[value] for value in values], float)
            if one.log and (x > 0).any():  # 0 stands to the left of all others
                x = np.where(x > 0, x, min(x[x > 0]) / 3)
            y, half = (factor * np.array(column) for column in zip(*estimates, strict=True)) if estimates else ([], [])
            positive |= any(mean > 0 for mean in y)
            places |= set(x)
            parent, _, variant = method.partition(" (")
            style = "o" if values and isinstance(next(iter(values)), str) else "o--" if variant else "o-"
            shade = colour.get(parent, "#000000" if parent == "none" else figures.PALETTE[number])
            name = method + counted.get(method, "")
            axis.errorbar(x, y, half, fmt=style, markersize=4, capsize=2, linewidth=1.2, color=shade, label=name)
            if style == "o":
                axis.set_xticks(range(len(at)), at, rotation=20, ha="right", fontsize=8)
            if method in counted:  # the axis does not say how many; above and below in turn, as two may be one point
                for place, (value, *point) in enumerate(zip(values, x, y, strict=True)):
                    where = {"xytext": (-5, -12), "ha": "right"} if place % 2 else {"xytext": (5, 5)}
                    axis.annotate(as_text(value), point, textcoords="offset points", fontsize=8, color=shade, **where)
        if one.log and places:
            figures.plain_ticks(axis.xaxis, sorted(places) if not counted and len(places) < 10 else ())
            axis.tick_params("x", labelsize=8)  # seven of them side by side
        axis.set_yscale(scale if positive else "linear")
        if axis.get_yscale() == "log":
            figures.plain_ticks(axis.yaxis)
        axis.set_ylabel(text)
        names = [one.x] if one.x != "value" else dict.fromkeys(sweep.axis for sweep in one.sweeps)
        leftmost = "; leftmost: 0" if one.log and any(row["value"] == 0 for row in rows) and one.x == "value" else ""
        axis.set_xlabel(", ".join(X_LABELS.get(name, name) for name in names) + leftmost)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    return figure


def table(one, rows: Sequence[dict]) -> list[str]:
    """Means and intervals of what is drawn, as Markdown."""
    cells = []
    for method in methods_of(rows):
        for value in dict.fromkeys(row["value"] for row in rows if row["method"] == method):
            folds = [row for row in rows if (row["method"], row["value"]) == (method, value)]
            line = [method, as_text(value), str(len(folds))]
            for column in one.drawn:
                found = [LABELS[column][1] * row[column] for row in folds if row.get(column) not in (None, "")]
                mean, half = statistics.mean_and_interval(found) if found else (math.nan, math.nan)
                line.append("" if not found else f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}")
            cells.append(line)
    return report.markdown_table(["method", "value", "folds", *(LABELS[column][0] for column in one.drawn)], cells)


def write_report(folder: Path, sentences: Sequence, methods: Sequence[str]) -> list[str]:
    """Writes the tables and figures that follow from the CSV files of `sentences` in `folder` beside them.

    A sentence has the fields of sentences.Sentence; `methods` are all that have a colour. Returns the verdicts' lines
    for a terminal. What has no file is left out. From the same files come the same tables.
    """
    colour = figures.colours(methods)
    cells = []
    for number, one in enumerate(sentences, start=1):
        path = folder / f"{one.name}.csv"
        if not path.exists():
            continue
        rows = derived(report.read_csv(path))
        verdict = JUDGES[one.name](rows)
        rule = " ".join(JUDGES[one.name].__doc__.split())
        lines = [f"**{one.claim}** It {verdict.word}." if verdict.word != UNDECIDED else f"**{one.claim}** Undecided."]
        lines += ["", *(f"- {text}" for text in verdict.numbers), "", f"Rule: {rule}", "", *table(one, rows)]
        report.write_text(folder / f"{one.name}.md", "\n".join(lines) + "\n")
        with figures.reproducible_figures():
            figures.save_figure(draw(one, rows, colour), folder / one.name)
        cells.append([f"{one.name} ({number})", one.claim, verdict.word])
    if not cells:
        return [f"no results in {folder} yet: run python sentences.py, and copy its CSV files there"]
    header = ["sentence", "claim", "verdict"]
    note = (
        'A sentence that "does not hold" is one that these runs do not bear out; the rules stand in each one\'s file.'
    )
    report.write_text(folder / "verdicts.md", "\n".join([*report.markdown_table(header, cells), "", note]) + "\n")
    return report.text_table([header[0], header[2]], [[name, word] for name, _, word in cells])
