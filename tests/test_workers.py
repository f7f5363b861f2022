"""Storage, supervision and recovery, with toy objectives; processes only where the promise is about processes."""

import inspect
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

from support import storage as store
from support import workers
from support.workers import Failed, Place, StudyError, digest, finished, run_planned, run_search

TESTS = Path(__file__).parent
PRELOAD = ["test_workers"]
MINE = "this worker"


@pytest.fixture(autouse=True)
def quiet():
    workers.be_quiet()


@pytest.fixture
def journal(tmp_path):
    return Place(tmp_path / "study", "toy")


@pytest.fixture
def shared(tmp_path, database):
    return Place(tmp_path / "study", "toy", database)


@pytest.fixture(params=["journal", "shared"])
def place(request):
    return request.getfixturevalue(request.param)


# --- toys: run in worker processes as well


def sampler(seed):
    return optuna.samplers.RandomSampler(seed=seed)


def slow(trial, folder, pause=0.05):
    """Ten steps of work that goes on where it was interrupted, and counts its attempts."""
    x = trial.suggest_float("x", -1, 1)
    folder.mkdir(parents=True, exist_ok=True)
    steps = folder / "steps"
    for step in range(int(steps.read_text()) if steps.exists() and steps.read_text() else 0, 10):
        trial.report(x**2, step)
        steps.write_text(str(step))
        time.sleep(pause)
    return x**2


def quick(trial, folder):
    return trial.suggest_float("x", -1, 1) ** 2


def double(payload, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "attempts").open("a") as file:
        file.write("x")
    time.sleep(payload.get("seconds", 0))
    if payload["n"] == 13:
        raise Failed("unlucky")
    return {"twice": 2 * payload["n"], "threads": os.environ["OMP_NUM_THREADS"]}


def full_disk(trial, folder):
    raise OSError(28, "No space left on device", "some/file")


def suicide(trial, folder):
    os.kill(os.getpid(), signal.SIGKILL)


def leave(trial, folder):
    sys.exit("I leave")


def begin_at_once(place, barrier, errors):
    barrier.wait()
    try:
        workers._open_study(place, {"a": 1}, store.open_storage(place))
    except BaseException as error:
        errors.put(repr(error))


def main(folder, storage, trials, pause):
    """The command that other tests interrupt, in a process of its own."""
    store.HEARTBEAT, store.GRACE, store.PATIENCE = 1, 4, 2
    try:
        search(Place(Path(folder), "toy", storage), partial(slow, pause=float(pause)), trials=int(trials))
    except StudyError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interrupt:
        print(f"interrupted; {interrupt}", file=sys.stderr)
        sys.exit(130)


def search(place, objective, trials=4, **more):
    more = {"workers": 2, "settings": {"a": 1}, "sampler": sampler, "preload": PRELOAD} | more
    return run_search(place, objective, trials=trials, **more)


# --- helpers


class Toy:
    """A study that is worked on in this process."""

    def __init__(self, place, function, trials=3, payloads=None, me=MINE):
        payloads = payloads and {digest(payload): payload for payload in payloads}
        self.job = workers.Job(place, function, len(payloads or range(trials)), payloads)
        self.storage, self.me = store.open_storage(place), me
        self.study = workers._open_study(place, None, self.storage)

    def turn(self):
        (self.job.place.folder / "workers").mkdir(parents=True, exist_ok=True)
        with workers._lock(self.job.place, self.me):
            return workers._turn(self.job, self.study, self.storage, self.me)

    def claim(self):
        return workers._claim(self.job, self.study, self.storage, self.me)

    def recover(self, beaten=None):
        return workers._recover(self.job.place, self.study, self.storage, {} if beaten is None else beaten)

    def states(self):
        return [trial.state.name for trial in self.study.get_trials()]


def assert_sound(study, count):
    """Every key is finished exactly once, none is lost or left running."""
    done = finished(study)
    assert len(done) == count
    final = [t for t in study.trials if workers._is_final(t) and "surplus" not in t.user_attrs]
    assert max(Counter(trial.user_attrs["key"] for trial in final).values()) == 1
    assert {trial.state for trial in study.trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}


