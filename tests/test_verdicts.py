"""support/verdicts.py: the class's sentences, judged on made-up numbers."""

import numpy as np
import pytest

from support.statistics import PLAIN
from support.verdicts import HOLDS, HOLDS_NOT, JUDGES, RETUNED, UNDECIDED

FOLDS = (3, 4, 5, 6, 7)
BUT = "holds with a condition: "


def made_up(levels, noise=0.0, folds=FOLDS, **more):
    """Rows by method, value and column. Folds differ by a hundredth, alike for all, and by `noise` times the level."""
    rng = np.random.default_rng(0)
    return [
        {"method": method, "value": value, "fold": fold, "axis": "x", "schedule": "one-cycle"}
        | {key: level * (1 + 0.01 * (fold - 5) + (noise + 1e-4) * rng.normal()) for key, level in columns.items()}
        | {key: made(value) if callable(made) else made for key, made in more.items()}
        for method, by_value in levels.items()
        for value, columns in by_value.items()
        for fold in folds
    ]


def error_rows(by_method, column="error/test", **more):
    return made_up({m: {v: {column: level} for v, level in values.items()} for m, values in by_method.items()}, **more)


@pytest.mark.parametrize(
    ("few", "many", "word"),
    [
        ((0.06, 0.05), (0.02, 0.021), HOLDS),
        ((0.06, 0.05), (0.015, 0.016), HOLDS_NOT),
        ((0.07, 0.07), (0.01, 0.01), HOLDS_NOT),
        ((0.06, 0.05), (0.02, 0.016), BUT + "only L2; not elastic"),
    ],
)
def test_verdict_on_fractions(few, many, word):
    levels = {PLAIN: {0.05: 0.07, 0.9: 0.04}, PLAIN + RETUNED: {0.9: 0.02}}  # untuned, it errs twice as often at 0.9
    for name, one, other in zip(("L2", "elastic"), few, many, strict=True):
        levels |= {name: {0.05: one, 0.9: 0.03}, name + RETUNED: {0.9: other}}
    assert JUDGES["fraction"](error_rows(levels))[0] == word
    assert JUDGES["fraction"](error_rows(levels, noise=0.5))[0] == UNDECIDED


def test_a_method_that_fails_is_named_though_nothing_is_shown_of_the_others():
    levels = {PLAIN: {0.05: 0.07, 0.9: 0.04}, PLAIN + RETUNED: {0.9: 0.02}}
    levels |= {"L2": {0.05: 0.06, 0.9: 0.03}, "L2" + RETUNED: {0.9: 0.01}}
    rows = error_rows(levels) + error_rows({"dropout": {0.05: 0.07}, "dropout" + RETUNED: {0.9: 0.02}}, noise=0.5)
    word, numbers = JUDGES["fraction"](rows)
    assert word == "undecided; not for L2" and any(text.startswith("L2 (retuned): ratio 0.5 [") for text in numbers)


@pytest.mark.parametrize(
    ("sizes", "noise", "word"),
    [
        (((0.5, 0.4, 0.3, 0.2), (0.5, 0.3, 0.2, 0.1)), 0, HOLDS),
        (((0.5, 0.4, 0.3, 0.2), (0.2, 0.3, 0.4, 0.5)), 0, BUT + "only L1; not L2"),
        (((0.2, 0.3, 0.4, 0.5), (0.2, 0.3, 0.4, 0.5)), 0, HOLDS_NOT),
        (((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5, 0.5)), 0.1, UNDECIDED),
    ],
)
def test_verdict_on_strengths(sizes, noise, word):
    strengths = (0.0, 1e-6, 1e-4, 1e-2)
    rows = {m: dict(zip(strengths, one, strict=True)) for m, one in zip(("L1", "L2"), sizes, strict=True)}
    found, numbers = JUDGES["lambda"](error_rows(rows, "rms", noise=noise))
    first = float(numbers[0].split("times ")[1].split()[0])
    assert found == word and (noise or first == pytest.approx(sizes[0][1] / sizes[0][0], rel=0.01))


@pytest.mark.parametrize(
    ("error", "seconds", "noise", "word"),
    [
        (0.062, 15.0, 0, HOLDS),
        (0.068, 10.0, 0, HOLDS_NOT),
        (0.065, 10.0, 0.05, UNDECIDED),
        (0.062, 60.0, 0, BUT + "it takes the time of 6.0 networks"),
    ],
)
def test_verdict_on_dropout(error, seconds, noise, word):
    plain = {PLAIN: {1: 0.07, 2: 0.065, 5: 0.061, 10: 0.06}}
    rows = error_rows(plain, noise=noise, seconds=10.0, deviation=5e-3, n=10)
    rows += error_rows({"dropout": {0: error, 50: error - 0.001}}, noise=noise, seconds=seconds)
    found, numbers = JUDGES["dropout"](rows)
    assert found == word
    if not noise:
        assert any("mean of 50 masks beside none: -0.10" in text for text in numbers)
        assert numbers[-1] == "deviation of one network in points: 0.50 by seed, by fold not to be told from 0"
        for row in rows:
            row["deviation"] = 1e-4
        assert JUDGES["dropout"](rows)[1][-1].endswith("0.01 by seed, by fold 0.11")


