import math
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from helpers import events, points, same, weights
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import observe
from model import MLP, entropy, store_grad
from observe import EVENT_FILES, Recorder, evaluation_epochs, histogram_epochs, layers, rms
from train import Config, train


@pytest.mark.parametrize(("epochs", "count"), [(1000, 30), (1000, 50), (1000, 1), (20, 50), (1, 1), (37, 12), (60, 60)])
def test_evaluations_go_from_the_untrained_model_to_the_end(epochs, count):
    chosen = evaluation_epochs(epochs, count)
    assert (chosen[0], chosen[-1]) == (0, epochs)
    assert len(chosen) == min(count, epochs) + 1 and (np.diff(chosen) > 0).all()


def test_evaluations_are_denser_early():
    chosen = evaluation_epochs(1000, 30)
    assert sum(epoch <= 100 for epoch in chosen) >= 20 and chosen[1] == 1 and chosen[-1] - chosen[-2] > 100


@pytest.mark.parametrize("count", [0, 1, 5, 20, 30, 99])
def test_histograms_come_with_some_of_the_evaluations(count):
    evaluations = evaluation_epochs(1000, 30)
    chosen = histogram_epochs(evaluations, count)
    assert set(chosen) <= set(evaluations) and len(set(chosen)) == len(chosen)
    assert len(chosen) == (min(count, 30) + 1 if count else 0)
    assert not count or (chosen[0], chosen[-1]) == (0, 1000)


def test_layers_are_numbered_from_the_pixels_on_and_each_is_there_once():
    assert [layer.in_features for layer in layers(MLP(64, 10, hidden=(5, 6))).values()] == [64, 5, 6]
    own, shared = type("Own", (nn.Conv3d,), {})(1, 2, 3), weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.Conv1d(1, 2, 3), own, shared, nn.BatchNorm1d(4), shared, spectral_norm(nn.Linear(4, 2)))
    assert list(layers(model)) == ["conv1", "conv2", "linear1", "linear2"] and layers(model)["conv2"] is own


@pytest.mark.parametrize(("scale", "dtype"), [(1, torch.float), (1e-5, torch.half)])  # in half, 1e-5 squared is 0
def test_rms(scale, dtype):
    assert rms(scale * torch.tensor([[3, 4], [0, 0]], dtype=dtype)) == pytest.approx(2.5 * scale, rel=1e-2)


def test_histograms_hold_every_weight_and_every_entropy(tmp_path):
    """The entropies from 0 on, so that those of the untrained model are on the axis of the others."""
    model = MLP(64, 10)
    with closing(Recorder(tmp_path)) as recorder:
        for step, scale in ((0, 0.01), (7, 1)):
            recorder.histograms(step, model, {"val": entropy(scale * torch.randn(50, 10))})
    reader, names = events(tmp_path), {f"weights/linear{n}" for n in (1, 2, 3, 4)}
    assert set(reader.Tags()["histograms"]) == names | {"entropy/val", "entropy/untrained"}
    (untrained,), (first, last) = reader.Histograms("entropy/untrained"), reader.Histograms("entropy/val")
    assert untrained.histogram_value == first.histogram_value and last.step == 7
    assert first.histogram_value.bucket[-1] == 50, "as good as ln 10"
    for value in (first.histogram_value, last.histogram_value):
        assert value.num == sum(value.bucket) == 50 and value.min == 0 and value.max <= math.log(10) + 1e-6
    written, drawn = reader.Histograms("weights/linear1")[0].histogram_value, model.linears[0].weight.detach()
    assert (written.num, written.min, written.max) == (6400, drawn.min(), drawn.max())


@pytest.mark.parametrize(("values", "any_finite"), [([math.nan, -math.inf], 0), ([math.nan, 1], 1), ([0], 1)])
def test_a_histogram_is_one_of_the_finite_values(values, any_finite, tmp_path):
    with closing(Recorder(tmp_path)) as recorder:
        recorder.histogram("some", torch.tensor(values, dtype=torch.bfloat16), 0)
    assert points(tmp_path) == ({"some": [0]} if any_finite else {})


class Flexible(nn.Linear):
    def forward(self, x, scale=1.0, in_place=False):
        return super().forward(x.sub_(0.5) if in_place else x.float()) * scale


class Odd(nn.ModuleList):
    """The first five layers have no gradient at a first argument that holds real numbers; the other four do."""

    def forward(self, images):
        frozen, detached, unused, keyword, whole, two, in_place, twice, head = self
        with torch.no_grad():
            x = frozen(images)
        unused(images)
        x = detached(x).detach() + keyword(x=images) + whole(images.long()) + in_place(images.clone(), in_place=True)
        return head(images) + head(twice(twice(two(x, 0.5)).relu()))


