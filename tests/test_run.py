"""support/run.py: the folder of a run, whose it is, what stands in its files; and what a run is called."""

import errno
import json
import time
from types import SimpleNamespace

import filelock
import pytest
import torch
from helpers import EVERYTHING, contents, forked
from torch import nn

from support.run import Progress, RunError, new_folder, opened_run, read_checkpoint, read_json, read_rows, run_name
from train import Config

IDENTITY = {"lr": 0.1, "fold": 3, "seed": 5, "hidden": [3, 2], "data_sha256": "abc", "network": {"0.weight": [3, 4]}}


def finish(folder):
    sizes = {"train": 10, "val": 190}
    return folder.finish(SimpleNamespace(name="toy"), sizes, torch.device("cpu"), status="finished", step=7)


def row(epoch, **more):
    return {"epoch": epoch, "step": 2 * epoch, "loss/val": 0.5, **more}


def state_of(make=torch.optim.Adam, seed=0, steps=3, **settings):
    """A model, trained for some steps, and what trains it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = make(model.parameters(), lr=0.1, **settings)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    for _ in range(steps):
        model(torch.rand(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def streams():
    return {"order": torch.Generator().manual_seed(1), "augmentation": torch.Generator().manual_seed(2)}


# --- whose folder it is


def test_a_run_is_begun_gone_on_with_and_over(tmp_path):
    path = tmp_path / "a" / "b"
    for _ in range(2):
        with opened_run(path, IDENTITY) as folder:
            assert folder.result is None and json.loads((path / "config.json").read_text()) == IDENTITY
    with opened_run(path, IDENTITY) as folder:
        result = finish(folder)
        told = {"status": "finished", "step": 7, "data": "toy", "fold": 3, "seed": 5, "parameters": 12}
        assert told.items() < result.items() and result["folder"] == str(path)
    with opened_run(path, IDENTITY) as folder:
        assert folder.result == result


@pytest.mark.parametrize("over", [False, True])
def test_another_run_is_refused_and_told_what_differs(over, tmp_path):
    with opened_run(tmp_path, IDENTITY) as folder:
        if over:
            finish(folder)
    before = contents(tmp_path)
    for change, words in (
        ({"lr": 0.2}, "lr 0.1, not 0.2; it goes on under its own settings; else take another name"),
        ({"hidden": [3], "data_sha256": "abd"}, r"hidden \[3, 2\], not \[3\]; other data; it goes on"),
        ({"network": {"0.weight": [3, 5]}}, "another network; .* one of your own through train"),
    ):
        with pytest.raises(RunError, match=f"is of a run with {words}"), opened_run(tmp_path, IDENTITY | change):
            pytest.fail("was let in")
    assert contents(tmp_path) == before
    with opened_run(tmp_path, IDENTITY):  # who was refused has left the lock
        pass


def test_one_process_at_a_time_and_the_half_files_of_a_killed_one_go(tmp_path):
    def work():
        with opened_run(tmp_path, IDENTITY):
            (tmp_path / ".last.pt.99.tmp").write_text("half")
            time.sleep(60)

    process = forked(work)
    while process.is_alive() and not list(tmp_path.glob(".last.pt*")):
        time.sleep(0.002)
    with pytest.raises(RunError, match="another process is at work"), opened_run(tmp_path, IDENTITY):
        pytest.fail("was let in")
    process.kill()
    process.join()
    with opened_run(tmp_path, IDENTITY):
        assert not list(tmp_path.glob(".last.pt*"))


NO_LOCKS = {NotImplementedError(): "has no locks", OSError(errno.EROFS, "Read-only disk"): "Read-only disk"}


@pytest.mark.parametrize("error", NO_LOCKS)
def test_where_nothing_can_be_locked_or_written_a_finished_run_is_read(error, tmp_path, monkeypatch):
    with opened_run(tmp_path / "over", IDENTITY) as folder:
        result = finish(folder)

    def acquire(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with opened_run(tmp_path / "over", IDENTITY) as folder:
        assert folder.result == result
    words = rf"cannot be used \(.*{NO_LOCKS[error]}.*\); choose another --runs-dir"
    with pytest.raises(RunError, match=words), opened_run(tmp_path / "new", IDENTITY):
        pytest.fail("was let in")


def test_a_name_is_the_name_of_a_folder(tmp_path):
    assert new_folder(tmp_path, "mine", "lr=1") == new_folder(tmp_path, "mine", "lr=2") == tmp_path / "mine"
    assert new_folder(tmp_path, "", "lr=1").name.startswith("lr=1-20")
    for name in ("a/b", "/etc", "..", "../x"):
        with pytest.raises(RunError, match=r"--name .*: allowed is the name of a folder"):
            new_folder(tmp_path, name, "lr=1")


# --- what it takes to go on


@pytest.mark.parametrize(
    ("make", "settings"),
    [(torch.optim.Adam, {"fused": True}), (torch.optim.SGD, {}), (torch.optim.SGD, {"momentum": 0.9})],
)
def test_a_checkpoint_brings_everything_back(make, settings, tmp_path):
    state, drawn = state_of(make, **settings), streams()
    torch.rand(3, generator=drawn["order"])
    with opened_run(tmp_path, IDENTITY) as folder:
        assert folder.go_on(state_of(make, seed=1, steps=0, **settings), streams()) == Progress(0, [], 0.0)
        torch.manual_seed(7)
        folder.save(state, drawn, Progress(3, [row(0), row(2)], 1.5))
        expected = [torch.rand(3), *(torch.rand(3, generator=one) for one in drawn.values())]
        fresh, again = state_of(make, seed=1, steps=0, **settings), streams()
        progress = folder.go_on(fresh, again)
    assert progress == Progress(3, [row(0), row(2)], 1.5) and isinstance(progress.rows[0]["epoch"], int)
    found = [torch.rand(3), *(torch.rand(3, generator=one) for one in again.values())]
    assert all(map(torch.equal, expected, found))
    for name, part in state.items():
        assert str(part.state_dict()) == str(fresh[name].state_dict())


def test_a_checkpoint_that_lacks_something_or_is_none_is_one_line(tmp_path):
    foreign = {"model": {}, "identity": IDENTITY}, "no checkpoint of this script; go on with the one"
    for value, words in (foreign, ([1, 2], "does not say which run it belongs to")):
        torch.save(value, tmp_path / "last.pt")
        with pytest.raises(RunError, match=rf"last\.pt: {words}"), opened_run(tmp_path, IDENTITY) as folder:
            folder.go_on(state_of(), streams())


# --- reading


def test_measurements_are_read_as_they_were_written(tmp_path):
    rows = [row(0, **{"loss/test": 1 / 3}), row(2, **{"loss/test": 1e-30})]
    with opened_run(tmp_path, IDENTITY) as folder:
        folder.write_rows(rows)
    assert read_rows(tmp_path) == rows
    for read in (read_json, lambda path: read_checkpoint(path, IDENTITY)):
        with pytest.raises(RunError, match=r"(?i)no such file.*; give the folder of a run"):
            read(tmp_path / "nowhere")


def test_folders_are_called_after_what_differs():
    assert run_name(Config()) == "recipe"
    assert run_name(Config(hidden=(50, 20), l2=1e-4)) == "hidden=50-20_l2=0.0001"
    assert run_name(Config(data_dir="/far/away/mine", seed=3)) == "data_dir=mine_seed=3"
    many = run_name(Config(**EVERYTHING))
    assert len(many) + len("-20260101-000000") <= 60 and many.startswith("fra0.1_hid40-30_")
