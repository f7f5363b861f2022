"""sentences.py: every sentence on the digits, with few values, folds and epochs; verdicts on made-up numbers."""

import itertools
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import test_compare
from helpers import contents, refused
from test_compare import names_and_texts

import compare
import data
import planned
import sentences
from sentences import SENTENCES, SentencesOptions
from support import figures, report, sweeps
from support.folder import read_json
from support.shell import parse
from support.verdicts import JUDGES
from train import Config

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
    assert {path.name for path in folder.iterdir()} == {f"{name}{end}" for end in (".csv", ".md", ".png")} | {
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
    configs = [read_json(path, dict) for path in tmp_path.glob("compare/runs/**/config.json")]
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
                config = sentences.config_of(table[name], sweep, value, 3, SentencesOptions().config)
                updates = config.epochs * math.ceil(config.fraction * 60_000 / config.batch_size - 1e-9)
                assert abs(updates / 10_000 - 1) <= 0.051, (value, config.epochs)
                assert getattr(config, sweep.axis) == value


def test_epochs_of_the_table_give_way_to_the_command_line(tmp_path):
    one = next(one for one in SENTENCES if one.name == "normalisation")
    sweep = one.sweeps[0]
    assert sentences.config_of(one, sweep, 0.1, 3, SentencesOptions().config).epochs == 300
    quick = SentencesOptions(config=replace(planned.BASE, epochs=5))
    assert sentences.config_of(one, sweep, 0.1, 3, quick.config).epochs == 5
    quick, whole = (replace(options, studies_dir=str(tmp_path)) for options in (quick, SentencesOptions()))
    assert sentences.results_folder(quick) != sentences.results_folder(whole)


def test_epochs_to_a_cost():
    def curves(*pairs):
        return dict(zip(("epoch", "loss/train"), map(list, zip(*pairs, strict=True)), strict=True))

    assert sentences.epochs_to(0.1, curves((0, 2.3), (10, 1.0), (20, 0.01), (30, 1e-5))) == pytest.approx(15)
    assert sentences.epochs_to(0.1, curves((0, 2.3), (10, 0.2))) is None
    assert sentences.epochs_to(0.1, curves((0, 2.3), (10, 0.0))) < 10


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
    assert "--seed: the folds are the first ones that compare" in complaint("5", "--seed", 1)
    assert "--folds" in complaint("5", "--folds", 1)
    assert "--report: rebuilds" in refused(capfd, sentences.main, "3", "--report")[1]
    assert not inline


def test_without_results_a_report_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sentences, "PUBLISHED", tmp_path / "none")
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path)
    sentences.main(["--report"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "no results in" in out


# --- the last sentence


def test_combinations_are_read_off_the_results_of_compare(monkeypatch, tmp_path, capsys):
    errors = {"baseline": 0.07, "dropout": 0.06, "L2": 0.065, "dropout + L2": 0.05}
    rows = [
        {"method": m, "fold": fold, "error/val": e, "error/test": e + 1e-3 * (fold % 2)}
        for (m, e), fold in itertools.product(errors.items(), range(3, 9))
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
    assert "combination (7)  holds" in capsys.readouterr().out and len(first) == 5
    sentences.main(["--report"])
    assert contents(tmp_path / "own") == first
    assert sentences.combinations(tmp_path / "nothing.csv") == []

    folder = run(tmp_path / "studies", "combination")  # on other data than the published results are of
    assert "combination: left out, since" in capsys.readouterr().out and not list(folder.iterdir())
    place = tmp_path / "studies" / "compare" / folder.name.partition("_folds")[0]
    shutil.copy(tmp_path / "results.csv", place)
    assert (run(tmp_path / "studies", "combination") / "combination.csv").exists()


def test_the_table_is_within_the_ranges_of_config():
    for one in SENTENCES:
        assert all(sweep.tuned in {"", *compare.METHODS} for sweep in one.sweeps)
        for sweep in one.sweeps:
            for value in sweep.values if sweep.axis not in sentences.OF_A_RUN else ():
                Config(**(dict(sweep.settings) | {sweep.axis: value}))


def test_the_published_tables_follow_from_the_published_files(monkeypatch, tmp_path):
    """All but the last sentence's rows, which follow from those of compare.py."""
    published = sentences.PUBLISHED
    shutil.copytree(published, tmp_path / "copy", ignore=shutil.ignore_patterns("combination.*"))
    monkeypatch.setattr(sentences, "PUBLISHED", tmp_path / "copy")
    sentences.main(["--report"])
    assert names_and_texts(tmp_path / "copy") == names_and_texts(published)


@pytest.mark.parametrize("one", [one for one in SENTENCES if one.sweeps], ids=lambda one: one.name)
def test_the_names_of_ticks_do_not_hide_each_other(one):
    path = sentences.PUBLISHED / f"{one.name}.csv"
    with figures.reproducible_figures():
        figure = sweeps.draw(one, sweeps.derived(report.read_csv(path)), figures.colours(list(compare.METHODS)))
        figure.canvas.draw()
        for axis in figure.axes:
            boxes = [text.get_window_extent() for text in axis.get_xticklabels() if text.get_text()]
            assert len(boxes) > 2
            assert all(a.x1 <= b.x0 for a, b in itertools.pairwise(boxes))
