"""sentences.py: every sentence on the digits, with few values, folds and epochs; verdicts on made-up numbers."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import test_compare
import torch
from helpers import Cut, contents, cut_at, refused

import compare
import data
import sentences
from model import Dropout
from sentences import SENTENCES, SentencesOptions
from support import report, sweeps
from support.folder import read_json
from support.shell import parse
from support.verdicts import HOLDS, HOLDS_NOT, JUDGES, UNDECIDED
from train import Config, train

inline, published = test_compare.inline, test_compare.published  # fixtures
SETTINGS = ("--data", "digits", "--device", "cpu", "--epochs", "4", "--folds", "2")
WITH_RUNS = [one.name for one in SENTENCES if one.sweeps]
VALUES = {  # of the values in the table, those that the digits are for
    "fraction": (0.05, 0.2, 0.9), "networks": (1, 2), "masks": (0, 2), "batch_size": (4, 30, 300),
    "lr": (1e-4, 1e-2), "rotate": (0.0, 15.0, 180.0),
}  # fmt: skip


@pytest.fixture
def small(monkeypatch, published):
    """The table with fewer values, and results of compare.py that are not there."""

    def fewer(sweep):
        if sweep.axis not in VALUES:
            return sweep._replace(values=sweep.values[::4])
        return sweep._replace(
            values=tuple(value for value in VALUES[sweep.axis] if value in sweep.values or value == 2)
        )

    table = [one._replace(sweeps=[fewer(sweep) for sweep in one.sweeps]) for one in SENTENCES]
    monkeypatch.setattr(sentences, "SENTENCES", table)
    monkeypatch.setattr(compare, "PUBLISHED", published)
    return {one.name: one for one in table}


def run(tmp_path, *arguments):
    """The folder with the results."""
    arguments = [*map(str, arguments), *SETTINGS, "--studies-dir", str(tmp_path)]
    sentences.main(arguments)
    return sentences.results_folder(parse(SentencesOptions, arguments))


# --- runs


@pytest.mark.parametrize("name", WITH_RUNS)
def test_every_sentence_from_its_command_to_its_verdict(small, inline, monkeypatch, tmp_path, capsys, name):
    folder = run(tmp_path, name)
    one = small[name]
    rows = report.read_csv(folder / f"{name}.csv")
    expected = [(s.method, value, fold) for s in one.sweeps for value in s.values for fold in (3, 4)]
    found = [(row["method"], row["value"], row["fold"]) for row in rows]
    assert sorted(found) == sorted(expected) and len(set(found)) == len(found)
    assert {path.name for path in folder.iterdir()} == {f"{name}{end}" for end in (".csv", ".md", ".png", ".svg")} | {
        "verdicts.md"
    }
    assert name in capsys.readouterr().out and all(0 <= row["error/test"] <= 1 for row in rows)
    assert not list(tmp_path.rglob("last.pt"))

    ran, before = len(inline), contents(folder)
    run(tmp_path, name)
    assert len(inline) == ran and contents(folder) == before, "never run twice"

    place = tmp_path / "published sentences"
    place.mkdir()
    (place / f"{name}.csv").write_bytes((folder / f"{name}.csv").read_bytes())
    monkeypatch.setattr(sentences, "PUBLISHED", place)
    sentences.main(["--report"])
    assert {path.name: text for path, text in contents(place).items()} == {
        path.name: text for path, text in before.items()
    }


@pytest.mark.parametrize("name", WITH_RUNS)
def test_every_value_reaches_its_run(small, inline, tmp_path, name):
    run(tmp_path, name)
    configs = [read_json(path, dict) for path in tmp_path.glob("sentences/runs/**/config.json")]
    for sweep in small[name].sweeps:
        if sweep.axis == "networks":
            seeds = {config["seed"] for config in configs if config["dropout"] == 0}
            assert seeds == {3 + 100, 3 + 200, 4 + 100, 4 + 200}
            continue
        tuned = compare.tuned_settings([sweep.tuned])[sweep.tuned] if sweep.tuned else {}
        settings = tuned | dict(sweep.settings)
        for value in sweep.values if sweep.axis != "masks" else [None]:
            wanted = settings | ({} if value is None else {sweep.axis: value})
            folds = [(c["fold"], c["seed"]) for c in configs if wanted.items() <= c.items()]
            assert {(3, 3), (4, 4)} <= set(folds), (sweep.method, value)


def test_several_sentences_share_what_is_the_same_run(small, inline, tmp_path):
    run(tmp_path, "lambda")
    assert len({str(payload) for payload in inline}) == len(inline)
    at_default = [p for p in inline if not {"l1", "l2", "weight_decay", "lr", "schedule"} & p["settings"].keys()]
    assert len(at_default) == 2, "without a penalty all three are the same network, once a fold"


@pytest.mark.parametrize("name", ["fraction", "batch-size"])
def test_updates_are_the_same_whatever_the_fraction_and_the_batch_size(name):
    table = {one.name: one for one in SENTENCES}
    dataset = replace(
        data.load("digits"),
        name="made up",
        train_images=np.zeros((60_000, 1, 1), np.uint8),
        train_labels=np.tile(np.arange(10, dtype=np.uint8), 6000),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "dataset_of", lambda config: dataset)
        for sweep in table[name].sweeps:
            for value in sweep.values:
                sweep = sweep._replace(tuned="")
                config = sentences.config_of(table[name], sweep, value, 3, SentencesOptions())
                updates = config.epochs * math.ceil(config.fraction * 60_000 / config.batch_size - 1e-9)
                assert abs(updates / 10_000 - 1) <= 0.051, (value, config.epochs)
                assert getattr(config, sweep.axis) == value


def test_epochs_of_the_table_give_way_to_the_command_line(tmp_path):
    one = next(one for one in SENTENCES if one.name == "normalisation")
    sweep = one.sweeps[0]
    assert sentences.config_of(one, sweep, 0.1, 3, SentencesOptions()).epochs == 300
    quick = SentencesOptions(config=replace(compare.BASE, epochs=5))
    assert sentences.config_of(one, sweep, 0.1, 3, quick).epochs == 5
    quick, whole = (replace(options, studies_dir=str(tmp_path)) for options in (quick, SentencesOptions()))
    assert sentences.results_folder(quick) != sentences.results_folder(whole)


def test_what_a_network_keeps(digits, tmp_path):
    config = replace(digits, l1=1e-3, epochs=40, evaluations=40)
    found = sentences.one_network(config, tmp_path / "a")
    state = torch.load(tmp_path / "a" / "last.pt", weights_only=True)["model"]
    weights = torch.cat([value.flatten() for name, value in state.items() if name.endswith("weight")])
    assert found["rms"] == pytest.approx(weights.square().mean().sqrt().item(), rel=1e-5)
    assert found["small"] == (weights.abs() < 1e-3).double().mean().item() > 0
    assert found["updates"] == 40 and found["images"] == 72
    assert 0 <= found["6 as 9"] < 359 and 0 <= found["9 as 6"] < 359


def test_confusions_are_of_six_and_nine_alone(digits, monkeypatch, tmp_path):
    labels = torch.tensor([6, 6, 6, 9, 9, 1, 6])
    answers = torch.tensor([9, 9, 6, 6, 9, 6, 0])
    monkeypatch.setattr(sentences, "outputs", lambda *_: (torch.nn.functional.one_hot(answers, 10).float(), labels))
    found = sentences.one_network(replace(digits, epochs=1), tmp_path / "a")
    assert (found["6 as 9"], found["9 as 6"]) == (2, 1)


def test_epochs_to_a_cost():
    def rows(*pairs):
        return [{"epoch": epoch, "loss/train": loss} for epoch, loss in pairs]

    assert sentences.epochs_to(0.1, rows((0, 2.3), (10, 1.0), (20, 0.01), (30, 1e-5))) == pytest.approx(15)
    assert sentences.epochs_to(0.1, rows((0, 2.3), (10, 0.2))) is None
    assert sentences.epochs_to(0.1, rows((0, 2.3), (10, 0.0))) < 10


def test_networks_are_averaged_in_groups_that_share_none(digits, monkeypatch, tmp_path):
    labels = torch.tensor([0, 1])
    shares = iter(torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.4, 0.6], [0.9, 0.1]], [[0.9, 0.1]] * 2]))
    monkeypatch.setattr(compare, "trained_outputs", lambda *_: (next(shares), None, 2.0, labels))
    found = compare.averaged_networks(digits, tmp_path, (1, 2, 3))
    assert found["1"]["error/test"] == pytest.approx((0 + 1 + 0.5) / 3) and found["1"]["n"] == 3
    assert found["2"]["error/test"] == 0.5 and found["2"]["n"] == 1 and found["2"]["seconds"] == 4
    assert found["3"]["error/test"] == 0.5


def test_masks_are_drawn_in_dropout_alone(digits, tmp_path):
    config = replace(digits, dropout=0.5, epochs=100, lr=5e-3)
    seen = []
    Dropout.__call__, usual = lambda self, x: seen.append(self.training) or usual(self, x), Dropout.__call__
    try:
        found = sentences.averaged_masks(config, tmp_path / "a", (0, 1, 50))
    finally:
        del Dropout.__call__
    assert seen[-150:] == [True] * 150, "50 masks of three layers"
    assert found["1"]["error/test"] > found["50"]["error/test"]
    assert found == sentences.averaged_masks(config, tmp_path / "a", (0, 1, 50))


def test_a_killed_run_goes_on(digits, monkeypatch, tmp_path):
    config = replace(digits, epochs=20, evaluations=20)
    whole = sentences.one_network(config, tmp_path / "whole")
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", quiet=True, on_evaluation=cut_at(6))
    assert (tmp_path / "cut" / "last.pt").exists()
    again = sentences.one_network(config, tmp_path / "cut")
    assert again | {"seconds": 0} == whole | {"seconds": 0}


def test_a_diverged_run_has_no_weights(digits, tmp_path):
    found = sentences.one_network(replace(digits, optimizer="sgd", lr=1e9), tmp_path / "a")
    assert found["status"] == "diverged" and found["rms"] is None and found["6 as 9"] is None
    row = {"method": "none", "value": 1, "fold": 3} | found
    assert sweeps.derived([row])[0]["diverged"] == 1 and "6 and 9" not in sweeps.derived([row])[0]


# --- arguments


def test_sentences_are_called_by_name_or_number():
    assert (
        [one.name for one in sentences.chosen("3")] == ["dropout"] == [one.name for one in sentences.chosen("dropout")]
    )
    assert len(sentences.chosen("")) == 7 and set(JUDGES) == {one.name for one in SENTENCES}


def test_wrong_arguments_are_one_line(inline, capfd, tmp_path):
    def complaint(*arguments):
        return refused(capfd, sentences.main, *arguments, "--studies-dir", tmp_path)[1]

    assert "there is no such sentence; allowed are number or name: 1 fraction" in complaint("8")
    assert "--rotate: sentence rotation sets its own" in complaint("6", "--rotate", 3)
    assert "--norm: sentence batch-size sets its own" in complaint("5", "--norm", "batch")
    assert "--seed: the folds are those of the table" in complaint("5", "--seed", 1)
    assert "--folds" in complaint("5", "--folds", 1)
    assert "--report: rebuilds" in refused(capfd, sentences.main, "3", "--report")[1]
    assert not inline


def test_without_results_a_report_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sentences, "PUBLISHED", tmp_path / "none")
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path)
    sentences.main(["--report"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "no results in" in out


# --- verdicts on made-up numbers

FOLDS = (3, 4, 5, 6, 7)


def made_up(errors, **more):
    """Rows of a column by method and value, with noise over the folds that is the same for all."""
    return [
        {"method": method, "value": value, "fold": fold, "axis": "x"}
        | {column: level * (1 + 0.01 * (fold - 5)) + 1e-5 * (7 * index % 5) for column, level in columns.items()}
        | {key: made(value) if callable(made) else made for key, made in more.items()}
        for method, by_value in errors.items()
        for value, columns in by_value.items()
        for index, fold in enumerate(FOLDS)
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
        {"method": method, "value": rate, "fold": fold, "status": "finished", "epochs": 300}
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
    )
    assert JUDGES["combination"](rows).word == word


def test_combinations_are_read_off_the_results_of_compare(monkeypatch, tmp_path, capsys):
    errors = {"baseline": 0.07, "dropout": 0.06, "L2": 0.065, "dropout + L2": 0.05}
    rows = [
        {"method": m, "fold": fold, "error/val": e, "error/test": e + 1e-3 * (fold % 2)}
        for (m, e), fold in itertools.product(errors.items(), (3, 4, 5))
    ]
    report.write_csv(tmp_path / "results.csv", rows)
    found = [row for row in sentences.combinations(tmp_path / "results.csv") if row["fold"] == 4]
    assert {row["method"]: row["effect"] for row in found} == pytest.approx(
        {"better part": -0.01, "other part": -0.005, "sum of both": -0.015, "combination": -0.02}
    )
    assert {row["value"] for row in found} == {"dropout + L2"}
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path)
    monkeypatch.setattr(sentences, "PUBLISHED", tmp_path / "own")
    sentences.main(["--report"])
    first = contents(tmp_path / "own")
    assert "7 combination  holds" in capsys.readouterr().out and len(first) == 5
    sentences.main(["--report"])
    assert contents(tmp_path / "own") == first
    assert sentences.combinations(tmp_path / "nothing.csv") == []


def test_the_table_is_within_the_ranges_of_config():
    for one in SENTENCES:
        assert all(sweep.tuned in {"", *compare.METHODS} for sweep in one.sweeps)
        for sweep in one.sweeps:
            for value in sweep.values if sweep.axis not in sentences.OF_A_RUN else ():
                Config(**(dict(sweep.settings) | {sweep.axis: value}))
