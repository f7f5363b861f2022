"""support/verdicts.py: the class's sentences, judged on made-up numbers."""

import numpy as np
import pytest

from support import statistics
from support.statistics import PLAIN
from support.verdicts import CONSTANT, HOLDS, HOLDS_NOT, JUDGES, RETUNED, UNDECIDED

BUT = "holds with a condition: "


def made_up(lines, column="error/test", noise=0.0, folds=range(3, 8), **more):
    """Rows by method, then by value: a level, or levels by column. Folds differ by a hundredth, alike for all, and by
    `noise` times the level, each for itself."""
    rng = np.random.default_rng(0)
    return [
        {"method": method, "value": value, "fold": fold, "schedule": "one-cycle"}
        | {name: level * (1 + 0.01 * (fold - 5) + (noise + 1e-4) * rng.normal()) for name, level in columns.items()}
        | more
        for method, levels in lines.items()
        for value, found in levels.items()
        for columns in [found if isinstance(found, dict) else {column: found}]
        for fold in folds
    ]


def fraction(few, many, **more):
    """Errors of L2 and elastic at 5 % and, retuned, at 90 %, where the plain network's are 0.07 and 0.02."""
    lines = {PLAIN: {0.05: 0.07, 0.9: 0.04}, PLAIN + RETUNED: {0.9: 0.02}}
    for name, one, other in zip(("L2", "elastic"), few, many, strict=True):
        lines |= {name: {0.05: one, 0.9: 0.03}, name + RETUNED: {0.9: other}}
    return made_up(lines, **more)


def strengths(l1, l2, **more):
    steps = (0.0, 1e-6, 1e-4, 1e-2)
    return made_up({m: dict(zip(steps, one, strict=True)) for m, one in (("L1", l1), ("L2", l2))}, "rms", **more)


def dropout(error, constant=None, seconds=15.0):
    plain, rows = {1: 0.07, 2: 0.065, 5: 0.06}, []
    for line, one in (("", error), (CONSTANT, constant or error)):
        rows += made_up({PLAIN + line: plain}, seconds=10.0) + made_up({"dropout" + line: {1: one}}, seconds=seconds)
    return rows


def normalisation(*epochs):
    """Epochs to the cost at four rates, 0 for never."""
    pairs = (("none", (100, 120, 0, 0)), ("batch norm", epochs))
    lines = {m: dict(zip((1e-4, 1e-3, 1e-2, 1e-1), found, strict=True)) for m, found in pairs}
    rows = made_up(lines, "epochs to cost", epoch=300)
    return [row | {"epochs to cost": row["epochs to cost"] or ""} for row in rows]


def batch_size(*layer, **more):
    by_method = {"batch norm": (0.08, 0.065, 0.05), "layer norm": layer, "none": (0.07,) * 3}
    return made_up({m: dict(zip((2, 10, 300), errors, strict=True)) for m, errors in by_method.items()}, **more)


def rotation(best, most, sixes, **more):
    angles = zip((0.0, 15.0, 180.0), (0.07, best, most), (0.06, 0.05, 0.1), (5e-4, 5e-4, sixes), strict=True)
    return made_up({PLAIN: {a: {"error/test": e, "error/val": v, "6 and 9": s} for a, e, v, s in angles}}, **more)


def combination(*gains, noise=1e-3):
    """What the tests say of two combinations on twelve folds, each beside its best part."""
    pairs = [("A + B", "A", "constant"), ("C + D", "C", "one-cycle")]
    folds = np.random.default_rng(0).normal(0, noise, 12)
    return dict(zip(pairs, statistics.tested([gain + folds for gain in gains]), strict=True))