def running(place, count=2, seconds=40):
    """The trials that run, once so many do and have begun to work."""
    end = time.time() + seconds
    while time.time() < end:
        try:
            trials = workers.load(place).get_trials(states=(TrialState.RUNNING,))
        except StudyError:
            trials = []
        trials = [trial for trial in trials if trial.intermediate_values]
        if len(trials) >= count:
            return trials
        time.sleep(0.1)
    raise AssertionError(f"no {count} trials ran")


def pid(trial):
    return int(trial.user_attrs["host"].split()[-1])


def command(place, trials=6, pause=0.05, **more):
    code = "import sys, test_workers; test_workers.main(*sys.argv[1:])"
    arguments = [sys.executable, "-c", code, place.folder, place.storage, str(trials), str(pause)]
    environment = os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
    return subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        **more,
    )  # fmt: skip


class Meanwhile(threading.Thread):
    """Does something beside a command of this process; its failure is the test's."""

    def __init__(self, function, *arguments):
        super().__init__()
        self.call, self.error = (function, arguments), None
        self.start()

    def run(self):
        try:
            self.call[0](*self.call[1])
        except BaseException as error:
            self.error = error

    def done(self):
        self.join()
        if self.error:
            raise self.error


# --- one trial


def test_whatever_the_run_is_not_to_blame_for_is_tried_again_as_often_as_it_takes(place):
    """With the same values, in the same folder."""
    seen = []

    def interrupted(trial, folder):
        seen.append((trial.suggest_float("x", -1, 1), folder, workers.number(trial)))
        if len(seen) == 1:
            trial.report(0.25, 3)
        raise KeyboardInterrupt

    toy = Toy(place, interrupted, trials=1)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            toy.turn()
        assert toy.states()[-1] == "RUNNING"
        toy.recover()
        assert finished(toy.study) == []
    assert toy.states() == ["FAIL"] * 4 and len(set(seen)) == 1, seen
    assert seen[0][1].parent == place.folder / "runs" and seen[0][1].name.startswith("trial-0000-")
    assert toy.study.trials[-1].intermediate_values == {3: 0.25}
    toy = Toy(place, quick, trials=1)
    assert toy.turn() and not toy.turn()
    (trial,) = finished(toy.study)
    assert workers.number(trial) == 0 and trial.number == 4 and trial.value == seen[0][0] ** 2


@pytest.mark.parametrize(
    ("end", "state", "reason"),
    [
        (Failed("diverged after 3 updates"), TrialState.FAIL, "diverged after 3 updates"),
        (optuna.TrialPruned(), TrialState.PRUNED, None),
        (float("nan"), TrialState.FAIL, "its cost is not a number"),
    ],
)
def test_what_a_run_does_itself_is_final(end, state, reason, journal):
    def objective(trial, folder):
        if isinstance(end, Exception):
            raise end
        return end

    toy = Toy(journal, objective, trials=1)
    assert toy.turn() and not toy.turn()
    (trial,) = finished(toy.study)
    assert trial.state == state and trial.user_attrs.get("reason") == reason


@pytest.mark.parametrize("payloads", [None, [{"n": 1}]], ids=["search", "planned"])
def test_of_two_that_begin_the_same_trial_at_once_one_leaves(payloads, place):
    """The second one looks before the first one has begun, and begins after it."""
    one, two = (Toy(place, double if payloads else quick, 1, payloads, me) for me in ("one", "two"))
    create, begun = two.storage.create_new_trial, []
    two.storage.create_new_trial = lambda *more: begun.append(one.claim()) or create(*more)
    assert two.claim() is None
    assert begun != [None]
    assert one.states() == ["RUNNING", "FAIL"]
    assert "surplus" in one.study.trials[1].user_attrs and finished(one.study) == []


def test_a_trial_whose_beginning_was_not_heard_of_blocks_nobody(place):
    """The connection was cut after the request and before the answer; the request is made again."""
    toy = Toy(place, quick, trials=1)
    create = toy.storage.create_new_trial
    toy.storage.create_new_trial = lambda *more: (create(*more) and None) or create(*more)
    assert toy.turn() and not toy.turn()
    assert_sound(toy.study, 1)


