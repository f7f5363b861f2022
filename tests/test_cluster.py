"""Runs on Dask's workers: each once, whatever dies; what a command that is stopped or killed leaves is gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import optuna
import psutil
import pytest
from helpers import ROOT

from support import cluster, shell
from support.cluster import Failed, Journal, StudyError, run_all
from support.run import RunError, alone
from train import Config, train

PRELOAD = ["test_cluster"]
EPOCHS = 400

# --- what workers do


def work(payload, folder):
    """What `payload` says, and how often it was begun."""
    (folder / f"attempt-{time.time_ns()}").touch()
    attempts, do = len(list(folder.glob("attempt-*"))), payload.get("do", "")
    if do == "fail":
        raise Failed("its own\nfault")
    if do == "die" and attempts < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if (do == "full disk" and attempts == 1) or (do == "always full" and not (folder.parent / "space").exists()):
        raise OSError(28, "No space left on device", "some/file")
    if do == "stop" and attempts == 1:  # a SIGTERM to its worker, as from a scheduler of batch jobs
        with shell.interrupts() as stopped:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped.wait(60)
        (folder / "saved").touch()
        raise KeyboardInterrupt
    if do == "listen":
        driven = psutil.Process(payload["driver"])
        processes = {driven, *driven.children(recursive=True)}
        ports = [(one.pid, port) for one in processes for port in one.net_connections("inet")]
        return [(pid, port.laddr.ip) for pid, port in ports if port.status == "LISTEN"]
    return [payload["n"], attempts]


def train_digits(payload, folder):
    (folder.parent / f"began-{time.time_ns()}").touch()
    return train(Config(**payload), folder, quiet=True)["best"]["loss/val"]


def plans():
    fixed = {"data": "digits", "device": "cpu", "epochs": EPOCHS, "evaluations": 40, "histograms": 0, "dropout": 0.1}
    return [fixed | {"seed": seed} for seed in range(3)]


def main():
    """The command of a test: train_digits in the folder that is given."""
    folder, *scheduler = sys.argv[1:]
    with shell.errors_in_one_line(StudyError, RunError):
        runs = run_all(train_digits, plans(), Path(folder), scheduler="".join(scheduler), preload=PRELOAD)
        print(json.dumps([run.result for run in runs]))


# --- tests


def command(*arguments, **more):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, **pipes | more)


def driver(*arguments):
    return command("-c", "import test_cluster; test_cluster.main()", *arguments)


def said(err):
    """The lines on the screen but the link to Dask's page."""
    page = "the workers' own page: http://127.0.0.1:"
    return [line for line in err.splitlines() if line and not line.startswith(page)]


def until(condition, what):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return [train_digits(plan, tmp_path_factory.mktemp("alone") / "run") for plan in plans()]


def test_every_run_is_done_once_and_kept_whatever_dies(tmp_path, monkeypatch, capfd):
    """A worker that is killed twice, a full disk and a SIGTERM are nobody's end; a fault of a run's own is."""
    deeds = ["", "fail", "die", "full disk", *["stop"] * hasattr(signal, "pthread_sigmask"), ""]
    payloads = [{"n": n, "do": do} for n, do in enumerate(deeds)] + [{"n": 0, "do": ""}]
    runs = run_all(work, payloads, tmp_path, label=lambda one: one["do"] + "/..", preload=PRELOAD)
    attempts = {"fail": None, "die": 3, "full disk": 2, "stop": 2}
    for payload, run in zip(payloads, runs, strict=True):  # a worker that dies takes results along: one attempt more
        found, least = run.result or [payload["n"], None], attempts.get(payload["do"], 1)
        assert found[0] == payload["n"] and (found[1] is least or least <= found[1] <= least + 1)
    assert runs[0].result == runs[-1].result, "the same payload is the same run"
    assert [run.reason for run in runs] == ["its own fault" if do == "fail" else "" for do in [*deeds, ""]]
    assert all(run.begun <= run.ended for run in runs)
    folders = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    assert len(folders) == len(deeds), "one for each payload, inside, the same payload twice is one run"
    assert "stop" not in deeds or [path.parent.name[:4] for path in tmp_path.glob("runs/*/saved")] == ["stop"]
    assert said(capfd.readouterr().err) == []
    monkeypatch.setattr(cluster, "connected", None)
    assert run_all(work, payloads[::-1], tmp_path, label=lambda one: one["do"] + "/..") == runs[::-1], "it ran again"


