import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from test_train import EVERYTHING, ROOT, assert_equal_runs, events, points, same, weights

import train_lightning as script
from train import train
from train_lightning import train_lightning

METHODS = {
    "baseline": {},
    "dropout": {"dropout": 0.3},
    "batch norm": {"norm": "batch"},
    "layer norm": {"norm": "layer"},
    "L1 + L2": {"l1": 1e-4, "l2": 1e-3},
    "augmentation": {"noise": 0.1, "rotate": 10, "zoom": 0.1, "shift": 1, "shear": 0.1, "elastic": 8},
    "one-cycle": {"schedule": "one-cycle", "lr": 1e-2},
    "everything": EVERYTHING,
}


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_as_the_plain_loop(method, digits, tmp_path):
    """The same weights to the last bit, and the same files: measurements, tags, steps, values, result."""
    config = replace(digits, **{"batch_size": 20} | METHODS[method])
    plain = train(config, str(tmp_path), name="plain", quiet=True)
    lit = train_lightning(config, str(tmp_path), name="lightning", quiet=True)
    assert_equal_runs(lit["folder"], plain["folder"])
    assert lit.keys() == plain.keys() and lit["best"] == plain["best"]
    untrained = script.LitMLP(script.Run(config, str(tmp_path))).model.state_dict()
    moved = weights(lit["folder"])
    assert all(not torch.equal(moved[name], untrained[name]) for name in moved if name.startswith("linears"))
    files = [{p.name for p in Path(r["folder"]).iterdir() if not p.name.startswith("events")} for r in (plain, lit)]
    assert files[0] == files[1]
    a, b = events(plain["folder"]), events(lit["folder"])
    assert a.Tags() == b.Tags()
    for tag in a.Tags()["scalars"]:
        assert [e.value for e in a.Scalars(tag)] == [e.value for e in b.Scalars(tag)], tag
    for tag in a.Tags()["histograms"]:
        assert [e.histogram_value for e in a.Histograms(tag)] == [e.histogram_value for e in b.Histograms(tag)], tag


class Fall(Exception):
    pass


@pytest.mark.parametrize("cut", [2, 7, 20])
def test_a_run_that_fell_over_goes_on_to_the_same_weights(cut, digits, tmp_path, monkeypatch):
    config = replace(digits, **EVERYTHING)
    whole = train_lightning(config, str(tmp_path), name="whole", quiet=True)["folder"]
    save = ModelCheckpoint.on_validation_end

    def fall_over(self, trainer, module):
        save(self, trainer, module)
        if trainer.current_epoch + 1 == cut and self.monitor is None:
            raise Fall

    with monkeypatch.context() as patch, pytest.raises(Fall):
        patch.setattr(ModelCheckpoint, "on_validation_end", fall_over)
        train_lightning(config, str(tmp_path), name="cut", quiet=True)
    assert not (tmp_path / "cut" / "result.json").exists()
    train_lightning(config, resume=str(tmp_path / "cut"), quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def test_resuming_a_finished_run_trains_nothing(digits, tmp_path):
    result = train_lightning(digits, str(tmp_path), quiet=True)
    before = {path: path.read_bytes() for path in Path(result["folder"]).iterdir()}
    assert train_lightning(digits, resume=result["folder"], quiet=True) == result
    assert {path: path.read_bytes() for path in Path(result["folder"]).iterdir()} == before


def test_a_checkpoint_of_the_plain_loop_is_refused(digits, tmp_path):
    def fall_over(row, best):
        if row["epoch"] == 7:
            raise Fall

    with pytest.raises(Fall):
        train(digits, str(tmp_path), name="plain", quiet=True, on_evaluation=fall_over)
    with pytest.raises(script.RunError, match="damaged or foreign"):
        train_lightning(digits, resume=str(tmp_path / "plain"), quiet=True)


def test_a_diverged_run_stops_as_the_plain_one(digits, tmp_path):
    config = replace(digits, lr=1e10, epochs=500)
    plain = train(config, str(tmp_path), quiet=True)
    lit = train_lightning(config, str(tmp_path), quiet=True)
    assert lit["status"] == "diverged" and lit["step"] == plain["step"]


def test_patience_stops_an_overfitted_run(digits, tmp_path):
    config = replace(digits, epochs=1000, lr=1e-2, evaluations=30)
    result = train_lightning(config, str(tmp_path), quiet=True, patience=2)
    rows = (Path(result["folder"]) / "metrics.csv").read_text().splitlines()[1:]
    epochs = [int(row.split(",")[0]) for row in rows]
    assert result["last"]["epoch"] < 1000 and result["status"] == "finished"
    assert epochs.index(result["last"]["epoch"]) == epochs.index(result["best"]["epoch"]) + 2


def run_script(*arguments, cwd, **options):
    environment = {k: v for k, v in os.environ.items() if k != script.FOLDER} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "train_lightning.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options)


DIGITS = ("--data", "digits", "--device", "cpu", "--epochs", 100, "--batch-size", 24, "--evaluations", 5)


def test_the_screen_and_the_folder(tmp_path):
    done = run_script(*DIGITS, "--name", "run", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    best = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())["best"]
    assert f"Trainer.test on best.pt: cost {best['test_loss']:.4f}, error {best['test_error']:.2%}" in done.stdout
    assert "best, epoch" in done.stdout and "tensorboard --logdir runs" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "stray files"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_two_processes_share_every_batch_and_come_close_to_one(digits, tmp_path):
    one = train_lightning(replace(digits, epochs=100, batch_size=24), str(tmp_path / "runs"), name="one", quiet=True)
    done = run_script(*DIGITS, "--name", "two", "--devices", 2, "--strategy", "ddp", cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["one", "two"]
    two = json.loads((tmp_path / "runs" / "two" / "result.json").read_text())
    assert two["last"]["val_loss"] == pytest.approx(one["last"]["val_loss"], rel=0.02)
    assert not same(weights(tmp_path / "runs" / "two"), weights(one["folder"])), "one process has seen whole batches"
    assert points(tmp_path / "runs" / "two").keys() == points(one["folder"]).keys()


@pytest.mark.parametrize(
    ("arguments", "words"), [("--devices 0", "--devices 0"), ("--patience -1", "--patience -1"), ("--l2 -1", "--l2 -1")]
)
def test_wrong_arguments(arguments, words, capfd):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments.split())
    err = capfd.readouterr().err
    assert stop.value.code == 2 and words in err and err.count("\n") == 1


def test_ctrl_c_says_how_to_go_on(digits, tmp_path, monkeypatch):
    whole = train_lightning(digits, str(tmp_path), name="whole", quiet=True)["folder"]

    def press(self, trainer, module):
        if trainer.current_epoch == 15:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=f"--resume {tmp_path / 'cut'}"):
        patch.setattr(script.Observation, "on_train_epoch_end", press)
        train_lightning(digits, str(tmp_path), name="cut", quiet=True)
    signal.signal(signal.SIGINT, handler)
    train_lightning(digits, resume=str(tmp_path / "cut"), quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def test_the_same_run_on_mnist(mnist, tmp_path):
    config = replace(mnist, epochs=12, dropout=0.2, l2=1e-4)
    plain = train(config, str(tmp_path), name="plain", quiet=True)
    lit = train_lightning(config, str(tmp_path), name="lightning", quiet=True)
    assert_equal_runs(lit["folder"], plain["folder"])
    assert lit["last"]["val_error"] < 0.15
