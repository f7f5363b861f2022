import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from augment import SIMARD_SIGMA, augment, elastic_fields, gaussian_basis, warp

ALL = {"noise": 0.1, "rotate": 20, "zoom": 0.2, "shift": 2, "shear": 0.2, "elastic": 34}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(28, 28), (8, 8), (20, 31)])
@pytest.mark.parametrize(
    ("angle", "factor", "displacement", "slope"),
    [
        (17.0, 1.0, (0.0, 0.0), 0.0),
        (0.0, 1.2, (0.0, 0.0), 0.0),
        (0.0, 1.0, (2.0, -3.0), 0.0),
        (0.0, 1.0, (0.0, 0.0), 0.3),
        (-30.0, 0.8, (-1.0, 2.0), 0.25),
    ],
)
def test_a_fixed_warp_equals_torchvision_s_affine(size, angle, factor, displacement, slope):
    images = torch.rand(3, *size, generator=generator())
    expected = tv.affine(
        images.unsqueeze(1), angle, displacement, factor, [math.degrees(math.atan(slope)), 0.0],
        interpolation=v2.InterpolationMode.BILINEAR,
    ).squeeze(1)  # fmt: skip
    every = torch.ones(3)
    warped = warp(images, every * math.radians(angle), every * factor, torch.tensor([displacement] * 3), every * slope)
    assert torch.allclose(warped, expected, atol=1e-4)
    assert not torch.allclose(warped, images, atol=0.1)


def test_each_image_is_warped_by_its_own_amount():
    images, angles = torch.rand(4, 28, 28), torch.tensor([0.0, 0.1, -0.2, 0.3])
    other = torch.ones(4), torch.zeros(4, 2), torch.zeros(4)
    together = warp(images, angles, *other)
    one_by_one = [warp(images[i : i + 1], angles[i : i + 1], *(x[i : i + 1] for x in other)) for i in range(4)]
    assert torch.allclose(together, torch.cat(one_by_one), atol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("size", [8, 28])
def test_every_image_of_a_batch_gets_its_own_draw(name, size):
    images = torch.rand(1, size, size, generator=generator()).expand(6, size, size)
    drawn = augment(images, generator(1), **{name: ALL[name]})
    assert drawn.shape == images.shape
    assert all(not torch.allclose(drawn[i], drawn[j], atol=1e-3) for i in range(6) for j in range(i))
    assert torch.equal(drawn, augment(images, generator(1), **{name: ALL[name]}))
    assert not torch.equal(drawn, augment(images, generator(2), **{name: ALL[name]}))


def test_off_is_the_identity_and_draws_nothing():
    images, stream = torch.rand(3, 28, 28), generator()
    state = stream.get_state()
    assert augment(images, stream) is images
    assert torch.equal(stream.get_state(), state)


def test_the_caller_s_images_stay_as_they_are():
    images = torch.rand(3, 28, 28)
    before = images.clone()
    augment(images, generator(), **ALL)
    assert torch.equal(images, before)


def centre_of_mass(images):
    weights = images / images.sum((1, 2), keepdim=True)
    position = torch.arange(images.shape[1]) - (images.shape[1] - 1) / 2
    return torch.stack([(weights.sum(1) * position).sum(1), (weights.sum(2) * position).sum(1)], dim=1)


def blob(x, y, count=2000):
    """`count` images of a Gaussian spot at (x, y) from the centre."""
    p = torch.arange(41) - 20.0
    return torch.exp(-((p - x) ** 2 + (p[:, None] - y) ** 2) / 8).expand(count, 41, 41)


@pytest.mark.parametrize(
    ("settings", "seen", "bound"),
    [
        ({"shift": 3}, lambda c: c - torch.tensor([8.0, 0.0]), 3),
        ({"zoom": 0.25}, lambda c: c[:, :1] / 8 - 1, 0.25),
        ({"rotate": 30}, lambda c: torch.rad2deg(torch.atan2(c[:, 1:], c[:, :1])), 30),
    ],
)
def test_draws_are_uniform_between_their_bounds(settings, seen, bound):
    values = seen(centre_of_mass(augment(blob(8, 0), generator(), **settings)))
    assert values.abs().max() < bound * 1.02
    assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert abs(values.mean().item()) < bound * 0.06


def test_shear_moves_along_x_in_proportion_to_y():
    moved = centre_of_mass(augment(blob(0, 8), generator(), shear=0.3))
    assert moved[:, 0].abs().max() < 2.4 * 1.02 and (moved[:, 1] - 8).abs().max() < 0.1
    assert moved[:, 0].std().item() == pytest.approx(2.4 / math.sqrt(3), rel=0.05)


def simard(alpha, height, width, count):
    """Displacements (count, H, W) by the definition: uniform in ±alpha for every pixel, smoothed, zeros outside."""
    uniform = np.random.default_rng(0).uniform(-alpha, alpha, (count, height, width))
    return gaussian_filter(uniform, (0, SIMARD_SIGMA, SIMARD_SIGMA), mode="constant", truncate=20)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 31)])
def test_elastic_displacements_have_the_covariance_of_simard_s(height, width):
    """Variance at every pixel, and correlation of the middle one with all others in its row and its column."""
    count = 8_000
    fields = elastic_fields(torch.empty(count, height, width), 34, generator()).double().numpy()
    assert fields.shape == (count, 2, height, width)
    expected = simard(34, height, width, count)
    middle = height // 2, width // 2

    def correlation(field):
        return np.corrcoef(field[:, middle[0], middle[1]], np.c_[field[:, middle[0], :], field[:, :, middle[1]]].T)[0]

    for field in (fields[:, 0], fields[:, 1]):
        assert field.mean() == pytest.approx(0, abs=0.02)
        assert field.var(axis=0) == pytest.approx(expected.var(axis=0), rel=0.1)
        assert correlation(field) == pytest.approx(correlation(expected), abs=0.06)
    assert abs(np.corrcoef(fields[:, 0].ravel(), fields[:, 1].ravel())[0, 1]) < 0.02, "x and y move together"
    assert abs(np.corrcoef(fields[1:, 0].ravel(), fields[:-1, 0].ravel())[0, 1]) < 0.02, "images move together"


@pytest.mark.parametrize(("size", "rank"), [(1, 1), (8, 4), (28, 9), (64, 19)])
def test_no_more_numbers_are_drawn_than_elastic_fields_have_degrees_of_freedom(size, rank):
    """The rank is the smallest that keeps all but a millionth of the energy, by NumPy's singular values."""
    position = np.arange(size)
    kernel = np.exp(-0.5 * ((position[:, None] - position) / SIMARD_SIGMA) ** 2)
    energy = np.cumsum(np.linalg.svd(kernel)[1] ** 2)
    basis = gaussian_basis(size, torch.device("cpu"))
    assert basis.shape == (size, rank)
    assert energy[rank - 1] >= (1 - 1e-6) * energy[-1] and (rank == 1 or energy[rank - 2] < (1 - 1e-6) * energy[-1])


def test_elastic_moves_an_image_by_its_amplitude():
    """In the middle of an image the deviation is alpha / sqrt(3) / (2 sigma sqrt(pi))."""
    moved = centre_of_mass(augment(blob(0, 0, 500), generator(), elastic=34))
    assert moved.std().item() == pytest.approx(34 / math.sqrt(3) / (2 * SIMARD_SIGMA * math.sqrt(math.pi)), rel=0.25)
