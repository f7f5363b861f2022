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
        count, height, width = images.shape

        def uniform(bound: float, *shape: int) -> torch.Tensor:
            return torch.empty(shape, device=images.device).uniform_(-bound, bound, generator=generator)

        angle = uniform(math.radians(rotate), count)
        factor = 1 + uniform(zoom, count)
        displacement = uniform(shift, count, 2)
        slope = uniform(shear, count)
        fields = [smooth(uniform(elastic, height, count, width)) for _ in "xy"] if elastic else None
        images = warp(images, angle, factor, displacement, slope, fields)
    if noise:
        images = torch.empty_like(images).normal_(0, noise, generator=generator).add_(images)
    return images


def warp(
    images: torch.Tensor,
    angle: torch.Tensor,
    factor: torch.Tensor,
    displacement: torch.Tensor,
    slope: torch.Tensor,
    fields: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Images (N, H, W), each sheared, zoomed and rotated about its centre and displaced by its own amount.

    angle (N,) in radians, factor (N,), displacement (N, 2) in pixels as x, y, slope (N,), fields None or the
    displacement of every pixel along x and along y, (H, N, W) each, in pixels. Bilinear, zeros outside, as
    `torchvision.transforms.v2.functional.affine` with BILINEAR.
    """
    count, height, width = images.shape
    # the output pixel p shows the input at A^-1 (p - displacement), A = rotation * shear * factor, from the centre
    cos, sin = torch.cos(angle) / factor, torch.sin(angle) / factor
    inverse = torch.stack([cos - slope * sin, sin + slope * cos, -sin, cos], dim=1).view(count, 2, 2)
    affine = torch.cat([inverse, -inverse @ displacement.unsqueeze(2)], dim=2)
    x, y = (torch.arange(size, device=images.device) - (size - 1) / 2 for size in (width, height))
    grid = torch.empty(count, 2, height, width, device=images.device)
    for axis, size in enumerate((width, height)):
        # grid_sample's coordinates run from -1 to 1 over the image: pixels divided by half its size
        a, b, c = (affine[:, axis] * 2 / size).T.unsqueeze(2)
        torch.add((a * x).unsqueeze(1), (b * y + c).unsqueeze(2), out=grid[:, axis])
        if fields:
            grid[:, axis].add_(fields[axis].transpose(0, 1), alpha=2 / size)
    return F.grid_sample(images.unsqueeze(1), grid.permute(0, 2, 3, 1), align_corners=False).squeeze(1)


def smooth(displacements: torch.Tensor) -> torch.Tensor:
    """Independent random `displacements` (H, N, W), smoothed in place over H and W by a Gaussian that sums to one.

    Simard, Steinkraus and Platt 2003, "Best practices for convolutional neural networks", section 2, where the
    displacements are uniform in ±alpha. H comes first so that each of the two smoothings is a single matrix product.
    """
    height, _, width = displacements.shape
    rows = gaussian_matrix(height, displacements.device) @ displacements.flatten(1)
    torch.mm(rows.view(-1, width), gaussian_matrix(width, displacements.device), out=displacements.view(-1, width))
    return displacements


@functools.lru_cache(maxsize=8)
def gaussian_matrix(size: int, device: torch.device) -> torch.Tensor:
    """Symmetric (size, size) matrix that smooths a signal with a Gaussian of SIMARD_SIGMA, zeros assumed outside."""
    position = torch.arange(size, device=device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((position[:, None] - position) / SIMARD_SIGMA) ** 2)
    return kernel / (SIMARD_SIGMA * math.sqrt(2 * math.pi))
