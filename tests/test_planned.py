"""planned.py: what is kept of a run, of averaged networks and masks, and of scikit-learn's network; on the digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import Cut, cut_at
from sklearn import neural_network

import data
import planned
from model import Dropout
from planned import plan, run
from sentences import of_network
from support import sweeps
from support.folder import RunError
from train import Config, predict, train, trained_model


def network(config, folder):
    return of_network(planned.one_network(config, folder))


def test_a_worker_that_died_unheard_need_not_train_again(monkeypatch, tmp_path):
    payload = plan(Config(data="digits", device="cpu", epochs=2), ("train", "val"))
    where = {"data": "digits", "device": "cpu"}
    first = run(payload, tmp_path / "run", where)
    monkeypatch.setattr(planned, "train", None)
    assert run(payload, tmp_path / "run", where) == first
    with pytest.raises(RunError, match="the data are others"):
        run(payload | {"data_sha256": "0"}, tmp_path / "other", where)


def test_what_a_network_keeps(digits, tmp_path):
    config = replace(digits, l1=1e-3, epochs=40, evaluations=40)
    found = network(config, tmp_path / "a")
    state = torch.load(tmp_path / "a" / "last.pt", weights_only=True)["model"]
    weights = torch.cat([value.flatten() for name, value in state.items() if name.endswith("weight")])
    assert found["rms"] == pytest.approx(weights.square().mean().sqrt().item(), rel=1e-5)
    assert found["small"] == (weights.abs() < 1e-3).double().mean().item() > 0
    assert found["updates"] == 40 and found["images"] == 72
    assert 0 <= found["6 as 9"] < 359 and 0 <= found["9 as 6"] < 359


def test_confusions_are_of_six_and_nine_alone(digits, monkeypatch, tmp_path):
    labels = torch.tensor([6, 6, 6, 9, 9, 1, 6])
    answers = torch.tensor([9, 9, 6, 6, 9, 6, 0])
    monkeypatch.setattr(planned, "outputs", lambda *_: (torch.nn.functional.one_hot(answers, 10).float(), labels))
    found = network(replace(digits, epochs=1), tmp_path / "a")
    assert (found["6 as 9"], found["9 as 6"]) == (2, 1)


def test_networks_are_averaged_in_groups_that_share_none(digits, monkeypatch, tmp_path):
    labels = torch.tensor([0, 1])
    shares = iter(torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.4, 0.6], [0.9, 0.1]], [[0.9, 0.1]] * 2]))
    monkeypatch.setattr(planned, "trained_outputs", lambda *_: (next(shares), None, 2.0, labels))
    found = planned.averaged_networks(digits, tmp_path, (1, 2, 3))
    assert found["1"]["error/test"] == pytest.approx((0 + 1 + 0.5) / 3) and found["1"]["n"] == 3
    assert found["2"]["error/test"] == 0.5 and found["2"]["n"] == 1 and found["2"]["seconds"] == 4
    assert found["3"]["error/test"] == 0.5


def test_masks_are_drawn_in_dropout_alone(digits, tmp_path):
    config = replace(digits, dropout=0.5, epochs=100, lr=5e-3)
    seen = []
    Dropout.__call__, usual = lambda self, x: seen.append(self.training) or usual(self, x), Dropout.__call__
    try:
        found = planned.averaged_masks(config, tmp_path / "a", (0, 1, 50))
    finally:
        del Dropout.__call__
    assert seen[-150:] == [True] * 150, "50 masks of three layers"
    assert found["1"]["error/test"] > found["50"]["error/test"]
    assert found == planned.averaged_masks(config, tmp_path / "a", (0, 1, 50))


def test_a_killed_run_goes_on(digits, monkeypatch, tmp_path):
    config = replace(digits, epochs=20, evaluations=20)
    whole = network(config, tmp_path / "whole")
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", quiet=True, on_evaluation=cut_at(6))
    assert (tmp_path / "cut" / "last.pt").exists()
    again = network(config, tmp_path / "cut")
    assert again | {"seconds": 0} == whole | {"seconds": 0}


def test_a_diverged_run_has_no_weights(digits, tmp_path):
    found = network(replace(digits, optimizer="sgd", lr=1e9), tmp_path / "a")
    assert found["status"] == "diverged" and found["rms"] is None and found["6 as 9"] is None
    row = {"method": "none", "value": 1, "fold": 3} | found
    assert sweeps.derived([row])[0]["never"] == 1 and "6 and 9" not in sweeps.derived([row])[0]


# --- several networks, and scikit-learn's


def test_an_ensemble_s_output_is_the_mean_of_its_networks(tmp_path):
    config = Config(data="digits", device="cpu", epochs=4, batch_size=20, fold=3, seed=3, dropout=0.1)
    payload = plan(config, networks=[1, 2])
    found = run(payload, tmp_path / "ensemble", {"data": "digits", "device": "cpu"})
    dataset = data.load("digits")
    images, labels = data.split_tensors(dataset, "test", 3, torch.device("cpu"))
    shares = []
    for seed in (103, 203):
        one = replace(config, seed=seed)
        train(one, tmp_path / str(seed), quiet=True)
        model = trained_model(one, dataset, tmp_path / str(seed) / "last.pt")
        shares.append(torch.softmax(predict(model, images), dim=1))
    errors = [(share.argmax(1) != labels).float().mean().item() for share in shares]
    assert errors[0] != errors[1], "other seeds are other networks"
    assert found["1"]["error/test"] == pytest.approx(np.mean(errors))
    both = (shares[0] + shares[1]).argmax(1)
    assert found["2"]["error/test"] == pytest.approx((both != labels).float().mean().item())


def test_scikit_learn_is_given_the_same_network_and_images(monkeypatch, tmp_path):
    config = Config(data="digits", device="cpu", epochs=60, batch_size=30, init="glorot", l2=1e-3, fold=4, seed=4)
    given = []

    class Spy(neural_network.MLPClassifier):
        def fit(self, images, labels):
            given.append((self.get_params(), images, labels))
            return super().fit(images, labels)

    monkeypatch.setattr(neural_network, "MLPClassifier", Spy)
    for fraction in (0.05, 0.1):
        one = replace(config, fraction=fraction)
        payload = plan(one, sklearn=True)
        theirs = run(payload, tmp_path / f"{fraction}", {"data": "digits", "device": "cpu"})["error/test"]
        images, _ = data.split_tensors(data.load("digits"), "train", 4, torch.device("cpu"), fraction)
        assert (given[-1][1] == images.flatten(1).numpy()).all()
    parameters = given[-1][0]
    assert parameters["alpha"] == pytest.approx(2 * 30 * 1e-3) and parameters["hidden_layer_sizes"] == (100, 100, 100)
    ours = train(one, tmp_path / "ours", quiet=True)["last"]["error/test"]
    assert theirs == pytest.approx(ours, abs=0.04) and ours < 0.15