@pytest.mark.parametrize("histograms", [False, True])
def test_looking_at_the_inputs_stops_nothing_and_changes_nothing(histograms, tmp_path):
    kept = []

    def gradients(step, looked_at):
        torch.manual_seed(0)
        model, images = Odd(Flexible(4, 4) for _ in range(9)), torch.rand(5, 4)
        looked = model, lambda x: kept.append(store_grad(x)) or x, step, looked_at, histograms
        with recorder.input_gradients(*looked):
            model(images).square().sum().backward()
        with pytest.raises(ZeroDivisionError), recorder.input_gradients(*looked):
            1 / 0  # noqa: B018
        assert not images.requires_grad and not any(module._forward_pre_hooks for module in model.modules())
        return [parameter.grad for parameter in model.parameters()]

    with closing(Recorder(tmp_path)) as recorder:
        for one, other in zip(gradients(3, False), gradients(4, True), strict=True):
            assert (one is other is None) or torch.equal(one, other)
    groups = ["gradient_rms", "log10_abs_input_gradient"][: 1 + histograms]
    assert points(tmp_path) == {f"{group}/linear{number}": [4] for group in groups for number in (6, 7, 8, 9)}
    both = torch.cat([x.grad for x in kept[-3:-1]])  # of the layer that is called twice, and before the last call
    reader, sizes = events(tmp_path), both[both != 0].abs().log10()
    assert reader.Scalars("gradient_rms/linear8")[0].value == pytest.approx(rms(both))
    if histograms:
        written = reader.Histograms("log10_abs_input_gradient/linear8")[0].histogram_value
        assert (written.num, written.sum) == (len(sizes), pytest.approx(sizes.sum().item(), rel=1e-4))


def test_weights_that_are_computed_stay_as_they_are(tmp_path):
    """In training mode, whoever reads a weight of spectral_norm's changes it."""

    def spectral_net(config, dataset):
        return nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(64, 10)))

    for often in (1, 4):
        config = Config(data="digits", device="cpu", epochs=4, evaluations=often, histograms=often)
        train(config, tmp_path / str(often), quiet=True, make_model=spectral_net)
    assert same(weights(tmp_path / "1"), weights(tmp_path / "4"))


def test_what_is_written_once_a_run(tmp_path):
    """HPARAMS shows five settings of those that differ, by name: behind six augmentations, `norm` was never seen."""
    with closing(Recorder(tmp_path)) as recorder:
        settings = {"norm": "batch", "noise": 0.3, "rotate": 15.0, "zoom": 0.0, "seed": 0}
        draw = lambda images, generator: 3 * torch.rand(images.shape, generator=generator) - 1  # noqa: E731
        recorder.introduce(settings, torch.rand(5, 8, 8), draw, ("noise", "rotate", "zoom"))
    reader = events(tmp_path)
    content = reader.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    shown = parse_session_start_info_plugin_data(content).hparams.items()
    assert {name: one.string_value for name, one in shown} == {
        "norm": "batch",
        "seed": "",
        "augment": "noise=0.3 rotate=15",
    }
    (picture,) = reader.Images("images/augmented")
    assert (picture.height, picture.width) == (8 * 10 + 2, 5 * 10 + 2)


def test_what_comes_again_replaces_what_was(tmp_path):
    """TensorBoard drops the points from the purge step on; an attempt that saved nothing leaves no settings either."""
    for attempt, (first, last) in enumerate(((0, 5), (0, 5), (3, 7), (6, 9))):
        with closing(Recorder(tmp_path, first)) as recorder:
            if first == 0:
                recorder.introduce({"norm": "batch"}, torch.rand(1, 8, 8), torch.rand)
            for step in range(first, last):
                recorder.scalars({"epoch": step, "step": step, "seconds": 0.0, "loss/val": float(attempt)})
    reader = events(tmp_path)
    found = [(event.step, event.value) for event in reader.Scalars("loss/val")]
    assert found == [*enumerate([1, 1, 1, 2, 2, 2, 3, 3, 3])] and reader.Tags()["scalars"] == ["loss/val"]
    assert len(list(tmp_path.glob(EVENT_FILES))) == 3 and len(reader.Tensors("config/text_summary")) == 1


@pytest.mark.parametrize("stamps", [[-5, -4], [0, 0], [0, 3600], [3600, 7200], [-1, 3600, 3600, 10**9], [-3, -2, -1]])
def test_files_from_the_future_step_aside_in_their_order(stamps, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.5)
    for number, stamp in enumerate(stamps):
        (tmp_path / f"events.out.tfevents.{1_800_000_000 + stamp}.my.host.{number}").touch()
    (tmp_path / "events.out.tfevents.an.odd").touch()
    observe.step_aside(tmp_path)
    names = sorted(path.name for path in tmp_path.glob(EVENT_FILES) if "my.host" in path.name)
    assert [int(name.rsplit(".", 1)[1]) for name in names] == [*range(len(stamps))], "in their order"
    assert max(names) < "events.out.tfevents.1800000000", "the next file comes after them"
    assert len(list(tmp_path.iterdir())) == len(stamps) + 1
