"""sentences.py: every sentence on the digits, with few values, folds and epochs."""

import itertools
import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import refused

import compare
import data
import planned
import sentences
from sentences import SENTENCES, SentencesOptions
from support import cluster, report
from support.statistics import PLAIN
from support.verdicts import JUDGES, RETUNED
from train import Config

QUICK = ("--data", "digits", "--device", "cpu", "--epochs", "4", "--folds", "2")
FEW = {  # values of the table that the digits are enough for, by axis
    "fraction": (0.05, 0.9), "networks": (1, 2), "batch_size": (4, 30, 300), "lr": (1e-4, 1e-2),
    "rotate": (0.0, 15.0, 180.0), "l1": (0.0, 1e-7, 1e-3), "l2": (0.0, 1e-6, 1e-2), "weight_decay": (0.0, 0.1, 10.0),
}  # fmt: skip
TUNED = {"l1": 1e-5, "l2": 1e-4, "weight_decay": 0.1, "dropout": 0.2}


def tuned(methods, schedule):
    """As compare.tuned_settings, without a file."""
    found = {}
    for method in methods:
        settings = compare.METHODS[method]
        found[method] = {name: TUNED.get(name, 0.1) if to is None else to for name, to in settings.items()}
        found[method] |= {"lr": 2e-3, "schedule": schedule}
    return found


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """The table with fewer values, and runs in this process, each once; what was run."""
    kept, table = {}, []

    def run_plans(payloads, options):
        for payload in payloads:
            if (key := json.dumps(payload)) not in kept:
                where = {name: getattr(options.config, name) for name in planned.WHERE}
                kept[key] = payload, planned.train_planned(payload, tmp_path / "runs" / str(len(kept)), where)
        return [cluster.Finished(kept[json.dumps(payload)][1], "", "", "") for payload in payloads]

    for one in SENTENCES:
        sweeps = [sweep._replace(values=FEW[sweep.axis][-len(sweep.values) :]) for sweep in one.sweeps]
        few = [sweep for sweep in sweeps if one.name != "fraction" or sweep.tuned in (PLAIN, "L2")]
        table.append(one._replace(sweeps=few))
    for name, value in (("SENTENCES", table), ("RETUNED_METHODS", (PLAIN, "L2")), ("RETUNED_POINTS", 2)):
        monkeypatch.setattr(sentences, name, value)
    monkeypatch.setattr(sentences, "tuned_settings", tuned)
    for module in (sentences, compare):
        monkeypatch.setattr(module, "run_plans", run_plans)
    return kept


def texts(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir() if path.suffix in (".csv", ".md")}


def launch(tmp_path, *arguments):
    """The folder with the results."""
    arguments = [*map(str, arguments), *QUICK, "--studies-dir", str(tmp_path)]
    sentences.main(arguments)
    (folder,) = (tmp_path / "sentences").iterdir()
    return folder


def report_on(monkeypatch, folder, results="nowhere"):
    """What --report makes of `folder`, and of the results.csv of compare.py in `results`."""
    monkeypatch.setattr(sentences, "PUBLISHED_SENTENCES", folder)
    monkeypatch.setattr(compare, "PUBLISHED", Path(results))
    sentences.main(["--report"])
    return texts(folder)


@pytest.mark.parametrize("name", [one.name for one in SENTENCES if one.sweeps])
def test_every_sentence_from_its_command_to_its_verdict(ran, monkeypatch, tmp_path, capsys, name):
    folder = launch(tmp_path, name)
    (one,) = (one for one in sentences.SENTENCES if one.name == name)
    rows = report.read_csv(folder / f"{name}.csv")
    expected = [(s.method, value, fold) for s in one.sweeps for value in s.values for fold in (3, 4)]
    assert sorted((row["method"], row["value"], row["fold"]) for row in rows) == sorted(expected)
    assert {f"{name}.csv", f"{name}.md", f"{name}.png", "verdicts.md"} <= {path.name for path in folder.iterdir()}
    assert "undecided: too few folds" in capsys.readouterr().out and all(0 <= row["error/test"] <= 1 for row in rows)

    settings = [Config(**payload["settings"]) for payload, _ in ran.values() if len(payload["splits"]) == 3]
    for sweep, fold in itertools.product(one.sweeps, (3, 4)):  # every value reached its run
        if sweep.axis != "networks" and RETUNED not in sweep.method:
            own = (tuned([sweep.tuned], "one-cycle")[sweep.tuned] if sweep.tuned else {}) | sweep.settings
            for value in sweep.values:
                wanted = own | {sweep.axis: value, "fold": fold, "seed": fold}
                assert any(wanted.items() <= asdict(config).items() for config in settings), wanted

    runs, before = len(ran), texts(folder)
    launch(tmp_path, name)
    assert len(ran) == runs and texts(folder) == before, "never run twice"
    shutil.copytree(folder, tmp_path / "published")
    (tmp_path / "published" / f"{name}.md").unlink()
    assert report_on(monkeypatch, tmp_path / "published") == before