FALLING, RISING, FLAT = (0.5, 0.4, 0.3, 0.2), (0.2, 0.3, 0.4, 0.5), (0.5,) * 4
WITH = " with batch norm"
CASES = [
    (HOLDS, "fraction", fraction((0.06, 0.05), (0.02, 0.021))),
    (HOLDS_NOT, "fraction", fraction((0.06, 0.05), (0.015, 0.016))),
    (HOLDS_NOT, "fraction", fraction((0.07, 0.07), (0.01, 0.01))),
    (BUT + "only L2; not elastic", "fraction", fraction((0.06, 0.05), (0.02, 0.016))),
    (UNDECIDED, "fraction", fraction((0.06, 0.05), (0.02, 0.021), noise=0.5)),
    (HOLDS, "lambda", strengths(FALLING, FALLING)),
    (BUT + "they grow with L2: 1.4 times at 1e-06", "lambda", strengths(FALLING, (0.5, 0.7, 0.3, 0.2))),
    (HOLDS_NOT, "lambda", strengths(RISING, RISING)),
    (BUT + "only L1; not L2", "lambda", strengths(FALLING, RISING)),
    (UNDECIDED, "lambda", strengths(FLAT, FLAT, noise=0.1)),
    (HOLDS, "dropout", dropout(0.062)),
    (HOLDS_NOT, "dropout", dropout(0.068)),
    (BUT + "only one-cycle; not constant", "dropout", dropout(0.062, constant=0.068)),
    (BUT + "it takes the time of 6.0 networks", "dropout", dropout(0.062, seconds=60.0)),
    (HOLDS, "normalisation", normalisation(10, 20, 30, 40)),
    (HOLDS_NOT, "normalisation", normalisation(150, 0, 0, 0)),
    (f"{BUT}only faster{WITH}; undecided: more stable{WITH} (at one rate only, 0.01)", "normalisation",
        normalisation(9, 9, 9, 0)),
    (f"{BUT}only faster{WITH}; undecided: more stable{WITH}", "normalisation", normalisation(10, 0, 30, 0)),
    (f"undecided; not for faster{WITH}", "normalisation", normalisation(100, 120, 150, 0)),
    (HOLDS, "batch-size", batch_size(0.05, 0.06, 0.06)),
    (HOLDS_NOT, "batch-size", batch_size(0.09, 0.06, 0.06)),
    (BUT + "better in the largest batch too", "batch-size", batch_size(0.05, 0.04, 0.04)),
    (BUT + "it is batch norm that fails at 2, layer norm is not shown to beat none there", "batch-size",
        batch_size(0.071, 0.06, 0.06)),
    (HOLDS, "rotation", rotation(0.04, 0.05, 0.008)),
    (HOLDS_NOT, "rotation", rotation(0.08, 0.09, 0.008)),
    (BUT + "confusions of 6 and 9 are 5 % of the points lost up to 180 degrees", "rotation",
        rotation(0.04, 0.09, 3e-3)),
    (BUT + "confusions of 6 and 9 are no clear share of the points lost up to 180 degrees", "rotation",
        rotation(0.04, 0.039, 3e-3)),
    (HOLDS, "combination", combination(-0.003, -0.02)),
    (HOLDS_NOT, "combination", combination(0.002, 0.0)),
    (BUT + "only A + B; not C + D", "combination", combination(-0.01, 0.002)),
    (UNDECIDED, "combination", combination(0.0, 0.0, noise=0.02)),
]  # fmt: skip


@pytest.mark.parametrize(("word", "name", "rows"), CASES, ids=[f"{name}: {word}" for word, name, _ in CASES])
def test_verdict(word, name, rows):
    assert JUDGES[name](rows)[0] == word


NUMBERS = [
    ("fraction", fraction((0.06, 0.05), (0.01, 0.02)), "L2 (retuned): ratio 0.5 ["),
    ("lambda", strengths(FALLING, RISING), "L1: correlation -1.00 [-1.00, -1.00], rms 0.5 at 0, 0.4 at 1e-06"),
    ("dropout", dropout(0.062), "one-cycle: dropout beside the mean of 2 plain: -0.3"),
    ("normalisation", normalisation(10, 20, 30, 40), "batch norm beside none: epochs times 0.1 ["),
    ("rotation", rotation(0.04, 0.09, 3e-3), "180 beside 15: +5.00 ["),
    ("combination", combination(-0.02, -0.03), "A + B beside A, constant: -2.00 ["),
]


def test_numbers_of_a_verdict():
    for name, rows, text in NUMBERS:
        assert any(text in number for number in JUDGES[name](rows)[1]), text
