"""planned.py: what is kept of a run, of averaged networks; on the digits."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import data
import planned
from planned import plan, train_planned
from support.run import RunError
from train import Config, predict, train, trained_model

WHERE = {"data": "digits", "device": "cpu"}


def test_other_data_than_those_of_the_plan_are_refused(tmp_path):
    payload = plan(Config(data="digits", device="cpu", epochs=2), ("train", "val"))
    assert payload["settings"].keys() == {f.name for f in fields(Config)} - {*planned.WHERE}, "a default may change"
    with pytest.raises(RunError, match="the data are others"):
        train_planned(payload | {"data_sha256": "0"}, tmp_path, WHERE)
    assert not list(tmp_path.iterdir())


def test_what_a_network_keeps(digits, tmp_path):
    config = replace(digits, lr=1e-2, epochs=60, evaluations=30, fold=1)
    found = planned.one_network(config, tmp_path / "a")
    last, best = found["result"]["last"], found["result"]["best"]
    assert last["epoch"] == 60 > best["epoch"] > 0, "early stopping would tell them apart"
    state = torch.load(tmp_path / "a" / "last.pt", weights_only=True)["model"]
    weights = torch.cat([value.flatten() for name, value in state.items() if name.endswith("weight")])
    assert found["weights"]["rms"] == pytest.approx(weights.square().mean().sqrt().item(), rel=1e-5)
    assert found["weights"]["small"] == (weights.abs() < 1e-3).double().mean().item() > 0
    assert set(found["curves"]) == {"epoch", "loss/train", "loss/val", "loss/test"}
    assert found["curves"]["loss/test"][-1] == pytest.approx(last["loss/test"])
    confusions = np.array(found["confusions"])
    assert 1 - np.trace(confusions) / confusions.sum() == pytest.approx(last["error/test"])
    assert (confusions.sum(axis=1) == np.bincount(data.load("digits").test_labels, minlength=10)).all()
    images, _, right = np.sum(found["reliability"], axis=0)
    assert images == confusions.sum() and right == np.trace(confusions)
    for moment in (last, best):  # one temperature fitted on validation never costs much on test
        assert moment["tempered/test"] <= moment["loss/test"] + 0.02 and 0 < moment["calibration/test"] < 1
    assert last["calibration/test"] != best["calibration/test"], "other weights are another calibration"
    assert "calibration/test" not in planned.one_network(config, tmp_path / "b", ("train", "val"))["result"]["last"]


# --- calibration


def made_up(temperature, n=4000):
    """Logits that are so many times too large for labels drawn from their softmax."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 10, generator=generator)
    return temperature * logits, torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("expected", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_and_is_where_the_cost_is_lowest(expected):
    logits, labels = made_up(expected)
    found = planned.temperature(logits, labels)
    assert found == pytest.approx(expected, rel=0.1)
    costs = [torch.nn.functional.cross_entropy(logits.double() / t, labels).item() for t in (found, found * 0.99)]
    assert costs[0] < costs[1] and costs[0] < torch.nn.functional.cross_entropy(logits / found / 1.01, labels).item()


def test_temperature_is_fitted_on_validation_and_applied_to_test():
    val, test = made_up(4.0), made_up(1.0)
    found = planned.calibration(val, test)
    assert found["temperature"] == planned.temperature(*val)
    tempered = torch.nn.functional.cross_entropy(test[0].double() / found["temperature"], test[1])
    assert found["tempered/test"] == pytest.approx(tempered.item())
    assert found["tempered/test"] > torch.nn.functional.cross_entropy(*test).item(), "validation is like no test"


def test_the_calibration_error_is_that_of_the_bins():
    """torchmetrics beside the definition, from the bins of the reliability diagram."""
    logits, labels = made_up(3.0)
    bins = np.array(planned.reliability(logits, labels))
    images, confidence, right = bins.T
    assert len(bins) == 15 and images.sum() == len(labels)
    expected = abs(confidence - right).sum() / len(labels)
    assert planned.calibration((logits, labels), (logits, labels))["calibration/test"] == pytest.approx(expected)
    assert expected > 0.1, "over-confident"
    means = confidence[images > 0] / images[images > 0]
    assert (means * 15).astype(int).tolist() == np.flatnonzero(images).tolist(), "each in its own bin"


# --- what is cut off, and what diverges


def test_a_diverged_run_has_no_weights(digits, tmp_path):
    found = planned.one_network(replace(digits, optimizer="sgd", lr=1e9), tmp_path / "a")
    assert found["result"]["status"] == "diverged"
    assert {"weights", "confusions", "reliability"}.isdisjoint(found) and "tempered/test" not in found["result"]["last"]


# --- several networks


def test_networks_are_averaged_in_groups_that_share_none(digits, monkeypatch, tmp_path):
    labels = torch.tensor([0, 1])
    shares = iter(torch.tensor([[[0.9, 0.1], [0.4, 0.6]], [[0.4, 0.6], [0.9, 0.1]], [[0.9, 0.1]] * 2]))
    monkeypatch.setattr(planned, "train", lambda *_, **__: {"status": "finished", "seconds": 2.0})
    monkeypatch.setattr(planned, "trained_model", lambda *_: None)
    monkeypatch.setattr(planned, "outputs", lambda *_: (next(shares).log(), labels))
    found = planned.averaged_networks(digits, tmp_path, (1, 2, 3))
    assert found["1"]["error/test"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert found["2"]["error/test"] == 0.5 and found["2"]["seconds"] == 4
    assert found["3"]["error/test"] == 0.5


def test_an_ensemble_s_output_is_the_mean_of_its_networks(tmp_path):
    config = Config(data="digits", device="cpu", epochs=4, batch_size=20, fold=3, seed=3, dropout=0.1)
    found = train_planned(plan(config, networks=[1, 2]), tmp_path / "ensemble", WHERE)
    images, labels = data.split_tensors(data.load("digits"), "test", 3, torch.device("cpu"))
    shares = []
    for seed in (103, 203):
        one = replace(config, seed=seed)
        train(one, tmp_path / str(seed), quiet=True)
        model = trained_model(one, data.load("digits"), tmp_path / str(seed) / "last.pt")
        shares.append(torch.softmax(predict(model, images), dim=1))
    errors = [(share.argmax(1) != labels).float().mean().item() for share in shares]
    assert errors[0] != errors[1], "other seeds are other networks"
    assert found["1"]["error/test"] == pytest.approx(np.mean(errors))
    both = (shares[0] + shares[1]).argmax(1)
    assert found["2"]["error/test"] == pytest.approx((both != labels).float().mean().item())
