import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy
from conftest import drop
from optuna.trial import FixedTrial, TrialState
from test_train import ROOT, events

import data
import search
import train
from search import SearchOptions, finished, run_trial, suggest


@pytest.fixture(autouse=True)
def quiet():
    search.be_quiet()


@pytest.fixture
def options(digits, tmp_path) -> SearchOptions:
    return SearchOptions(replace(digits, histograms=0), runs_dir=str(tmp_path), trials=4)


@pytest.fixture(params=["journal", "postgresql"])
def storage(request):
    return "" if request.param == "journal" else request.getfixturevalue("database")


# --- the space

PARAMETERS = {
    "lr": 2e-3, "norm": "layer", "use_l1": True, "l1": 3e-5, "use_l2": True, "l2": 4e-4, "use_dropout": True,
    "dropout": 0.3, "use_noise": True, "noise": 0.2, "use_geometry": True, "rotate": 11.0, "zoom": 0.12, "shift": 1.5,
    "shear": 0.1, "elastic": 20.0,
}  # fmt: skip


def test_every_suggested_value_reaches_the_run(options, monkeypatch):
    """From the trial's parameters to the Config that train() is called with."""
    seen = []
    monkeypatch.setattr(
        search, "train", lambda config, **_: seen.append(config) or {"status": "finished", "best": {"val_loss": 1.0}}
    )
    options = replace(options, augment=True)
    study = optuna.create_study()
    study.enqueue_trial(PARAMETERS)
    study.optimize(lambda trial: run_trial(trial, options, set(), Path(options.runs_dir)), n_trials=1)
    assert study.trials[0].params == PARAMETERS
    (config,) = seen
    values = {name: value for name, value in PARAMETERS.items() if not name.startswith("use_")}
    assert {name: getattr(config, name) for name in values} == values
    assert replace(config, **{name: getattr(options.config, name) for name in values}) == options.config


def test_a_strength_is_asked_for_only_where_it_is_used(options):
    off = {name: False if name.startswith("use_") else value for name, value in PARAMETERS.items()}
    trial = FixedTrial(off)
    config = suggest(trial, options.config, set(), augment=True)
    assert set(trial.params) == {"lr", "norm", "use_l1", "use_l2", "use_dropout", "use_noise", "use_geometry"}
    assert config == replace(options.config, lr=2e-3, norm="layer")


def test_without_augment_none_is_searched(options):
    trial = FixedTrial(PARAMETERS)
    suggest(trial, options.config, set(), augment=False)
    assert not {"use_noise", "use_geometry", "rotate"} & set(trial.params)


def test_what_is_given_is_not_searched(options):
    trial = FixedTrial(PARAMETERS)
    config = suggest(trial, replace(options.config, norm="batch", l1=0.5), {"norm", "l1", "epochs"}, augment=False)
    assert config.norm == "batch" and config.l1 == 0.5
    assert set(trial.params) == {"lr", "use_l2", "l2", "use_dropout", "dropout"}


def test_given_settings_are_those_of_the_command_line(tmp_path, capsys):
    search.main(f"--data digits --epochs 5 --norm none --trials 2 --workers 1 --runs-dir {tmp_path}".split())
    study = search.load_study(SearchOptions(runs_dir=str(tmp_path)))
    assert study.user_attrs["settings"]["given"] == ["data", "epochs", "norm"]
    assert all("norm" not in trial.params and "lr" in trial.params for trial in study.trials)


# --- one trial


def one_trial(options, parameters, study=None, given=()):
    study = study or optuna.create_study()
    study.enqueue_trial(parameters)
    study.optimize(
        lambda trial: run_trial(trial, options, set(given), Path(options.runs_dir)), n_trials=1, catch=(search.Failed,)
    )
    return study.trials[-1]


def test_the_test_set_is_never_read(options, monkeypatch):
    split_tensors = data.split_tensors

    def guarded(dataset, split, *more):
        assert split != "test"
        return split_tensors(dataset, split, *more)

    monkeypatch.setattr(data, "split_tensors", guarded)
    trial = one_trial(options, PARAMETERS)
    assert trial.state == TrialState.COMPLETE
    assert "test" not in next(Path(options.runs_dir).glob("trial-*/metrics.csv")).read_text()


def test_the_cost_is_the_mean_over_the_search_folds(options, tmp_path):
    trial = one_trial(replace(options, folds_per_trial=3), PARAMETERS)
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("trial-0000-fold-*/result.json"))]
    assert [result["fold"] for result in results] == [0, 1, 2]
    assert trial.value == pytest.approx(np.mean([result["best"]["val_loss"] for result in results]))
    assert len(trial.intermediate_values) == 3 * 6, "two folds reported at one step"


