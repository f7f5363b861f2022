import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import EVERYTHING, ROOT, Cut, assert_equal_runs, contents, cut_at, events, forked, points, refused, weights

import data
import train_lightning as script
from support.run import RunError, read_rows
from train import Config, build_model, random_streams, train, trained_model
from train_lightning import train_lightning

METHODS = {
    "recipe": {},
    "dropout": {"dropout": 0.3},
    "batch norm": {"norm": "batch"},
    "layer norm": {"norm": "layer"},
    "L1 + L2": {"l1": 1e-4, "l2": 1e-3},
    "augmentation": {"noise": 0.1, "rotate": 10.0, "zoom": 0.1, "shift": 1.0, "shear": 0.1, "elastic": 8.0},
    "one-cycle": {"schedule": "one-cycle", "lr": 1e-2},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1, "schedule": "one-cycle"},
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_as_the_plain_loop(method, digits, tmp_path):
    """The same weights to the last bit, and the same files: measurements, tags, steps, values, result."""
    config = replace(digits, **{"batch_size": 20} | METHODS[method])
    plain = train(config, tmp_path / "plain", quiet=True)
    lit = train_lightning(config, tmp_path / "lightning", quiet=True)
    assert_equal_runs(lit["folder"], plain["folder"])
    torch.manual_seed(random_streams(config.seed, torch.device("cpu"))[0])
    moved, start = weights(lit["folder"]), build_model(config, data.load("digits")).state_dict()
    assert all(not torch.equal(moved[name], start[name]) for name in moved if name.startswith("linears"))
    bests = [torch.load(Path(run["folder"]) / "best.pt", weights_only=True)["epoch"] for run in (plain, lit)]
    assert bests[0] == bests[1] == plain["best"]["epoch"] > 0
    timed = {"seconds", "folder", "best", "last"}  # the last two have been compared but for their seconds
    assert {k: lit[k] for k in lit.keys() - timed} == {k: plain[k] for k in plain.keys() - timed}
    files = [sorted(p.name.split(".tfevents")[0] for p in Path(run["folder"]).rglob("*")) for run in (plain, lit)]
    assert files[0] == files[1]
    a, b = events(plain["folder"]), events(lit["folder"])
    assert a.Tags() == b.Tags()
    for tag in a.Tags()["scalars"]:
        assert [e.value for e in a.Scalars(tag)] == [e.value for e in b.Scalars(tag)], tag
    for tag in a.Tags()["histograms"]:
        assert [e.histogram_value for e in a.Histograms(tag)] == [e.histogram_value for e in b.Histograms(tag)], tag