def test_a_trial_that_others_took_for_dead_is_left_to_them(place):
    def asleep(trial, folder):
        Toy(place, quick).storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        trial.report(1.0, 1)
        raise AssertionError("it goes on")

    toy = Toy(place, asleep, trials=1)
    assert toy.turn()
    assert toy.states() == ["FAIL"] and finished(toy.study) == []


# --- planned runs


def test_planned_runs_are_run_once_ever(place):
    payloads = [{"n": n} for n in (12, 13, 14)]
    runs = run_planned(place, double, payloads, workers=2, preload=PRELOAD)
    assert runs[0].result == {"twice": 24, "threads": "1"} and runs[2].result["twice"] == 28
    assert runs[1][:2] == (None, "unlucky")
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", time) for run in runs for time in run[2:])
    folders = sorted(path.name for path in (place.folder / "runs").iterdir())
    assert folders == sorted(digest(payload)[:12] for payload in payloads)
    elsewhere = Place(place.folder, place.name, place.storage)
    assert run_planned(elsewhere, None, payloads, workers=2) == runs, "it was run again"
    assert {path.read_text() for path in place.folder.glob("runs/*/attempts")} == {"x"}


def test_a_command_runs_its_own_payloads_only(journal):
    with pytest.raises(KeyError):
        Toy(journal, double, payloads=[{"none": 1}]).turn()
    toy = Toy(journal, double, payloads=[{"n": 1}])
    toy.recover()
    while toy.turn():
        pass
    assert [trial.user_attrs["key"] for trial in finished(toy.study)] == [digest({"n": 1})]


def test_a_digest_knows_settings_and_not_their_order():
    assert digest({"a": 1, "b": 2.5}) == digest({"b": 2.5, "a": 1}) != digest({"a": 1, "b": 2.6})
    assert len(digest({})) == 64


