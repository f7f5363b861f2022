import json
import time

import pytest
import torch
from helpers import contents, forked
from torch import nn

import support.folder
from support.folder import Folder, Progress, RunError, check_form, new_folder, read_rows

SETTINGS = {"lr": 0.1, "hidden": (3, 2)}
RESULT = {
    "status": "finished", "step": 7, "data": "digits", "fold": 0, "seed": 0, "parameters": 3,
    "sizes": {"train": 2, "val": 3}, "seconds": 1.5, "versions": {}, "device": "cpu",
}  # fmt: skip


def row(epoch, **more):
    costs = {f"{measure}/{split}": 0.5 for measure in ("loss", "error") for split in ("train", "val")}
    return {"epoch": epoch, "step": 2 * epoch, "seconds": 0.1, **costs, **more}


def state_of(make=torch.optim.Adam, **settings):
    """A model that has been trained for three steps, and what trains it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = make(model.parameters(), lr=0.1, **settings)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    for _ in range(3):
        model(torch.rand(5, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def new_state(make=torch.optim.Adam, **settings):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = make(model.parameters(), lr=0.1, **settings)
    return {
        "model": model, "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
    }  # fmt: skip


def streams():
    return {"order": torch.Generator().manual_seed(1), "augmentation": torch.Generator().manual_seed(2)}


# --- whose folder it is


def test_a_run_is_begun_gone_on_with_and_over(tmp_path):
    path = tmp_path / "a" / "b"
    with Folder(path, SETTINGS) as folder:
        assert folder.result is None and json.loads((path / "config.json").read_text()) == {"lr": 0.1, "hidden": [3, 2]}
    with Folder(path, SETTINGS) as folder:
        assert folder.result is None
        result = RESULT | {"best": row(2), "last": row(3)}
        assert folder.finish(result) == result
    with Folder(path, SETTINGS) as folder:
        assert folder.result == result


@pytest.mark.parametrize(
    "settings", [{"lr": 0.2, "hidden": (3, 2)}, {"lr": 0.1, "hidden": (3,)}, SETTINGS | {"new": 1}]
)
def test_other_settings_are_refused(settings, tmp_path):
    with Folder(tmp_path, SETTINGS):
        pass
    before, other = contents(tmp_path), Folder(tmp_path, settings)
    with pytest.raises(RunError, match=r"begun with .*, not .*; take another name, or its settings"):
        other.__enter__()
    assert contents(tmp_path) == before
    with Folder(tmp_path, SETTINGS):  # who was refused has left the lock
        pass


def test_other_things_than_a_run_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("five years of work")
    before = contents(tmp_path)
    with (
        pytest.raises(RunError, match="holds other things than a run; choose another --name"),
        Folder(tmp_path, SETTINGS),
    ):
        pytest.fail("was let in")
    assert contents(tmp_path) == before


def test_one_process_at_a_time(tmp_path):
    with Folder(tmp_path, SETTINGS):
        with pytest.raises(RunError, match="another process is at work"), Folder(tmp_path, SETTINGS):
            pytest.fail("was let in")
        process = forked(lambda: Folder(tmp_path, SETTINGS).__enter__())
        process.join()
        assert process.exitcode == 1
    with Folder(tmp_path, SETTINGS):
        pass


def test_the_lock_of_a_killed_process_is_free_and_its_half_files_go(tmp_path):
    def work():
        with Folder(tmp_path, SETTINGS):
            (tmp_path / f".last.pt.99{support.folder.TEMPORARY}").write_text("half")
            time.sleep(60)

    process = forked(work)
    while process.is_alive() and not list(tmp_path.glob(".last.pt*")):
        time.sleep(0.002)
    process.kill()
    process.join()
    with Folder(tmp_path, SETTINGS):
        assert not list(tmp_path.glob(".last.pt*"))


def test_a_name_is_the_name_of_a_folder(tmp_path):
    assert new_folder(tmp_path, "mine", "lr=1") == tmp_path / "mine"
    for name in ("a/b", "/etc", "..", "../x"):
        with pytest.raises(RunError, match=r"^[ -~]*choose another$|--name .*: allowed is the name of a folder"):
            new_folder(tmp_path, name, "lr=1")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="choose another --runs-dir"):
        new_folder(tmp_path / "file", "", "lr=1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- what it takes to go on


@pytest.mark.parametrize(
    ("make", "settings"),
    [(torch.optim.Adam, {"fused": True}), (torch.optim.SGD, {}), (torch.optim.SGD, {"momentum": 0.9})],
)
def test_a_checkpoint_brings_everything_back(make, settings, tmp_path):
    state, drawn = state_of(make, **settings), streams()
    torch.rand(3, generator=drawn["order"])
    with Folder(tmp_path, SETTINGS) as folder:
        folder.save(state, drawn, Progress(3, [row(0), row(2)], 1.5))
        expected = [torch.rand(3), *(torch.rand(3, generator=one) for one in drawn.values())]
        fresh, streams_ = new_state(make, **settings), streams()
        progress = folder.go_on(fresh, streams_, 10)
    assert progress == Progress(3, [row(0), row(2)], 1.5) and isinstance(progress.rows[0]["epoch"], int)
    found = [torch.rand(3), *(torch.rand(3, generator=one) for one in streams_.values())]
    assert all(map(torch.equal, expected, found))
    for name, part in state.items():
        check_form(part.state_dict(), fresh[name].state_dict(), name)
        assert str(part.state_dict()) == str(fresh[name].state_dict())


# --- reading


def test_measurements_are_read_as_they_were_written(tmp_path):
    rows = [row(0, **{"loss/test": 1 / 3}), row(2, **{"loss/test": 1e-30})]
    with Folder(tmp_path, SETTINGS) as folder:
        folder.write_rows(rows)
    assert read_rows(tmp_path) == rows


@pytest.mark.parametrize("content", [b"a,b\n1,x\n", b"a,b\n1\n", b"a,b\n\xff,1\n"])
def test_damaged_measurements_are_one_line(content, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(RunError, match=r"metrics\.csv: damaged \(.*\); begin the run anew$") as caught:
        read_rows(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