def test_a_trial_is_a_small_run_of_tensorboard(options, tmp_path):
    one_trial(options, PARAMETERS)
    tags = events(tmp_path / "trial-0000").Tags()
    assert tags["histograms"] == [] and "loss/val" in tags["scalars"] and "best/val_loss" in tags["scalars"]


def test_a_hopeless_trial_is_pruned(options):
    options = replace(options, trials=100, config=replace(options.config, epochs=200, evaluations=20))
    study = optuna.create_study(pruner=search.make_pruner())
    for _ in range(4):
        good = PARAMETERS | {"lr": 1e-2, "norm": "batch", "use_l1": False, "use_l2": False}
        assert one_trial(options, good, study=study).state == TrialState.COMPLETE
    hopeless = one_trial(options, PARAMETERS | {"lr": 1e-4, "norm": "none"}, study=study)
    assert hopeless.state == TrialState.PRUNED
    assert max(hopeless.intermediate_values) < 200


def test_a_diverged_run_is_a_failed_trial_with_its_reason(options):
    options = replace(options, config=replace(options.config, lr=1e10, epochs=100))
    trial = one_trial(options, {}, given={"lr", "norm", "l1", "l2", "dropout"})
    assert trial.state == TrialState.FAIL and re.fullmatch(r"diverged after \d+ updates", trial.user_attrs["reason"])


# --- studies


