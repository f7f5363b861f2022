"""Augmentations that keep the class: every image of a batch gets a draw of its own, all in one pass.

torchvision's transforms draw once a call, so a batch needs a loop over its images; here the draws, the coordinates and
the interpolation are batched. The meaning of the parameters is torchvision's (`v2.functional.affine`), but for shear,
which is the slope itself and not its angle. There are no flips: they change the class of a digit.
"""

import functools
import math

import torch
import torch.nn.functional as F

SIMARD_SIGMA = 4.0  # pixels: the Gaussian that smooths elastic displacements (Simard et al. 2003)
ENERGY = 1e-6  # of the smoothed displacements, that may be left out


def augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    noise: float = 0.0,
    rotate: float = 0.0,
    zoom: float = 0.0,
    shift: float = 0.0,
    shear: float = 0.0,
    elastic: float = 0.0,
) -> torch.Tensor:
    """A new batch (N, H, W), drawn from `generator` on the same device; `images` itself if all is off.

    Each image gets an angle in ±rotate degrees, a factor in 1 ± zoom, a displacement in ±shift pixels along both axes,
    a slope in ±shear, all uniform; then an elastic displacement of every pixel, of amplitude `elastic` (alpha of Simard
    et al. 2003, in pixels); and last Gaussian noise of standard deviation `noise` on every pixel, not clipped.
    """
    if rotate or zoom or shift or shear or elastic:
        count = len(images)

        def uniform(bound: float, *shape: int) -> torch.Tensor:
            return torch.empty(shape, device=images.device).uniform_(-bound, bound, generator=generator)

        angle = uniform(math.radians(rotate), count)
        factor = 1 + uniform(zoom, count)
        displacement = uniform(shift, count, 2)
        slope = uniform(shear, count)
        fields = elastic_fields(images, elastic, generator) if elastic else None
        images = warp(images, angle, factor, displacement, slope, fields)
    return gaussian_noise(images, noise, generator) if noise else images


def gaussian_noise(images: torch.Tensor, deviation: float, generator: torch.Generator) -> torch.Tensor:
    """`images` plus Gaussian noise of standard `deviation`, drawn from `generator` for every pixel; a new tensor."""
    return torch.empty_like(images).normal_(0, deviation, generator=generator).add_(images)


def warp(
    images: torch.Tensor,
    angle: torch.Tensor,
    factor: torch.Tensor,
    displacement: torch.Tensor,
    slope: torch.Tensor,
    fields: torch.Tensor | None = None,
) -> torch.Tensor:
    """Images (N, H, W), each sheared, zoomed and rotated about its centre and displaced by its own amount.

    angle (N,) in radians, factor (N,), displacement (N, 2) in pixels as x, y, slope (N,), fields None or the
    displacement of every pixel along x and along y, (N, 2, H, W), in pixels. Bilinear, zeros outside, as
    `torchvision.transforms.v2.functional.affine` with BILINEAR.
    """
    count, height, width = images.shape
    inverse = inverse_matrices(angle, factor, slope)
    affine = torch.cat([inverse, -inverse @ displacement.unsqueeze(2)], dim=2)
    x, y = (torch.arange(size, device=images.device) - (size - 1) / 2 for size in (width, height))
    grid = torch.empty(count, 2, height, width, device=images.device)
    for axis, size in enumerate((width, height)):
        # grid_sample's coordinates run from -1 to 1 over the image: pixels divided by half its size
        a, b, c = (affine[:, axis] * 2 / size).T.unsqueeze(2)
        torch.add((a * x).unsqueeze(1), (b * y + c).unsqueeze(2), out=grid[:, axis])
        if fields is not None:
            grid[:, axis].add_(fields[:, axis], alpha=2 / size)
    return F.grid_sample(images.unsqueeze(1), grid.permute(0, 2, 3, 1), align_corners=False).squeeze(1)


def inverse_matrices(angle: torch.Tensor, factor: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """A^-1 (N, 2, 2), where A = factor * [[cos, -sin], [sin, cos]] @ [[1, -slope], [0, 1]]; angle, factor, slope (N,).

    The output pixel p shows the input at A^-1 (p - displacement), both (x, y) from the centre; y points downwards.
    """
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    return torch.stack([cos - slope * sin, sin + slope * cos, -sin, cos], dim=1).view(-1, 2, 2)


def elastic_fields(images: torch.Tensor, alpha: float, generator: torch.Generator) -> torch.Tensor:
    """Random smooth displacements (N, 2, H, W) in pixels, along x and y, of every pixel of `images` (N, H, W).

    Simard, Steinkraus and Platt 2003, "Best practices for convolutional neural networks", section 2, smooth independent
    uniform numbers in ±alpha, one a pixel, with a Gaussian: G u G'. Few of the singular values of G matter, so the same
    covariance takes r x r normal numbers of the same variance, alpha**2 / 3, where Simard draws H x W uniform ones.
    """
    count, height, width = images.shape
    down, across = (gaussian_basis(size, images.device) for size in (height, width))
    drawn = torch.empty(down.shape[1], count * 2, across.shape[1], device=images.device)
    drawn.normal_(0, alpha / math.sqrt(3), generator=generator)
    rows = down @ (drawn.flatten(0, 1) @ across.T).view(len(drawn), -1)  # two matrix products for the whole batch
    return rows.view(height, count, 2, width).permute(1, 2, 0, 3)


@functools.lru_cache(maxsize=8)
def gaussian_basis(size: int, device: torch.device) -> torch.Tensor:
    """(size, r): left singular vectors times singular values of the matrix that smooths `size` pixels.

    The matrix is a Gaussian of SIMARD_SIGMA, zeros assumed outside; r is the smallest rank that keeps all but ENERGY of
    the sum of squares. Signs are fixed, for LAPACK leaves them open.
    """
    position = torch.arange(size, dtype=torch.float64)
    kernel = torch.exp(-0.5 * ((position[:, None] - position) / SIMARD_SIGMA) ** 2)
    vectors, values, _ = torch.linalg.svd(kernel / (SIMARD_SIGMA * math.sqrt(2 * math.pi)))
    energy = values.square().cumsum(0) / values.square().sum()
    rank = int((energy < 1 - ENERGY).sum()) + 1
    basis = vectors[:, :rank] * values[:rank]
    return (basis * basis[0].sign()).float().to(device)