@pytest.mark.parametrize(
    ("norm", "word"),
    [
        ((10, 20, 30, 40), HOLDS),
        ((150, None, None, None), HOLDS_NOT),
        ((10, 20, 30, None), BUT + "only faster; undecided: more stable (at one rate only, 0.01)"),
        ((150, 150, 150, 150), BUT + "only more stable; not faster"),
        ((100, 120, 150, None), "undecided; not for faster"),
    ],
)
def test_verdict_on_normalisation(norm, word):
    rates, found = (1e-4, 1e-3, 1e-2, 1e-1), {"none": (100, 120, None, None), "batch norm": norm}
    rows = [
        {"method": method, "value": rate, "fold": fold, "epoch": 300}
        | {"epochs to cost": "" if epochs is None else epochs + fold}
        for method, reached in found.items()
        for rate, epochs in zip(rates, reached, strict=True)
        for fold in FOLDS
    ]
    assert JUDGES["normalisation"](rows)[0] == word


@pytest.mark.parametrize(
    ("layer", "none", "noise", "word"),
    [
        ((0.05, 0.06, 0.06), 0.07, 0, HOLDS),
        ((0.09, 0.06, 0.06), 0.07, 0, HOLDS_NOT),
        ((0.08, 0.06, 0.06), 0.07, 0.2, UNDECIDED),
        ((0.05, 0.04, 0.04), 0.07, 0, BUT + "better in the largest batch too"),
        ((0.071, 0.06, 0.06), 0.07, 0, BUT + "it is batch norm that fails at 2, layer norm is not shown to beat none there"),
    ],
)  # fmt: skip
def test_verdict_on_batch_sizes(layer, none, noise, word):
    sizes = (2, 10, 300)
    levels = {"batch norm": (0.08, 0.065, 0.05), "layer norm": layer, "none": (none,) * 3}
    rows = error_rows({m: dict(zip(sizes, one, strict=True)) for m, one in levels.items()}, noise=noise)
    found, numbers = JUDGES["batch-size"](rows)
    cross = "is between 10 and 300" if layer[1] < 0.065 < 0.08 > layer[0] and layer[2] > 0.05 and not noise else "told"
    assert found == word and cross in numbers[-1]


@pytest.mark.parametrize(
    ("error", "sixes", "noise", "word"),
    [
        ((0.07, 0.04, 0.05), 0.008, 0, HOLDS),
        ((0.07, 0.08, 0.09), 0.008, 0, HOLDS_NOT),
        ((0.07, 0.069, 0.09), 0.008, 0.1, UNDECIDED),
        ((0.07, 0.04, 0.09), 0.003, 0, BUT + "confusions of 6 and 9 are 5 % of the points lost up to 180 degrees"),
        ((0.07, 0.04, 0.039), 0.003, 0, BUT + "confusions of 6 and 9 are no clear share of the points lost up to 180 degrees"),
    ],
)  # fmt: skip
def test_verdict_on_rotations(error, sixes, noise, word):
    confused = (0.0005, 0.0005, sixes)
    values = {
        angle: {"error/test": e, "error/val": e + 0.01 * (angle == 180), "6 and 9": c}
        for angle, e, c in zip((0.0, 15.0, 180.0), error, confused, strict=True)
    }
    found, numbers = JUDGES["rotation"](made_up({PLAIN: values}, noise=noise))
    assert found == word and (noise or f"none: {100 * (error[1] - error[0]):+.2f} [" in numbers[0])


@pytest.mark.parametrize(
    ("effects", "noise", "word"),
    [
        ((-0.02, -0.03), 0, HOLDS),
        ((-0.01, -0.012), 0, HOLDS_NOT),
        ((-0.02, -0.01), 0, BUT + "only A + B; not C + D"),
        ((-0.012, -0.012), 0.5, UNDECIDED),
    ],
)
def test_verdict_on_combinations(effects, noise, word):
    levels = {"best part": (-0.012, -0.012), "other part": (-0.004,) * 2, "sum of both": (-0.016,) * 2}
    by_method = {
        m: dict(zip(("A + B", "C + D"), one, strict=True)) for m, one in (levels | {"combination": effects}).items()
    }
    found, numbers = JUDGES["combination"](error_rows(by_method, "effect", noise=noise, folds=range(3, 15)))
    assert found == word and all("beside the sum of both, " in text for text in numbers)
    few = JUDGES["combination"](error_rows(by_method, "effect", noise=noise))
    assert few[0] == UNDECIDED and all("too few folds" in text for text in few[1])