def run_search(*arguments, cwd, script="search.py", **more):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP")}
    command = [sys.executable, ROOT / script, "--data", "digits", "--device", "cpu", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def load(cwd, storage):
    return search.load_study(SearchOptions(runs_dir=str(cwd / "runs"), storage=storage))


def assert_sound(study, count):
    """Every trial is finished exactly once, none is lost, none is left running."""
    done = finished(study)
    assert len(done) == count
    assert max(Counter(search.original(trial) for trial in done).values()) == 1
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


def running(cwd, storage, seconds=60):
    """The trials that run, once at least two do."""
    end = time.time() + seconds
    while time.time() < end:
        try:
            trials = [
                t for t in load(cwd, storage).get_trials(states=(TrialState.RUNNING,)) if "worker" in t.user_attrs
            ]
        except search.RunError:
            trials = []
        if len(trials) >= 2:
            return trials
        time.sleep(0.2)
    raise AssertionError("no two trials ran")


def test_a_worker_killed_with_9_loses_nothing(storage, tmp_path):
    settings = ("--epochs", 1000, "--evaluations", 60, "--workers", 4, "--trials", 6, "--no-prune", "--dropout", 0.1)
    process = run_search(*settings, *(("--storage", storage) if storage else ()), cwd=tmp_path)
    victim = running(tmp_path, storage)[0]
    while not (tmp_path / f"runs/search/search/trial-{victim.number:04d}/last.pt").exists():
        time.sleep(0.05)
    os.kill(victim.user_attrs["worker"][1], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    study = load(tmp_path, storage)
    assert_sound(study, 6)
    assert study.trials[victim.number].state == TrialState.FAIL
    (again,) = [trial for trial in study.trials if trial.system_attrs.get("retry_history") == [victim.number]]
    assert again.params == victim.params and again.state == TrialState.COMPLETE
    if storage:
        assert "secret" not in out + err
        assert not [p for p in tmp_path.rglob("*") if p.is_file() and b"secret" in p.read_bytes()]


def test_stopped_and_killed_as_a_whole_the_same_command_goes_on(tmp_path):
    settings = ("--epochs", 1000, "--evaluations", 60, "--trials", 4)
    process = run_search(*settings, cwd=tmp_path, start_new_session=True)
    running(tmp_path, "")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "goes on with the study" in err, err
    assert not load(tmp_path, "").get_trials(states=(TrialState.RUNNING,))
    process = run_search(*settings, cwd=tmp_path, start_new_session=True)
    running(tmp_path, "")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert load(tmp_path, "").get_trials(states=(TrialState.RUNNING,))
    process = run_search(*settings, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert_sound(load(tmp_path, ""), 4)


def test_a_trial_that_lost_two_workers_stays_failed():
    study = optuna.create_study()
    for _ in range(2):
        trial = study.ask({"lr": optuna.distributions.FloatDistribution(0, 1)})
        study.tell(trial, state=TrialState.FAIL)
        search.try_again(study, study.trials[-1])
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]
    assert study.trials[0].params == study.trials[1].params
    assert [trial.number for trial in finished(study)] == [1]


def test_an_interrupted_trial_is_tried_again_as_often_as_it_takes():
    study = optuna.create_study()
    for _ in range(4):
        trial = study.ask()
        trial.set_user_attr("interrupted", True)
        study.tell(trial, state=TrialState.FAIL)
        search.recover(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 4 + ["WAITING"]
    assert finished(study) == []


def refused(capfd, *arguments, script=search):
    with pytest.raises(SystemExit) as stop:
        script.main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    code = stop.value.code
    if isinstance(code, str):
        code, err = 1, err + code + "\n"
    assert out == "" and err.count("\n") == 1 and err.startswith("error: "), out + err
    return code, err


def test_two_studies_of_one_name_with_other_settings_are_refused(tmp_path, capfd):
    place = ("--data", "digits", "--runs-dir", tmp_path, "--workers", 1)
    search.main([str(a) for a in (*place, "--trials", 1, "--epochs", 5)])
    capfd.readouterr()
    code, line = refused(capfd, *place, "--trials", 2, "--epochs", 6)
    assert code == 1 and "epochs 5, not 6" in line
    code, line = refused(capfd, *place, "--trials", 2, "--epochs", 5, "--augment")
    assert code == 1 and "augment False, not True" in line


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://someone:secret@127.0.0.1:9/nowhere", "someone:***@127.0.0.1:9"),
        ("no url, but a secret", "not a database URL"),
        ("nosuchdatabase://a:secret@b/c", "not a database URL"),
    ],
)
def test_a_storage_out_of_reach_is_one_line_without_the_password(url, words, tmp_path, capfd):
    code, line = refused(capfd, "--data", "digits", "--storage", url, "--runs-dir", tmp_path)
    assert code == 1 and words in line and "secret" not in line


def test_a_storage_lost_in_the_middle_is_one_line(database, tmp_path):
    process = run_search("--epochs", 100_000, "--trials", 3, "--storage", database, cwd=tmp_path)
    running(tmp_path, database)
    drop(sqlalchemy.make_url(database).database)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "secret" not in out + err
    assert out == "" and err.count("\n") == 1 and "out of reach" in err, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--trials 0", "--trials 0"),
        ("--workers 0", "--workers 0"),
        ("--folds-per-trial 4", "1 to 3"),
        ("--confirm 18", "0 to 17"),
        ("--study a/b", "without slashes"),
        ("--fold 4", "(0, 1, 2)"),
        ("--dropout 2", "--dropout 2"),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, line = refused(capfd, *arguments.split())
    assert code == 2 and words in line


def test_a_report_of_nothing(tmp_path, capfd):
    code, line = refused(capfd, "--report", "nothing", "--runs-dir", tmp_path)
    assert code == 1 and "nothing" in line


def test_a_lock_that_a_killed_worker_holds_is_broken(options, tmp_path, monkeypatch):
    """In a relative folder, where Optuna's symbolic link would point nowhere, and everybody wait for ever."""
    monkeypatch.chdir(tmp_path)
    options = replace(options, runs_dir="runs")
    search.open_study(options, set())
    Path("runs/search/search.log.lock").touch()
    start = time.time()
    search.open_study(replace(options, study="search"), set()).set_user_attr("after", True)
    assert 4 < time.time() - start < 60


# --- report and confirmation


def test_report_and_confirmation(tmp_path, capsys):
    """A whole study: its report's command is the best trial, and the confirmation saw other folds only."""
    place = ["--runs-dir", str(tmp_path)]
    search.main(["--data", "digits", "--epochs", "20", "--trials", "6", "--workers", "1", "--confirm", "3", *place])
    folder = tmp_path / "search" / "search"
    report = (folder / "report.md").read_text()
    study = search.load_study(SearchOptions(runs_dir=str(tmp_path)))
    best = min((t for t in study.trials if t.value is not None), key=lambda t: t.value)
    line = next(line for line in report.splitlines() if line.startswith("python train.py"))
    options = search.parse(train.Options, line.split()[2:])
    assert options.config == replace(search.config_of(best, study), histograms=20, device="auto")
    again = train.train(replace(options.config, device="cpu"), str(tmp_path), quiet=True, splits=("train", "val"))
    assert again["best"]["val_loss"] == pytest.approx(best.value, rel=1e-6)
    for name in ("history", "importances", "slices"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"]({name}.png)" in report
    runs = [json.loads(path.read_text()) for path in folder.glob("confirm-*/result.json")]
    assert sorted(run["fold"] for run in runs) == [3, 3, 4, 4, 5, 5]
    assert "the search never saw" in report and "baseline" in report and "test error" in report
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    search.main(["--report", "search", "--confirm", "3", *place])
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")} == before, "it trained again"


def test_a_best_value_at_the_border_is_warned_of():
    study = optuna.create_study()
    space = {
        "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "dropout": optuna.distributions.FloatDistribution(0, 1),
    }
    study.add_trial(optuna.create_trial(params={"lr": 9.8e-3, "dropout": 0.5}, distributions=space, value=1.0))
    study.add_trial(optuna.create_trial(params={"lr": 1e-3, "dropout": 0.01}, distributions=space, value=1.0))
    assert [len(search.at_border(trial)) for trial in study.trials] == [1, 1]
    assert search.at_border(study.trials[0])[0].startswith("lr 0.0098")
    assert search.at_border(study.trials[1])[0].startswith("dropout")
