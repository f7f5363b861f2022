"""Tables and figures of the class's sentences: sweeps of one setting over values, from the files that they wrote.

A folder holds a CSV file for each sentence, whose rows are described in support/verdicts.py. Nothing here trains.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support import figures, report
from support.shell import as_text
from support.statistics import PLAIN
from support.verdicts import COST, JUDGES, RETUNED, SMALL, UNDECIDED, by_value, interval, methods_of

LEAST_FOLDS = 5  # with fewer, an interval may be narrow by luck
# Of a column: what it is, by how much it is multiplied, and its scale.
LABELS = {
    "error/test": ("test error in %", 100, "log"),
    "ratio": ("test error over the plain network's", 1, "log"),
    "rms": ("root mean square of the weights", 1, "log"),
    "small": (f"share of weights below {SMALL:g}", 1, "linear"),
    "loss/train": ("training cost in nats", 1, "log"),
    "epochs to cost": (f"epochs to a training cost of {COST:g}", 1, "log"),
    "never": (f"share of runs that never come to {COST:g}", 1, "linear"),
    "6 and 9": ("confusions of 6 and 9 in % of the images", 100, "linear"),
    "effect": ("change of the test error in points", 100, "linear"),
}
X_LABELS = {
    "images": "training images", "seconds": "seconds of training", "lr": "learning rate", "batch_size": "batch size",
    "rotate": "rotation of up to so many degrees, either way", "combination": "",
}  # fmt: skip


def derived(rows: Sequence[dict]) -> list[dict]:
    """`rows` with two columns that follow from others: ratio to the plain network, tuned alike, and never."""
    errors = {(row["method"], row["value"], row["fold"]): row.get("error/test") for row in rows}
    found = []
    for row in rows:
        plain = errors.get((PLAIN + RETUNED * row["method"].endswith(RETUNED), row["value"], row["fold"]))
        found.append(row | ({"ratio": row["error/test"] / plain} if plain else {}))
        found[-1] |= {"never": int(row["epochs to cost"] in (None, ""))} if "epochs to cost" in row else {}
    return found


def draw_sentence(one, rows: Sequence[dict], colour: dict[str, str]):
    """A panel for each column that is drawn: means and 95 % intervals over folds, a line a method."""
    order = sorted({row["value"] for row in rows if isinstance(row["value"], str)})
    figure, axes = figures.panels(len(one.drawn), 2, 9.2 if order else 4.6, 3.4)
    for column, axis in zip(one.drawn, axes, strict=True):
        text, factor, scale = LABELS[column]
        axis.set(xscale="log" if one.log else "linear", yscale=scale, ylabel=text)
        places: set[float] = set()
        for number, method in enumerate(methods_of(rows)):
            found = {value: interval(folds) for value, folds in by_value(rows, method, column, factor).items()}
            x = [order.index(value) + 0.1 * number for value in found] if order else list(found)
            if one.x != "value":
                x = [np.nanmean(folds) for folds in by_value(rows, method, one.x).values()]
            if one.log and min(x) == 0:  # it stands to the left of all others
                x[0] = x[1] / 3
            y, half = np.array([(value.mean, value.high - value.mean) for value in found.values()]).T
            parent, _, variant = method.partition(" (")
            shade = colour.get(parent, "#000000" if parent == "none" else figures.PALETTE[number])
            style = "o" if order else "o-" if not variant else "o--" if len(x) > 1 else "D"
            name = f"{method}: number of {one.sweeps[number].axis}" if one.x == "seconds" else method
            axis.errorbar(x, y, half, fmt=style, markersize=4, capsize=2, linewidth=1.2, color=shade, label=name)
            places |= set(x)
            for place, *point in zip(found, x, y, strict=True) if one.x == "seconds" else ():  # how many of them
                beside = (5, -12 if place == 0 else 5)
                axis.annotate(as_text(place), point, beside, textcoords="offset points", fontsize=8, color=shade)
        if order:
            axis.set_xticks(range(len(order)), order, rotation=20, ha="right")
        elif one.log:
            low, high = math.log10(min(places)), math.log10(max(places))
            decades = 10.0 ** np.arange(math.ceil(low), high + 1e-9, 1 if high - low < 7 else 2)
            few = sorted(places) if len(places) < 8 else decades.tolist()
            figures.plain_ticks(axis.xaxis, few if one.x != "seconds" else ())
        low, high = axis.get_ylim()
        if scale == "log" and high > 3 * low:
            figures.plain_ticks(axis.yaxis)
        else:
            axis.set_yscale("linear")
        names = [one.x] if one.x != "value" else dict.fromkeys(row["axis"] for row in rows)
        leftmost = "; leftmost: 0" * (one.log and one.x == "value" and any(row["value"] == 0 for row in rows))
        axis.set_xlabel(", ".join(X_LABELS.get(name, name) for name in names) + leftmost)
        axis.tick_params("x", labelsize=8)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7, frameon=False)
    return figure


def sweep_table(one, rows: Sequence[dict]) -> list[str]:
    """Means and intervals of what is drawn, as Markdown."""
    cells = []
    for method in methods_of(rows):
        columns = [by_value(rows, method, column, LABELS[column][1]) for column in one.drawn]
        for value in columns[0]:
            found = [interval(column[value]) for column in columns]
            texts = [f"{each.mean:.4g} ± {each.high - each.mean:.2g}".removesuffix(" ± nan") for each in found]
            cells.append([method, as_text(value), *("" if text == "nan" else text for text in texts)])
    return report.markdown_table(["method", "value", *(LABELS[column][0] for column in one.drawn)], cells)


def write_sentences(folder: Path, sentences: Sequence, methods: Sequence[str]) -> list[str]:
    """Writes the tables and figures that follow from the CSV files of `sentences` in `folder`; returns the verdicts.

    A sentence has the fields of sentences.Sentence; `methods` are all that have a colour. What has no file is left out;
    what an earlier version wrote, without schedules, stays as it is, with its verdict.
    """
    cells, notes = [], []
    for place, one in enumerate(sentences, start=1):
        path, text = folder / f"{one.name}.csv", folder / f"{one.name}.md"
        if not path.exists():
            continue
        rows = derived(report.read_csv(path))
        if "schedule" in rows[0]:
            word, numbers = JUDGES[one.name](rows)
            word = word if len({row["fold"] for row in rows}) >= LEAST_FOLDS else f"{UNDECIDED}: too few folds"
            rule, before = " ".join(JUDGES[one.name].__doc__.split()).split(" Before: ")
            said = f"It {'is ' * word.startswith(UNDECIDED)}{word}."
            lines = [f"**{one.claim}** {said}", "", *(f"- {number}" for number in numbers), "", f"Runs: {one.runs}", ""]
            lines += [f"Rule: {rule}", "", f"Changed after numbers were seen; before: {before}", ""]
            report.write_text(text, "\n".join([*lines, *sweep_table(one, rows)]) + "\n")
            with figures.reproducible_figures():
                figures.save_figure(draw_sentence(one, rows, figures.colours(methods)), folder / one.name)
        else:
            notes.append(f"{path.name}: of an earlier version, and left as it is; run python sentences.py {one.name}")
        first = text.read_text(encoding="utf-8").split("\n")[0] if text.exists() else ""
        cells.append([f"{one.name} ({place})", one.claim, re.sub(r"^\*\*.*\*\* (It (is )?)?|\.$", "", first)])
    if not cells:
        return [f"no results in {folder} yet: run python sentences.py, and copy its CSV files there"]
    lines = report.markdown_table(["sentence", "claim", "verdict"], cells)
    if len(notes) < len(cells):
        note = "Undecided: neither shown nor excluded by these runs. The rules stand in each sentence's file."
        report.write_text(folder / "verdicts.md", "\n".join([*lines, "", note]) + "\n")
    return [*report.markdown_table(["sentence", "verdict"], [[name, word] for name, _, word in cells]), *notes]
