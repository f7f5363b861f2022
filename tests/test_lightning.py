import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    EVERYTHING,
    ROOT,
    Cut,
    assert_equal_runs,
    contents,
    cut_at,
    events,
    forked,
    points,
    refused,
    same,
    weights,
)
from lightning.pytorch.callbacks import ModelCheckpoint

import data
import train_lightning as script
from support.folder import RunError, read_rows
from train import Config, build_model, random_streams, train
from train_lightning import train_lightning

METHODS = {
    "baseline": {},
    "dropout": {"dropout": 0.3},
    "batch norm": {"norm": "batch"},
    "layer norm": {"norm": "layer"},
    "L1 + L2": {"l1": 1e-4, "l2": 1e-3},
    "augmentation": {"noise": 0.1, "rotate": 10.0, "zoom": 0.1, "shift": 1.0, "shear": 0.1, "elastic": 8.0},
    "one-cycle": {"schedule": "one-cycle", "lr": 1e-2},
    "he, weight decay": {"init": "he", "weight_decay": 0.1},
    "a tenth": {"fraction": 0.1},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "lr": 0.1, "schedule": "one-cycle"},
    "everything": EVERYTHING,
}


def untrained(config):
    init, _, _ = random_streams(config.seed, torch.device("cpu"))
    torch.manual_seed(init)
    return build_model(config, data.load("digits")).state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_as_the_plain_loop(method, digits, tmp_path):
    """The same weights to the last bit, and the same files: measurements, tags, steps, values, result."""
    config = replace(digits, **{"batch_size": 20} | METHODS[method])
    plain = train(config, tmp_path / "plain", quiet=True)
    lit = train_lightning(config, tmp_path / "lightning", quiet=True)
    assert_equal_runs(lit["folder"], plain["folder"])
    moved, start = weights(lit["folder"]), untrained(config)
    assert all(not torch.equal(moved[name], start[name]) for name in moved if name.startswith("linears"))
    bests = [torch.load(Path(run["folder"]) / "best.pt", weights_only=True)["epoch"] for run in (plain, lit)]
    assert bests[0] == bests[1] == plain["best"]["epoch"] > 0
    different = {"seconds", "folder", "best", "last"}  # the last two have been compared but for their seconds
    assert {k: v for k, v in lit.items() if k not in different} == {
        k: v for k, v in plain.items() if k not in different
    }
    files = [sorted(p.name.split(".tfevents")[0] for p in Path(run["folder"]).rglob("*")) for run in (plain, lit)]
    assert files[0] == files[1]
    a, b = events(plain["folder"]), events(lit["folder"])
    assert a.Tags() == b.Tags()
    for tag in a.Tags()["scalars"]:
        assert [e.value for e in a.Scalars(tag)] == [e.value for e in b.Scalars(tag)], tag
    for tag in a.Tags()["histograms"]:
        assert [e.histogram_value for e in a.Histograms(tag)] == [e.histogram_value for e in b.Histograms(tag)], tag
    for tag in a.Tags()["images"]:
        assert [e.encoded_image_string for e in a.Images(tag)] == [e.encoded_image_string for e in b.Images(tag)], tag
    for tag in a.Tags()["tensors"]:
        assert [e.tensor_proto for e in a.Tensors(tag)] == [e.tensor_proto for e in b.Tensors(tag)], tag


def test_the_untrained_model_can_be_the_best(digits, tmp_path):
    config = replace(digits, optimizer="sgd", lr=50.0, momentum=0.9, epochs=3)
    plain = train(config, tmp_path / "plain", quiet=True)
    assert plain["best"]["epoch"] == 0 and plain["status"] == "finished"
    assert_equal_runs(train_lightning(config, tmp_path / "lightning", quiet=True)["folder"], plain["folder"])


def fall_over(patch, epoch, file="last"):
    """A run falls over once it has saved `file` at the evaluation of this epoch."""
    save = ModelCheckpoint.on_validation_end

    def saved(self, trainer, module):
        save(self, trainer, module)
        if module.trained == epoch and self.filename == file:
            raise Cut

    patch.setattr(ModelCheckpoint, "on_validation_end", saved)