def cut_off(config, folder, epoch, file="last"):
    """`folder`, after its run fell over once it had saved `file` at the evaluation of this epoch."""
    where = {"last": (script.Observation, "on_validation_start"), "best": (script.Best, "on_validation_end")}[file]
    save = getattr(*where)

    def fall_over(self, trainer, module):
        save(self, trainer, module)
        if module.trained == epoch:
            raise Cut

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(*where, fall_over)
        train_lightning(config, folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def config():
    return Config(data="digits", device="cpu", epochs=20, evaluations=5, histograms=3, **EVERYTHING)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of the run that nothing has disturbed: the plain one, which is the same."""
    return train(config, tmp_path_factory.mktemp("whole"), quiet=True)["folder"]


@pytest.mark.parametrize(("cut", "file"), [(0, "best"), (2, "last"), (7, "best"), (7, "last"), (20, "last")])
def test_a_run_that_fell_over_goes_on_to_the_same_weights(cut, file, config, whole, tmp_path):
    cut_off(config, tmp_path / "cut", cut, file)
    train_lightning(config, tmp_path / "cut", quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def test_a_killed_run_goes_on_to_the_same_weights(config, whole, tmp_path):
    process = forked(train_lightning, config, tmp_path / "cut", True)
    while not (tmp_path / "cut" / "metrics.csv").exists() or len(read_rows(tmp_path / "cut")) < 4:
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "cut" / "result.json").exists()
    train_lightning(config, tmp_path / "cut", quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


@pytest.mark.parametrize(("press_at", "name"), [(8, "SIGINT"), (10, "SIGTERM"), (20, "SIGINT")])
def test_ctrl_c_says_how_to_go_on(press_at, name, config, whole, tmp_path, monkeypatch):
    def press(self, trainer, module, *_):
        if module.trained == press_at - 1 and trainer.is_last_batch:
            signal.raise_signal(signal.Signals[name])

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=r"train_lightning.py --resume \S+cut$"):
        patch.setattr(script.Observation, "on_before_optimizer_step", press)
        train_lightning(config, tmp_path / "cut", quiet=True)
    assert signal.getsignal(signal.SIGINT) == handler
    last = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["epoch"]
    assert last == {8: 7, 10: 7, 20: 12}[press_at], "the latest evaluation"
    train_lightning(config, tmp_path / "cut", quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def test_a_moved_run_keeps_its_best_weights(digits, tmp_path):
    """Its later evaluations are worse, and Lightning knows the best one by its former path only."""
    config = replace(digits, lr=3e-2, epochs=60, evaluations=10, hidden=(200,))
    whole = train_lightning(config, tmp_path / "whole", quiet=True)
    moments = [row["epoch"] for row in read_rows(tmp_path / "whole")]
    later = moments[moments.index(whole["best"]["epoch"]) + 1]
    assert later < 60
    cut_off(config, tmp_path / "cut", later).rename(tmp_path / "moved")
    train_lightning(config, tmp_path / "moved", quiet=True)
    assert_equal_runs(tmp_path / "moved", whole["folder"])
    assert not (tmp_path / "cut").exists()


def test_a_finished_run_trains_nothing(digits, tmp_path, monkeypatch):
    result = train_lightning(digits, tmp_path / "run", quiet=True)
    before = contents(tmp_path)
    monkeypatch.setattr(script.LitMLP, "training_step", None)
    assert train_lightning(digits, tmp_path / "run", quiet=True) == result
    assert contents(tmp_path) == before
    assert train(digits, tmp_path / "run", quiet=True) == result
    with pytest.raises(RunError, match=r"dropout 0.0, not 0.5"):
        train_lightning(replace(digits, dropout=0.5), tmp_path / "run", quiet=True)


def test_best_and_last_are_files_of_this_run_for_all_readers(config, tmp_path):
    result = train_lightning(config, tmp_path / "run", quiet=True)
    dataset = data.load("digits")
    for file in ("best.pt", "last.pt"):
        model = trained_model(config, dataset, tmp_path / "run" / file)
        assert torch.equal(model.linears[0].weight, weights(tmp_path / "run", file)["linears.0.weight"])
        with pytest.raises(RunError, match=r"seed 0, not 1"):
            trained_model(replace(config, seed=1), dataset, tmp_path / "run" / file)
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert last["progress"]["epoch"] == result["last"]["epoch"] == 20  # where look.py reads it


def test_neither_script_goes_on_with_the_run_of_the_other(digits, tmp_path):
    with pytest.raises(Cut):
        train(digits, tmp_path / "plain", quiet=True, on_evaluation=cut_at(7))
    with pytest.raises(RunError, match=r"last.pt: of a run that train.py began"):
        train_lightning(digits, tmp_path / "plain", quiet=True)
    with pytest.raises(RunError, match=r"last.pt: .*this script"):
        train(digits, cut_off(digits, tmp_path / "lightning", 7), quiet=True)


def test_a_diverged_run_stops_as_the_plain_one(digits, tmp_path):
    config = replace(digits, optimizer="sgd", lr=100.0, batch_size=20)
    plain = train(config, tmp_path / "plain", quiet=True)
    lit = train_lightning(config, tmp_path / "lightning", quiet=True)
    assert lit["status"] == plain["status"] == "diverged"
    assert lit["step"] > plain["step"] == 5, "at the next evaluation; the plain loop looks at every update"
    assert lit["last"] | {"seconds": 0} == plain["last"] | {"seconds": 0}


@pytest.mark.parametrize("lr", [1e-2, 50.0])  # with the second, the untrained model is the best
def test_patience_stops_as_in_the_plain_run(lr, digits, tmp_path):
    config = replace(digits, epochs=1000, lr=lr, evaluations=30, patience=2, optimizer="sgd" if lr > 1 else "adam")
    plain = train(config, tmp_path / "plain", quiet=True)
    assert plain["status"] == "finished" and 0 < plain["last"]["epoch"] < 1000
    assert_equal_runs(train_lightning(config, tmp_path / "lightning", quiet=True)["folder"], plain["folder"])
    for cut in [int(row["epoch"]) for row in read_rows(tmp_path / "plain")][-2:]:
        train_lightning(config, cut_off(config, tmp_path / f"cut{cut}", cut), quiet=True)
        assert_equal_runs(tmp_path / f"cut{cut}", plain["folder"])


# --- the command line ------------------------------------------------------------------------------------------------

DIGITS = ("--data", "digits", "--device", "cpu", "--epochs", "100", "--batch-size", "24", "--evaluations", "5")


def test_two_processes_share_every_batch_and_come_close_to_one(digits, tmp_path):
    config = replace(digits, epochs=100, batch_size=24)
    one = train_lightning(config, tmp_path / "one", quiet=True)
    command = [sys.executable, ROOT / "train_lightning.py", *DIGITS, "--devices", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (two,) = (tmp_path / "runs").iterdir()
    best = json.loads((two / "result.json").read_text())["best"]
    assert best["loss/val"] == pytest.approx(one["best"]["loss/val"], rel=0.05)
    different = [not torch.equal(values, weights(one["folder"])[name]) for name, values in weights(two).items()]
    assert all(different), "one process has seen whole batches"
    assert points(two).keys() == points(one["folder"]).keys() and done.stdout.count("tensorboard --logdir") == 1
    assert "test_error" in done.stdout and "python train_lightning.py" in done.stdout


@pytest.mark.parametrize("arguments", ["--devices 0", "--patience -1"])
def test_wrong_arguments(arguments, capfd):
    code, error = refused(capfd, script.main, *arguments.split())
    assert code == 2 and arguments.split()[0] in error


def test_the_same_run_on_mnist(mnist, tmp_path):
    config = replace(mnist, epochs=12, evaluations=3, dropout=0.2, l2=1e-4)
    plain = train(config, tmp_path / "plain", quiet=True)
    lit = train_lightning(config, tmp_path / "lightning", quiet=True)
    assert_equal_runs(lit["folder"], plain["folder"])
    assert lit["last"]["error/val"] < 0.15
