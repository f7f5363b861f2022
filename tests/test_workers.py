import os
import time

import optuna
import pytest
from optuna.trial import TrialState

from support import workers
from support.workers import Failed, Place, digest, finished, run_planned, run_search


def sampler(seed):
    return optuna.samplers.RandomSampler(seed=seed)


def square(trial, folder):
    x = trial.suggest_float("x", -1, 1)
    for step in range(5):
        trial.report(x**2, step)
        time.sleep(0.02)
    return x**2


def double(payload, folder):
    folder.mkdir(parents=True)
    (folder / "pid").write_text(str(os.getpid()))
    if payload["n"] == 13:
        raise Failed("unlucky")
    return {"twice": 2 * payload["n"]}


@pytest.fixture(params=["journal", "postgresql"])
def place(request, tmp_path):
    storage = "" if request.param == "journal" else request.getfixturevalue("database")
    return Place(tmp_path / "study", "toy", storage)


def test_search(place):
    study = run_search(place, square, trials=6, workers=2, settings={"a": 1}, sampler=sampler, preload=["test_workers"])
    assert len(finished(study)) == 6
    assert {t.state for t in study.trials} <= {TrialState.COMPLETE, TrialState.FAIL}


def test_planned(place):
    runs = run_planned(place, double, [{"n": n} for n in range(12, 16)], workers=2)
    assert runs[digest({"n": 12})].result == {"twice": 24}
    assert runs[digest({"n": 13})].reason == "unlucky"
