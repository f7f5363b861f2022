import math
import re
import time

import numpy as np
import pytest
import torch
from helpers import events, points
from torch import nn

import observe
from model import MLP, entropy, store_grad
from observe import EVENT_FILES, Recorder, evaluation_epochs, histogram_epochs, layers, rms

# --- when


@pytest.mark.parametrize(("epochs", "count"), [(1000, 30), (1000, 50), (1000, 1), (20, 50), (1, 1), (37, 12), (60, 60)])
def test_evaluations_go_from_the_untrained_model_to_the_end(epochs, count):
    chosen = evaluation_epochs(epochs, count)
    assert chosen[0] == 0 and chosen[-1] == epochs
    assert len(chosen) == min(count, epochs) + 1
    assert (np.diff(chosen) > 0).all()


def test_evaluations_are_denser_early():
    chosen = evaluation_epochs(1000, 30)
    assert sum(epoch <= 100 for epoch in chosen) >= 20
    gaps = np.diff(chosen)
    assert gaps[0] == 1 and gaps[-1] > 100


@pytest.mark.parametrize("count", [0, 1, 5, 20, 30, 99])
def test_histograms_come_with_some_of_the_evaluations(count):
    evaluations = evaluation_epochs(1000, 30)
    chosen = histogram_epochs(evaluations, count)
    assert set(chosen) <= set(evaluations) and len(set(chosen)) == len(chosen)
    assert len(chosen) == (min(count, 30) + 1 if count else 0)
    if count:
        assert chosen[0] == 0 and chosen[-1] == 1000


# --- what


def test_layers_are_numbered_from_the_pixels_on():
    assert list(layers(MLP(64, 10))) == ["linear1", "linear2", "linear3", "linear4"]
    assert [layer.in_features for layer in layers(MLP(64, 10, hidden=(5, 6))).values()] == [64, 5, 6]
    cnn = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(8, 3))
    assert list(layers(cnn)) == ["conv1", "conv2", "linear1"] and layers(cnn)["conv2"] is cnn[2]


def test_rms():
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert rms(values) == pytest.approx(2.5)


def test_the_keys_of_a_row_are_the_tags(tmp_path):
    recorder = Recorder(tmp_path)
    for step in (0, 3):
        recorder.scalars({"epoch": step, "step": step, "seconds": 1.0, "lr": 0.1, "loss/val": step + 0.5})
    recorder.close()
    assert points(tmp_path) == {"lr": [0, 3], "loss/val": [0, 3]}
    assert [event.value for event in events(tmp_path).Scalars("loss/val")] == [0.5, 3.5]


def test_histograms_hold_every_weight_and_every_entropy(tmp_path):
    model, logits = MLP(64, 10), torch.randn(50, 10)
    recorder = Recorder(tmp_path)
    recorder.histograms(7, model, {"val": entropy(logits)})
    recorder.close()
    reader = events(tmp_path)
    assert set(reader.Tags()["histograms"]) == {*(f"weights/linear{n}" for n in (1, 2, 3, 4)), "entropy/val"}
    written = reader.Histograms("entropy/val")[0]
    assert written.step == 7 and written.histogram_value.num == 50
    assert 0 <= written.histogram_value.min <= written.histogram_value.max <= math.log(10) + 1e-6
    assert reader.Histograms("weights/linear1")[0].histogram_value.num == 6400


@pytest.mark.parametrize(("looked_at", "histograms"), [(False, True), (True, False), (True, True)])
def test_input_gradients_of_one_step(looked_at, histograms, tmp_path):
    """In the order of the layers, of the step that is looked at, and with hooks that go again."""
    model, images, recorder = MLP(64, 10), torch.rand(5, 8, 8), Recorder(tmp_path)
    for step, look in ((3, looked_at), (4, False)):
        with recorder.input_gradients(model, store_grad, step, look, histograms):
            model(images).logsumexp(1).sum().backward()
    assert not images.requires_grad and not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError), recorder.input_gradients(model, store_grad, 5, True, histograms):
        1 / 0  # noqa: B018
    assert not any(module._forward_pre_hooks for module in model.modules())
    recorder.close()
    names = [f"linear{number}" for number in (1, 2, 3, 4)] if looked_at else []
    expected = {f"gradient_rms/{name}": [3] for name in names}
    expected |= {f"input_gradient/{name}": [3] for name in names if histograms}
    assert points(tmp_path) == expected


def test_the_images_stay_as_they_are(tmp_path):
    """Even where a layer sees them as the caller has them."""
    model, images = nn.Linear(64, 10), torch.rand(5, 64)
    with Recorder(tmp_path).input_gradients(model, store_grad, 0, True, True):
        model(images).sum().backward()
    assert not images.requires_grad and images.grad is None


def test_a_picture_of_augmented_images(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.images(torch.rand(3, 5, 8, 8) * 3 - 1)
    recorder.close()
    (picture,) = events(tmp_path).Images("images/augmented")
    assert (picture.height, picture.width) == (3 * 10 + 2, 5 * 10 + 2)


# --- runs that are gone on with


def test_what_comes_again_replaces_what_was(tmp_path):
    """TensorBoard drops the points from the purge step on: those that a run which was cut off writes again."""
    for first, last in ((0, 5), (3, 7), (6, 9)):
        recorder = Recorder(tmp_path, first)
        for step in range(first, last):
            recorder.scalars({"epoch": step, "step": step, "seconds": 0.0, "loss/val": float(first)})
        recorder.close()
    scalars = events(tmp_path).Scalars("loss/val")
    assert [(event.step, event.value) for event in scalars] == [
        (0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3), (6, 6), (7, 6), (8, 6),
    ]  # fmt: skip


@pytest.mark.parametrize("stamps", [[-5, -4], [0, 0], [0, 3600], [3600, 7200], [-1, 3600, 3600, 10**9], [-3, -2, -1]])
def test_files_from_the_future_step_aside_in_their_order(stamps, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    for number, stamp in enumerate(stamps):
        (tmp_path / f"events.out.tfevents.{1_800_000_000 + stamp}.my.host.{number}").touch()
    for name in ("events.out.tfevents.odd", "events.out.tfevents.an.odd", "events.out.tfevents.1.v2"):
        (tmp_path / name).touch()
    observe.step_aside(tmp_path)
    names = sorted(path.name for path in tmp_path.glob(EVENT_FILES) if "my.host" in path.name)
    assert [int(name.rsplit(".", 1)[1]) for name in names] == [*range(len(stamps))], "in their order"
    found = [int(re.search(r"\d{10}", name)[0]) for name in names]
    assert max(found) < 1_800_000_000, "the next file comes after them"
    assert len(list(tmp_path.iterdir())) == len(stamps) + 3