def test_methods_are_retuned_where_the_sentence_compares_them(ran, tmp_path):
    folder = launch(tmp_path, "fraction")
    points = report.read_csv(folder / "fraction-tuned.csv")
    assert [(row["method"], row["origin"]) for row in points] == [
        *((PLAIN, "design"),) * 2, (PLAIN, "5 %"), *(("L2", "design"),) * 2, ("L2", PLAIN), ("L2", "5 %")
    ]  # fmt: skip
    chosen = {row["method"]: row for row in points if row["chosen"]}
    tuning = [payload for payload, _ in ran.values() if payload["settings"].get("fold", 0) < 3]
    assert {(*payload["splits"], payload["settings"]["fraction"]) for payload in tuning} == {("train", "val", 0.9)}
    rates = {payload["settings"]["lr"] for payload, _ in ran.values() if payload["splits"] != ["train", "val"]}
    assert rates == {2e-3, *(row["lr"] for row in chosen.values())}


@pytest.mark.parametrize("name", ["fraction", "batch-size"])
def test_updates_are_the_same_whatever_the_fraction_and_the_batch_size(monkeypatch, name):
    (one,) = (one for one in SENTENCES if one.name == name)
    labels = np.tile(np.arange(10, dtype=np.uint8), 6000)
    dataset = replace(data.load("digits"), train_images=np.zeros((60_000, 1, 1), np.uint8), train_labels=labels)
    monkeypatch.setattr(sentences, "dataset_of", lambda config: dataset)
    for sweep, value in ((each, value) for each in one.sweeps for value in each.values):
        config = sentences.config_of(one, sweep, value, 3, SentencesOptions().config)
        updates = config.epochs * math.ceil(config.fraction * 60_000 / config.batch_size - 1e-9)
        assert abs(updates / 10_000 - 1) <= 0.051 and getattr(config, sweep.axis) == value


def test_epochs_of_the_table_give_way_to_the_command_line():
    (one,) = (one for one in SENTENCES if one.name == "normalisation")
    bases = (planned.BASE, replace(planned.BASE, epochs=5))
    assert [sentences.config_of(one, one.sweeps[0], 0.1, 3, base).epochs for base in bases] == [300, 5]


def test_epochs_to_a_cost():
    def epochs(*losses):
        return sentences.epochs_to(0.1, {"epoch": [10 * place for place in range(len(losses))], "loss/train": losses})

    assert epochs(2.3, 1.0, 0.01, 1e-5) == pytest.approx(15)
    assert epochs(2.3, 0.2) is None and epochs(2.3, 0.0) < 10 and epochs(0.05, 0.01) == 0


def test_wrong_arguments(ran, capfd):
    assert "--report: rebuilds" in refused(capfd, sentences.main, "3", "--report")[1]
    for wrong in ("8", "--folds=1", "--rotate=3"):
        with pytest.raises(SystemExit, match="2"):
            sentences.main([wrong])
    assert not ran and list(JUDGES) == [one.name for one in SENTENCES]


def test_combinations_are_read_off_the_results_of_compare(monkeypatch, tmp_path, capsys):
    errors = {PLAIN: 0.07, "dropout": 0.06, "L2": 0.065, "dropout + L2": 0.05}
    rows = [
        {"method": m, "schedule": schedule, "fold": fold, "error/val": e, "error/test": e + 1e-3 * (fold % 2)}
        for schedule, (m, e), fold in itertools.product(("constant", "one-cycle"), errors.items(), range(3, 10))
    ]
    report.write_csv(tmp_path / "results.csv", rows)
    (tmp_path / "own").mkdir()
    text = report_on(monkeypatch, tmp_path / "own", results=tmp_path)["combination.md"]
    for schedule in ("constant", "one-cycle"):
        assert f"- dropout + L2 beside dropout, {schedule}: -1.00 [" in text
    assert "| combination (7) | holds " in capsys.readouterr().out

    monkeypatch.setattr(planned, "prepared", lambda options: replace(options, data="mnist"))
    sentences.main(["combination", "--folds", "2", "--studies-dir", str(tmp_path / "fewer folds")])
    assert "| combination (7) | holds " in capsys.readouterr().out, "it needs no folds of its own"
    monkeypatch.undo()
    launch(tmp_path / "studies", "combination")  # on other data than the published results are of
    assert "combination: left out" in capsys.readouterr().out


def test_the_published_tables_follow_from_the_published_files(monkeypatch, tmp_path):
    shutil.copytree(sentences.PUBLISHED_SENTENCES, tmp_path / "copy")
    before = texts(tmp_path / "copy")
    assert report_on(monkeypatch, tmp_path / "copy", results=compare.PUBLISHED) == before
    assert {"combination.md", "verdicts.md"} <= before.keys()


def test_every_value_of_the_table_is_allowed():
    for sweep in itertools.chain(*(one.sweeps for one in SENTENCES)):
        assert sweep.tuned in {"", *compare.METHODS}
        for value in sweep.values if sweep.axis != "networks" else ():
            assert getattr(Config(**sweep.settings | {sweep.axis: value}), sweep.axis) == value