def test_names_from_a_database_are_not_paths(place, tmp_path):
    """Whoever can write to it can name a trial, but neither place nor remove a folder."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for key in ("../../outside", str(outside), 7, ["x"]):
        marks = {"key": key, "worker": "../../outside", "name": "../../outside"}
        Toy(place, quick).study.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs=marks))
    planned = Toy(place, double, payloads=[{"n": 1}])
    assert planned.turn() and not planned.turn()
    seen = []
    toy = Toy(place, lambda trial, folder: seen.append(folder) or 1.0, trials=5)
    toy.recover()
    while toy.turn():
        pass
    assert len(seen) == 4 and {folder.parent for folder in seen} == {place.folder / "runs"}
    assert all(re.fullmatch(r"trial-\d{4}-[0-9a-f]{8}", folder.name) for folder in seen)
    assert outside.is_dir()
    name = workers.planned_folder(place, {"n": 1}, "../L2 + dropout").name
    assert re.fullmatch(r"L2-\+-dropout-[0-9a-f]{12}", name)


def test_a_new_study_of_an_old_name_has_other_folders(journal):
    """The journal was deleted; nothing of what it held comes back as new."""
    folders = []
    for _ in range(2):
        toy = Toy(journal, lambda trial, folder: folders.append(folder) or 1.0, trials=1)
        toy.turn()
        journal.journal.unlink()
    assert folders[0] != folders[1]


# --- studies


def test_a_study_begun_with_other_settings_is_refused(place):
    storage = store.open_storage(place)
    workers._open_study(place, {"epochs": 5, "folds": (1, 2)}, storage)
    workers._open_study(place, {"epochs": 5, "folds": (1, 2)}, storage)
    with pytest.raises(StudyError, match=r"^study toy: begun with epochs 5, not 6; .* or its settings$"):
        workers._open_study(place, {"epochs": 6, "folds": (1, 2)}, storage)


def test_there_is_nothing_to_load(place):
    with pytest.raises(StudyError, match="study toy: there is none in"):
        workers.load(place)
    assert not place.folder.exists()


# --- journals


def test_half_a_line_at_the_end_is_cut_off_and_said(journal, capsys):
    toy = Toy(journal, quick)
    toy.turn()
    whole = journal.journal.read_bytes()
    for half in (b'{"op_code":4,"worker_i' + b"x" * 500, b'{"o', b"\0\0\0"):
        journal.journal.write_bytes(whole + half)
        assert len(workers.load(journal).trials) == 1
        toy = Toy(journal, quick)
        toy.study.set_user_attr("after", half.decode())
        assert f"{len(half)} bytes, was cut off" in capsys.readouterr().err
        assert journal.journal.read_bytes().startswith(whole + b'{"op_code":')
        assert Toy(journal, quick).study.user_attrs["after"] == half.decode()


@pytest.mark.parametrize(
    "damage",
    [b'{"op_code":4,"worker_id":"a","tri', b"[1]", b'{"op_code":77}', b'{"op_code":4}', b"\xff\0", b"[" * 100_000],
    ids=["half", "list", "code", "fields", "bytes", "depth"],
)
def test_damage_further_up_is_one_line_with_its_number(damage, journal):
    Toy(journal, quick).turn()
    lines = journal.journal.read_bytes().splitlines(keepends=True)
    journal.journal.write_bytes(b"".join([*lines[:2], damage + b"\n", *lines[2:]]))
    for _ in range(2):
        with pytest.raises(StudyError, match=rf"^{journal.journal}, line 3: damaged"):
            workers.load(journal)


@pytest.mark.parametrize("text", ["12:00 another program began\n12:01 it ended\n", '{"time": 3}\n', "no line at all"])
def test_a_journal_of_another_program_is_left_alone(text, journal):
    journal.folder.mkdir()
    journal.journal.write_text(text)
    with pytest.raises(StudyError, match="line 1: damaged, or not a journal of Optuna's"):
        search(journal, quick)
    assert journal.journal.read_text() == text


def test_a_full_disk_leaves_no_half_line(journal):
    toy = Toy(journal, quick)
    before = journal.journal.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))  # 20 bytes more fit
    try:
        with pytest.raises(OSError) as error:
            toy.study.set_user_attr("name", "value")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.filename == str(journal.journal)
    assert journal.journal.read_bytes() == before
    toy.study.set_user_attr("name", "value")
    assert Toy(journal, quick).study.user_attrs == {"name": "value"}


def test_a_lock_that_a_killed_process_holds_is_broken(tmp_path, monkeypatch):
    """In a relative folder, where Optuna's symbolic link would point nowhere, and everybody wait for ever."""
    monkeypatch.chdir(tmp_path)
    log = store.Journal(Path("journal.log"))
    log.lock.grace_period = 1
    Path("journal.log.lock").touch()
    start = time.time()
    log.append_logs([{"op_code": 0}])
    assert 1 < time.time() - start < 10 and not Path("journal.log.lock").exists()


# --- databases


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://someone:secret@127.0.0.1:9/nowhere", "postgresql://127.0.0.1:9/nowhere: out of reach"),
        ("postgresql://127.0.0.1:9/nowhere?user=someone&password=secret", "postgresql://127.0.0.1:9/nowhere: out of"),
        ("postgresql://127.0.0.1:9/nowhere?sslmode=secret", "out of reach"),
        ("no url, but a secret", "not the URL of a database"),
        ("nosuchdatabase://a:secret@b/c", "not the URL of a database"),
        ("mysql://a:secret@b/c", "mysql://b/c: out of reach (Failed to import DB access module"),
        ("postgresql://someone:secret", "not the URL of a database"),
        ("postgresql://someone:se@secret@127.0.0.1/x", "not the URL of a database"),
        ("postgresql://someone:{secret}@127.0.0.1:9/x", "out of reach"),
        ("sqlite:////nowhere/at/all?password=secret", "out of reach"),
    ],
)
def test_of_a_url_only_host_port_and_database_are_shown(url, words, tmp_path):
    place = Place(tmp_path / "study", "toy", url)
    with pytest.raises(StudyError) as error:
        search(place, quick)
    text = str(error.value)
    assert words in text and "secret" not in text + repr(place) and "someone" not in text and "\n" not in text


