"""support/verdicts.py: the class's sentences, judged on made-up numbers."""

import math

import pytest

from support.verdicts import HOLDS, HOLDS_NOT, JUDGES, UNDECIDED

FOLDS = (3, 4, 5, 6, 7)


def made_up(errors, folds=FOLDS, **more):
    """Rows of a column by method and value, with noise over the folds that is the same for all."""
    return [
        {"method": method, "value": value, "fold": fold, "axis": "x"}
        | {column: level * (1 + 0.01 * (fold - 5)) + 1e-5 * (7 * index % 5) for column, level in columns.items()}
        | {key: made(value) if callable(made) else made for key, made in more.items()}
        for method, by_value in errors.items()
        for value, columns in by_value.items()
        for index, fold in enumerate(folds)
    ]


def error_rows(by_method, column="error/test", **more):
    errors = {m: {value: {column: level} for value, level in values.items()} for m, values in by_method.items()}
    return made_up(errors, **more)


@pytest.mark.parametrize(
    ("few", "many", "word"),
    [
        ((0.06, 0.05), (0.02, 0.02), HOLDS),
        ((0.06, 0.05), (0.015, 0.016), HOLDS_NOT),
        ((0.07, 0.07), (0.02, 0.02), HOLDS_NOT),
        ((0.06, 0.05), (0.02, 0.016), "holds with a condition: not for elastic"),
        ((0.06, 0.05), (0.03, 0.02), UNDECIDED),
    ],
)
def test_verdict_on_fractions(few, many, word):
    base = {"baseline": {0.05: 0.07, 0.2: 0.04, 0.9: 0.02}}
    methods = {name: {0.05: f, 0.9: m} for name, f, m in zip(("L2", "elastic"), few, many, strict=True)}
    rows = error_rows(base | methods, images=lambda value: round(60_000 * value))
    verdict = JUDGES["fraction"](rows)
    assert verdict.word == word
    if word == HOLDS:  # 0.05 lies between 0.07 with 3,000 images and 0.04 with 12,000
        (worth,) = [int(t.split("about ")[1]) for t in verdict.numbers if t.startswith("elastic: with")]
        assert worth == pytest.approx(3000 * 4 ** (math.log(7 / 5) / math.log(7 / 4)), rel=0.02)


@pytest.mark.parametrize(
    ("sizes", "word"),
    [
        (((0.5, 0.4, 0.3, 0.2), (0.5, 0.3, 0.2, 0.1)), HOLDS),
        (((0.5, 0.4, 0.3, 0.2), (0.2, 0.3, 0.4, 0.5)), "holds with a condition: no trend for L2"),
        (((0.2, 0.3, 0.4, 0.5), (0.2, 0.3, 0.4, 0.5)), HOLDS_NOT),
        (((0.5, 0.4, 0.41, 0.2), (0.5, 0.3, 0.2, 0.1)), "holds with a condition: not at every step for L1"),
    ],
)
def test_verdict_on_strengths(sizes, word):
    strengths = (0.0, 1e-6, 1e-4, 1e-2)
    rows = {m: dict(zip(strengths, one, strict=True)) for m, one in zip(("L1", "L2"), sizes, strict=True)}
    verdict = JUDGES["lambda"](error_rows(rows, "rms"))
    assert verdict.word == word and sizes[0][1] / sizes[0][0] == pytest.approx(
        float(verdict.numbers[0].split("times ")[1].split()[0]), rel=0.01
    )


@pytest.mark.parametrize(
    ("error", "seconds", "word"),
    [
        (0.062, 15.0, HOLDS),
        (0.071, 10.0, HOLDS_NOT),
        (0.067, 12.0, "holds with a condition: as good as fewer than 2 networks"),
        (0.062, 60.0, "holds with a condition: it takes the time of 6.0"),
    ],
)
def test_verdict_on_dropout(error, seconds, word):
    rows = error_rows(
        {"baseline": {1: 0.07, 2: 0.065, 3: 0.0625, 5: 0.061, 10: 0.06}}, seconds=10.0, deviation=1e-3, n=10
    )
    rows += error_rows({"dropout": {0: error, 50: error - 0.001}}, seconds=seconds)
    verdict = JUDGES["dropout"](rows)
    assert verdict.word == word
    assert any("mean over 50 masks beside no masks: -0.10" in text for text in verdict.numbers)
    assert any("0.10 by seed" in text for text in verdict.numbers)


@pytest.mark.parametrize(
    ("norm", "word"),
    [
        ((10, 20, 30), HOLDS),
        ((150, None, None), HOLDS_NOT),
        ((10, 20, None), "holds with a condition: faster, not more stable"),
        ((150, 150, 150), "holds with a condition: more stable, not faster"),
    ],
)
def test_verdict_on_normalisation(norm, word):
    rates = (1e-4, 1e-3, 1e-1)
    found = {"none": (100, 120, None), "batch norm": norm, "layer norm": (90, 90, 90)}
    rows = [
        {"method": method, "value": rate, "fold": fold, "status": "finished", "epoch": 300}
        | {"epochs to cost": "" if epochs is None else epochs + fold}
        for method, reached in found.items()
        for rate, epochs in zip(rates, reached, strict=True)
        for fold in FOLDS
    ]
    assert JUDGES["normalisation"](rows).word == word


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        ((0.06, 0.06, 0.06), HOLDS),
        ((0.09, 0.06, 0.06), HOLDS_NOT),
        ((0.06, 0.04, 0.04), "holds with a condition: better in large batches too"),
    ],
)
def test_verdict_on_batch_sizes(layer, word):
    sizes = (2, 10, 300)
    batch = {"batch norm": dict(zip(sizes, (0.08, 0.06, 0.05), strict=True))}
    verdict = JUDGES["batch-size"](error_rows(batch | {"layer norm": dict(zip(sizes, layer, strict=True))}))
    assert verdict.word == word


def test_where_layer_and_batch_norm_cross():
    rows = error_rows({"batch norm": {10: 0.08, 1000: 0.04}, "layer norm": {10: 0.06, 1000: 0.06}})
    assert "they cross at a batch of 100" in JUDGES["batch-size"](rows).numbers


@pytest.mark.parametrize(
    ("error", "confused", "word"),
    [
        ((0.07, 0.04, 0.08), (9, 8, 80), HOLDS),
        ((0.07, 0.08, 0.09), (9, 8, 80), HOLDS_NOT),
        ((0.07, 0.04, 0.04), (9, 8, 8), "holds with a condition: up to 180 degrees do no harm either"),
    ],
)
def test_verdict_on_rotations(error, confused, word):
    values = {
        angle: {"error/test": e, "error/val": e, "6 and 9": c}
        for angle, e, c in zip((0.0, 15.0, 180.0), error, confused, strict=True)
    }
    assert JUDGES["rotation"](made_up({"baseline": values})).word == word


@pytest.mark.parametrize(
    ("effects", "word"),
    [((-0.02, -0.03), HOLDS), ((-0.01, -0.01), HOLDS_NOT), ((-0.02, -0.01), "holds with a condition: only A + B")],
)
def test_verdict_on_combinations(effects, word):
    levels = {"better part": (-0.012, -0.012), "other part": (-0.004,) * 2, "sum of both": (-0.016,) * 2}
    rows = error_rows(
        {m: dict(zip(("A + B", "C + D"), one, strict=True)) for m, one in (levels | {"combination": effects}).items()},
        "effect",
        folds=range(3, 11),  # with five, no signed-rank test can tell anything
    )
    assert JUDGES["combination"](rows).word == word
