"""Tables and figures of the class's sentences: sweeps of one setting over values, from the files that they wrote.

A folder holds a CSV file for each sentence, whose rows are described in support/verdicts.py. Nothing here trains.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from support import figures, report
from support.shell import as_text
from support.statistics import PLAIN, by_method
from support.verdicts import COST, JUDGES, RETUNED, SMALL, UNDECIDED, by_value, interval

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
}


def derived(rows: Sequence[dict]) -> list[dict]:
    """`rows` with two columns that follow from others: ratio to the plain network, tuned alike, and never."""
    errors = {(row["method"], row["value"], row["fold"]): row.get("error/test") for row in rows}
    for row in rows:
        plain = PLAIN + RETUNED * row["method"].endswith(RETUNED)
        if beside := errors.get((plain, row["value"], row["fold"])):
            row["ratio"] = row["error/test"] / beside
        if "epochs to cost" in row:
            row["never"] = int(row["epochs to cost"] == "")
    return rows


def draw_sentence(one, rows: Sequence[dict]):
    """A panel for each column that is drawn: means and 95 % intervals over folds, a line a method."""
    parents = list(dict.fromkeys(method.partition(" (")[0] for method in by_method(rows)))
    figure, axes = figures.panels([LABELS[column][0] for column in one.drawn], 2, 4.6, 3.4)
    for column, axis in zip(one.drawn, axes, strict=True):
        _, factor, scale = LABELS[column]
        axis.set(xscale="log" if one.log else "linear", yscale=scale)
        for method in by_method(rows):
            found = {value: interval(folds) for value, folds in by_value(rows, method, column, factor).items()}
            x = list(found)
            if one.log and x[0] == 0:  # it stands to the left of all others
                x[0] = x[1] / 3
            y, half = np.array([(value.mean, value.high - value.mean) for value in found.values()]).T
            parent, _, variant = method.partition(" (")
            style = "o-" if not variant else "o--" if len(x) > 1 else "D"
            colour = figures.PALETTE[5 * parents.index(parent) % len(figures.PALETTE)]  # unlike that of the next one
            look = {"color": colour, "markersize": 4, "capsize": 2, "linewidth": 1.2}
            axis.errorbar(x, y, half, fmt=style, label=method, **look)
        for each, scale_of_it in ((axis.xaxis, axis.get_xscale()), (axis.yaxis, scale)):
            if scale_of_it == "log":
                figures.plain_ticks(each)
        leftmost = "; leftmost: 0" * (one.log and any(row["value"] == 0 for row in rows))
        axis.set_xlabel(", ".join(dict.fromkeys(row["axis"] for row in rows)) + leftmost)
        axis.tick_params("x", labelsize=8)
    figures.explain(figure, axes[0])
    return figure


def sweep_table(one, rows: Sequence[dict]) -> list[str]:
    """Means and intervals of what is drawn, as Markdown."""
    cells = []
    for method in by_method(rows):
        columns = [by_value(rows, method, column, LABELS[column][1]) for column in one.drawn]
        for value in columns[0]:
            found = [interval(column[value]) for column in columns]
            texts = [f"{each.mean:.4g} ± {each.high - each.mean:.2g}".removesuffix(" ± nan") for each in found]
            cells.append([method, as_text(value), *("" if text == "nan" else text for text in texts)])
    return report.markdown_table(["method", "value", *(LABELS[column][0] for column in one.drawn)], cells)


def write_sentences(folder: Path, sentences: Sequence, groups: report.Groups, parts: dict) -> list[str]:
    """Writes what follows from the CSV files of `sentences` (sentences.Sentence) in `folder`; returns the verdicts.

    The one without sweeps follows from `groups`, the runs of compare.py, if there are any, and `parts` of combinations.
    """
    cells = []
    for number, one in enumerate(sentences, start=1):
        path = folder / f"{one.name}.csv"
        if one.sweeps and path.exists():
            rows = derived(report.read_csv(path))
            folds, table = len({row["fold"] for row in rows}), sweep_table(one, rows)
            with figures.reproducible_figures():
                figures.save_figure(draw_sentence(one, rows), folder / one.name)
        elif not one.sweeps and groups:
            rows = report.compare_pairs(groups, report.beside_best_part(groups, parts))
            folds, table = max(map(len, groups.values())), report.combinations_table(groups, parts)
        else:
            continue
        word, evidence = JUDGES[one.name](rows)
        word = word if folds >= LEAST_FOLDS else f"{UNDECIDED}: too few folds"
        rule, before = " ".join(JUDGES[one.name].__doc__.split()).split(" Before: ")
        said = f"It {'is ' * word.startswith(UNDECIDED)}{word}."
        lines = [f"**{one.claim}** {said}", "", *(f"- {text}" for text in evidence), "", f"Runs: {one.runs}", ""]
        lines += [f"Rule: {rule}", "", f"Changed after numbers were seen; before: {before}", "", *table]
        report.write_text(folder / f"{one.name}.md", "\n".join(lines) + "\n")
        cells.append([f"{one.name} ({number})", one.claim, word])
    note = "Undecided: neither shown nor excluded by these runs. The rules stand in each sentence's file."
    lines = report.markdown_table(["sentence", "claim", "verdict"], cells, note)
    report.write_text(folder / "verdicts.md", "\n".join(lines) + "\n")
    return report.markdown_table(["sentence", "verdict"], [[name, word] for name, _, word in cells])