def test_what_keeps_failing_ends_the_command_and_is_not_final(tmp_path):
    payloads = [{"n": 0}, {"n": 1, "do": "always full"}]
    with pytest.raises(StudyError) as error:
        run_all(work, payloads, tmp_path, workers=1, preload=PRELOAD)
    assert "No space left on device: 'some/file'; the same command goes on" in str(error.value)
    assert len(list(tmp_path.glob("runs/*/kept.json"))) == 1, "the other one is kept"
    (tmp_path / "runs/space").touch()
    listen = {"do": "listen", "driver": os.getpid()}
    runs = run_all(work, [*payloads, listen], tmp_path, workers=1, preload=PRELOAD)
    assert [run.result for run in runs[:2]] == [[0, 1], [1, 4]]
    pids, addresses = zip(*runs[2].result, strict=True)
    assert set(addresses) == {"127.0.0.1"}, "what Dask unpickles, strangers could send"
    assert len(set(pids)) == 2 and os.getpid() in pids, "this process and one worker"


def test_a_second_command_and_a_scheduler_that_is_none_are_refused(tmp_path):
    with alone(tmp_path / "study"), pytest.raises(RunError, match="study: another process is at work here"):
        run_all(work, [{"n": 0}], tmp_path / "study")
    with pytest.raises(StudyError, match=r"^nowhere://x: out of reach"):
        run_all(work, [{"n": 0}], tmp_path / "study", scheduler="nowhere://x")


def test_ctrl_c_and_kill_9_and_the_same_command_goes_on(tmp_path, undisturbed):
    """To the results of an undisturbed run; nothing is left behind, and nothing is run twice."""
    process = driver(tmp_path)
    until(lambda: list(tmp_path.rglob("metrics.csv")), "a run")
    everybody = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and said(err) == ["interrupted; the same command goes on"]
    until(lambda: not any(map(psutil.pid_exists, everybody)), "the end of all processes")
    saved = {path.parent for path in tmp_path.glob("runs/*/last.pt")}
    assert saved >= {path.parent for path in tmp_path.glob("runs/*/metrics.csv")}, "a run was not saved"

    process = driver(tmp_path)
    until(lambda: list(tmp_path.glob("runs/*/kept.json")), "the end of a run")
    process.kill()
    process.communicate()
    begun = len(list(tmp_path.glob("runs/began-*")))
    out, err = driver(tmp_path).communicate(timeout=300)
    assert json.loads(out) == undisturbed and said(err) == []
    assert len(list(tmp_path.glob("runs/began-*"))) < begun + 3, "what was kept is not run again"
    assert len(list(tmp_path.glob("runs/*/kept.json"))) == 3


def test_workers_of_a_scheduler_in_other_folders(tmp_path, undisturbed):
    """They find the modules; a worker may come late; a scheduler that is lost is one line, and the command goes on."""
    (tmp_path / "study").mkdir()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    port = 20_000 + os.getpid() % 20_000
    url, here = f"tcp://127.0.0.1:{port}", ("--host", "127.0.0.1")
    dask = ("-P", "-m", "dask")  # without the present folder on its path

    def begin(*arguments):
        started.append(command(*dask, *arguments, *here, **quiet))
        return started[-1]

    started = []
    try:
        scheduler = begin("scheduler", "--port", port, "--dashboard-address", "127.0.0.1:0")
        process = driver(tmp_path / "study", url)
        begin("worker", url, "--nthreads", 2)
        until(lambda: list(tmp_path.rglob("metrics.csv")), "a run")
        scheduler.kill()
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1
        assert said(err) == ["error: the scheduler is lost; when it is back, the same command goes on"]
        begin("scheduler", "--port", port, "--dashboard-address", "127.0.0.1:0")
        begin("worker", url, "--nthreads", 1)
        out, err = driver(tmp_path / "study", url).communicate(timeout=300)
        assert json.loads(out) == undisturbed and said(err) == []
    finally:
        for one in started:
            os.killpg(one.pid, signal.SIGKILL)
            one.wait()


def test_half_a_line_at_the_end_of_a_journal_is_not_built_on(tmp_path):
    path = tmp_path / "journal.log"

    def opened():
        journal = Journal(str(path), filelock.FileLock(f"{path}.lock"))
        return optuna.create_study(study_name="s", storage=optuna.storages.JournalStorage(journal), load_if_exists=True)

    opened().ask()
    whole = path.read_bytes()
    for half in (b'{"op_code":4,"worker_i', b'{"op_code":' + b"1" * 5000, b"\0"):
        path.write_bytes(whole + half)
        assert len(opened().trials) == 1
        study = opened()
        study.tell(study.ask(), 1.0)
        assert path.read_bytes().startswith(whole + b'{"op_code":') and len(opened().trials) == 2