def lost(times):
    """A request that fails so often because the server is away."""
    cut = sqlalchemy.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))
    left = [sqlalchemy.exc.PendingRollbackError("roll back first"), cut] * times

    def request(value):
        if left:
            raise optuna.exceptions.StorageInternalError from left.pop()
        return value

    return request


def test_a_lost_database_is_waited_for_with_a_limit(capsys):
    url = "postgresql://someone:secret@here:1/there"
    assert store._patiently(url, 20, lost(1), 7) == 7
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("postgresql://here:1/there: out of reach (server closed")
    start = time.monotonic()
    with pytest.raises(StudyError, match=r"^postgresql://here:1/there: out of reach .* finished is kept$"):
        store._patiently(url, 1, lost(1000), 7)
    assert time.monotonic() - start < 10


def test_every_request_is_patient():
    """Those of Optuna's interface, and those that its cache makes."""
    cache = inspect.getsource(optuna.storages._CachedStorage)
    names = set(re.findall(r"self\._backend\.(\w+)", cache)) | set(optuna.storages.BaseStorage.__abstractmethods__)
    patient = {name for name, value in vars(store.PatientStorage).items() if hasattr(value, "__wrapped__")}
    assert len(names) > 20 and names <= patient


def test_several_machines_begin_on_an_empty_database_at_once(shared):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    barrier, errors = context.Barrier(4), context.SimpleQueue()
    processes = [context.Process(target=begin_at_once, args=(shared, barrier, errors)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert errors.empty(), errors.get()
    assert workers.load(shared).user_attrs == {"settings": {"a": 1}}


def test_connections_that_are_cut_lose_no_trial(shared):
    """Running trials go on, are finished, and are not begun again."""

    def cut():
        running(shared)
        name = sqlalchemy.make_url(shared.storage).database
        server = sqlalchemy.create_engine(os.environ["TEST_POSTGRESQL"], isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            for _ in range(8):
                connection.execute(
                    sqlalchemy.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                    {"name": name},
                )
                time.sleep(0.2)
        server.dispose()

    scissors = Meanwhile(cut)
    study = search(shared, partial(slow, pause=0.2), trials=3)
    scissors.done()
    assert_sound(study, 3)
    assert not [trial for trial in study.trials if workers._is_lost(trial) and trial.intermediate_values]


def test_a_database_that_stays_away_is_one_line(shared):
    from conftest import drop

    process = command(shared, trials=50, pause=0.3)
    running(shared)
    drop(sqlalchemy.make_url(shared.storage).database)
    out, err = process.communicate(timeout=60)
    waits, error = err.splitlines()
    assert process.returncode == 1 and out == "" and "secret" not in err
    assert waits.endswith("it is waited for, 2 seconds at most") and error.startswith("error: postgresql://127.0.0.1")


# --- death


def test_a_worker_lives_as_long_as_its_lock(place):
    """Whatever the host is called by now; and its lock is forgotten once nobody needs it."""
    toy = Toy(place, quick)
    (place.folder / "workers").mkdir(parents=True, exist_ok=True)
    lock = place.folder / "workers" / f"{MINE}.lock"
    with workers._lock(place, MINE):
        toy.claim()
        toy.recover()
        assert toy.states() == ["RUNNING"]
    toy.recover()
    assert toy.states() == ["FAIL"] and lock.exists()
    toy.recover()
    assert not lock.exists()


def test_another_machine_that_died_before_its_first_sign_is_taken_over(shared, monkeypatch):
    monkeypatch.setattr(store, "GRACE", 2)
    Toy(shared, quick, me="a worker far away").claim()
    toy, beaten, start = Toy(shared, quick), {}, time.time()
    while toy.states() == ["RUNNING"] and time.time() - start < 20:
        toy.recover(beaten)
        time.sleep(0.2)
    assert toy.states() == ["FAIL"] and time.time() - start > 2


def test_signs_of_life_are_given_for_workers_with_a_lock(shared, monkeypatch):
    monkeypatch.setattr(store, "HEARTBEAT", 1)
    monkeypatch.setattr(store, "GRACE", 2)
    (shared.folder / "workers").mkdir(parents=True)
    toy, beaten, start = Toy(shared, quick), {}, time.time()
    with workers._lock(shared, MINE):
        toy.claim()
        while time.time() - start < 3.5:
            toy.recover(beaten)
            time.sleep(0.2)
    assert toy.states() == ["RUNNING"]


def test_a_worker_killed_with_9_loses_nothing(place):
    victims = []

    def kill():
        victims.append(running(place)[0])
        os.kill(pid(victims[0]), signal.SIGKILL)

    killer = Meanwhile(kill)
    start = time.monotonic()
    study = search(place, partial(slow, pause=0.15), trials=5)
    killer.done()
    assert_sound(study, 5)
    assert time.monotonic() - start < store.GRACE, "it waited for a sign of life of a worker that had no lock"
    (victim,) = victims
    assert study.trials[victim.number].state == TrialState.FAIL
    (again,) = [
        trial
        for trial in study.trials
        if trial.user_attrs.get("number") == victim.number and "surplus" not in trial.user_attrs
    ]
    assert again.params == victim.params and again.state == TrialState.COMPLETE
    if place.storage:
        assert not [p for p in place.folder.rglob("*") if p.is_file() and b"secret" in p.read_bytes()]


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (full_disk, "some/file: No space left on device"),
        (suicide, "killed by SIGKILL"),
        (leave, "SystemExit: I leave"),
    ],
)
def test_workers_that_keep_dying_end_the_command_with_the_reason(objective, reason, journal, capfd):
    with pytest.raises(StudyError) as error:
        search(journal, objective, workers=1)
    assert str(error.value) == f"3 workers died in a row, the last one of: {reason}"
    assert ("Traceback" in error.value.__notes__[0]) == (objective is not suicide)
    assert "".join(capfd.readouterr()) == ""
    if objective is full_disk:
        assert_sound(search(journal, quick), 4)


def test_a_sampler_that_fails_is_a_reason_too(journal):
    with pytest.raises(StudyError, match="the last one of: TypeError: "):
        search(journal, quick, sampler=quick, workers=1)


# --- whole commands


@pytest.mark.parametrize(("place", "whom"), [("journal", "group"), ("shared", "ignoring")], indirect=["place"])
def test_stopped_and_killed_as_a_whole_the_same_command_goes_on(whom, place):
    """Ctrl-C reaches all processes in a terminal; behind a script, the first one alone, which was told to ignore it."""
    ignoring = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if whom == "ignoring" else None
    process = command(place, trials=4, pause=0.3, preexec_fn=ignoring)
    begun = running(place)
    (os.killpg if whom == "group" else os.kill)(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "interrupted; the same command goes on with the study\n"
    study = workers.load(place)
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    process = command(place, trials=4, pause=0.3)
    running(place)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert workers.load(place).get_trials(states=(TrialState.RUNNING,))
    process = command(place, trials=4)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    study = workers.load(place)
    assert_sound(study, 4)
    assert {trial.number for trial in begun} <= {workers.number(trial) for trial in finished(study)}


def test_ctrl_c_to_two_commands_of_one_study_begins_nothing_twice(journal):
    processes = [command(journal, trials=8, pause=0.3) for _ in range(2)]
    running(journal, 4)
    for process in processes:
        process.send_signal(signal.SIGINT)
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [130, 130]
    processes = [command(journal, trials=8) for _ in range(2)]
    assert [process.communicate(timeout=60) and process.returncode for process in processes] == [0, 0]
    assert_sound(workers.load(journal), 8)


def test_a_dead_machine_s_trials_are_taken_over_by_another(shared, tmp_path):
    """Two machines share a database and no folder; what the survivor waits for is said."""
    machines = [Place(tmp_path / name, "toy", shared.storage) for name in ("one", "two")]
    processes = [command(place, trials=4, pause=0.3) for place in machines]
    running(shared, 4)
    os.killpg(processes[0].pid, signal.SIGKILL)
    _, err = processes[1].communicate(timeout=60)
    processes[0].communicate()
    assert processes[1].returncode == 0, err
    assert_sound(workers.load(shared), 4)
    assert "waiting for" in err and "without a sign of life they are taken over after 4 s" in err