@pytest.fixture(scope="module")
def config():
    return Config(data="digits", device="cpu", epochs=20, evaluations=5, histograms=3, **EVERYTHING)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The folder of the run that nothing has disturbed: the plain one, which is the same."""
    return train(config, tmp_path_factory.mktemp("whole"), quiet=True)["folder"]


@pytest.mark.parametrize(("cut", "file"), [(2, "last"), (7, "best"), (7, "last"), (20, "last")])
def test_a_run_that_fell_over_goes_on_to_the_same_weights(cut, file, config, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Cut):
        fall_over(patch, cut, file)
        train_lightning(config, tmp_path / "cut", quiet=True)
    assert not (tmp_path / "cut" / "result.json").exists()
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


@pytest.mark.parametrize("press_at", [7, 9, 20])  # an evaluation, none, the last one
def test_ctrl_c_says_how_to_go_on(press_at, config, whole, tmp_path, monkeypatch):
    def press(self, trainer, module, *_):
        if module.trained == press_at - 1 and trainer.is_last_batch:
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=f"--resume {tmp_path / 'cut'}"):
        patch.setattr(script.Observation, "on_before_optimizer_step", press)
        train_lightning(config, tmp_path / "cut", quiet=True)
    assert signal.getsignal(signal.SIGINT) == handler
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["epoch"] == press_at
    train_lightning(config, tmp_path / "cut", quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def test_a_second_ctrl_c_stops_at_once(digits, tmp_path, monkeypatch):
    def press(self, trainer, module, *_):
        if module.trained == 9:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(script.Observation, "on_before_optimizer_step", press)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train_lightning(digits, tmp_path / "cut", quiet=True)
    assert signal.getsignal(signal.SIGINT) == handler
    assert torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["epoch"] == 7, "the last evaluation"


def test_a_moved_run_keeps_its_best_weights(digits, tmp_path, monkeypatch):
    """Its later evaluations are worse, and Lightning knows the best one by its former path only."""
    config = replace(digits, lr=3e-2, epochs=60, evaluations=10, hidden=(200,))
    whole = train_lightning(config, tmp_path / "whole", quiet=True)
    moments = [row["epoch"] for row in read_rows(tmp_path / "whole")]
    later = moments[moments.index(whole["best"]["epoch"]) + 1]
    assert later < 60
    with monkeypatch.context() as patch, pytest.raises(Cut):
        fall_over(patch, later)
        train_lightning(config, tmp_path / "cut", quiet=True)
    (tmp_path / "cut").rename(tmp_path / "moved")
    train_lightning(config, tmp_path / "moved", quiet=True)
    assert_equal_runs(tmp_path / "moved", whole["folder"])
    assert not (tmp_path / "cut").exists()


def test_a_finished_run_trains_nothing(digits, tmp_path, monkeypatch):
    result = train_lightning(digits, tmp_path / "run", quiet=True)
    before = contents(tmp_path)
    monkeypatch.setattr(script, "run", None)
    assert train_lightning(digits, tmp_path / "run", quiet=True) == result
    assert contents(tmp_path) == before
    assert train(digits, tmp_path / "run", quiet=True) == result
    with pytest.raises(RunError, match="dropout"):
        train_lightning(replace(digits, dropout=0.5), tmp_path / "run", quiet=True)


def test_a_checkpoint_of_the_plain_loop_is_refused(digits, tmp_path):
    with pytest.raises(Cut):
        train(digits, tmp_path / "plain", quiet=True, on_evaluation=cut_at(7))
    with pytest.raises(RunError, match=r"last.pt: damaged or foreign .*state_dict"):
        train_lightning(digits, tmp_path / "plain", quiet=True)


def test_a_foreign_optimizer_is_refused(digits, tmp_path, monkeypatch):
    """Another shape would corrupt the memory of fused Adam."""
    with monkeypatch.context() as patch, pytest.raises(Cut):
        fall_over(patch, 7)
        train_lightning(digits, tmp_path / "run", quiet=True)
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(2)
    torch.save(checkpoint, tmp_path / "run" / "last.pt")
    with pytest.raises(RunError, match=r"last.pt: damaged or foreign .*exp_avg"):
        train_lightning(digits, tmp_path / "run", quiet=True)


def test_no_checkpoint_goes_by_way_of_the_temporary_folder(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.fabric.utilities.cloud_io._atomic_save", None)
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", None)
    written = []
    write = script.write_checkpoint
    monkeypatch.setattr(script, "write_checkpoint", lambda path, state: written.append(path.name) or write(path, state))
    train_lightning(digits, tmp_path / "run", quiet=True)
    assert written[:3] == ["best.pt", "best.pt", "last.pt"]


def test_a_diverged_run_stops_as_the_plain_one(digits, tmp_path):
    config = replace(digits, optimizer="sgd", lr=100.0, batch_size=20)
    plain = train(config, tmp_path / "plain", quiet=True)
    lit = train_lightning(config, tmp_path / "lightning", quiet=True)
    assert lit["status"] == "diverged" and lit["step"] == plain["step"] == 5, "an update within an epoch"
    assert lit["last"] | {"seconds": 0} == plain["last"] | {"seconds": 0}


@pytest.mark.parametrize("lr", [1e-2, 50.0])  # with the second, the untrained model is the best
def test_patience_stops_as_in_the_plain_run(lr, digits, tmp_path, monkeypatch):
    config = replace(digits, epochs=1000, lr=lr, evaluations=30, patience=2, optimizer="sgd" if lr > 1 else "adam")
    plain = train(config, tmp_path / "plain", quiet=True)
    whole = train_lightning(config, tmp_path / "lightning", quiet=True)
    assert plain["status"] == "finished" and 0 < plain["last"]["epoch"] < 1000
    assert_equal_runs(whole["folder"], plain["folder"])
    moments = [int(row["epoch"]) for row in read_rows(tmp_path / "plain")]
    for cut in moments[-2:]:
        with monkeypatch.context() as patch, pytest.raises(Cut):
            fall_over(patch, cut)
            train_lightning(config, tmp_path / f"cut{cut}", quiet=True)
        train_lightning(config, tmp_path / f"cut{cut}", quiet=True)
        assert_equal_runs(tmp_path / f"cut{cut}", plain["folder"])


# --- several processes


def run_script(*arguments, cwd, **options):
    command = [sys.executable, ROOT / "train_lightning.py", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, **options)


DIGITS = ("--data", "digits", "--device", "cpu", "--epochs", 100, "--batch-size", 24, "--evaluations", 5)


def test_the_screen_and_the_folder(tmp_path):
    done = run_script(*DIGITS, "--name", "run", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    best = json.loads((tmp_path / "runs" / "run" / "result.json").read_text())["best"]
    assert f"Trainer.test on best.pt: cost {best['loss/test']:.4f}, error {best['error/test']:.2%}" in done.stdout
    assert "lowest validation cost, epoch" in done.stdout and "tensorboard --logdir runs" in done.stdout
    assert "python train_lightning.py" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["runs"], "stray files"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["run"]


def test_two_processes_share_every_batch_and_come_close_to_one(digits, tmp_path):
    config = replace(digits, epochs=100, batch_size=24)
    one = train_lightning(config, tmp_path / "one", quiet=True)["folder"]
    done = run_script(*DIGITS, "--devices", 2, "--strategy", "ddp", cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    (two,) = (tmp_path / "runs").iterdir()
    costs = [read_rows(folder)[-1]["loss/val"] for folder in (two, Path(one))]
    assert costs[0] == pytest.approx(costs[1], rel=0.02)
    assert not same(weights(two), weights(one)), "one process has seen whole batches"
    assert points(two).keys() == points(one).keys() and done.stdout.count("tensorboard --logdir") == 1


def node(rank, port, config, folder, cut):
    """A machine's process, as a scheduler would start it: its LOCAL_RANK is 0 on every machine."""
    os.environ |= {"NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if cut:
        fall_over(pytest.MonkeyPatch(), cut)
    try:
        result = train_lightning(config, folder, quiet=True, num_nodes=2, strategy="ddp")
        os._exit(0 if bool(result) == (rank == 0) else 1)
    except Cut:
        os._exit(2)


def two_nodes(*arguments, expected=0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [forked(node, rank, port, *arguments) for rank in range(2)]
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [expected] * 2


def test_two_machines_write_one_run_and_go_on_with_every_process_own_draws(config, whole, tmp_path):
    two_nodes(config, tmp_path / "whole", 0)
    two_nodes(config, tmp_path / "cut", 7, expected=2)
    assert not (tmp_path / "cut" / "result.json").exists()
    with pytest.raises(RunError, match=r"random"):
        train_lightning(config, tmp_path / "cut", quiet=True)
    two_nodes(config, tmp_path / "cut", 0)
    assert_equal_runs(tmp_path / "cut", tmp_path / "whole")
    assert not same(weights(tmp_path / "whole"), weights(whole)), "both have drawn the same"


# --- wrong arguments


@pytest.mark.parametrize(
    "arguments",
    ["--devices 0", "--patience -1", "--l2 -1", "--accelerator foo", "--strategy ddp_spawn", "--num-nodes 0"],
)
def test_wrong_arguments(arguments, capfd):
    code, error = refused(capfd, script.main, *arguments.split())
    assert code == 2 and arguments in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--devices 50", "--devices: 50 processes cannot share a batch of 24"),
        ("--devices 13 --norm batch", "--devices: 13 processes cannot share a batch of 24"),
        ("--num-nodes 2", "MASTER_PORT"),
        ("--accelerator gpu", "--accelerator gpu"),
    ],
)
def test_machines_that_cannot_be_had(arguments, words, tmp_path, capfd, monkeypatch):
    if "gpu" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    code, error = refused(capfd, script.main, *DIGITS, "--runs-dir", tmp_path, "--name", "run", *arguments.split())
    assert code == 1 and words in error


@pytest.mark.parametrize("arguments", ["", "--devices 2 --strategy ddp"])
def test_a_second_process_without_a_first(arguments, capfd, monkeypatch):
    monkeypatch.setattr(script.rank_zero_only, "rank", 1)  # what Lightning makes of this, when it is imported
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    code, error = refused(capfd, script.main, *DIGITS, *arguments.split())
    assert code == 1 and "LOCAL_RANK" in error


def test_the_same_run_on_mnist(mnist, tmp_path):
    config = replace(mnist, epochs=12, dropout=0.2, l2=1e-4)
    plain = train(config, tmp_path / "plain", quiet=True)
    lit = train_lightning(config, tmp_path / "lightning", quiet=True)
    assert_equal_runs(lit["folder"], plain["folder"])
    assert lit["last"]["error/val"] < 0.15
