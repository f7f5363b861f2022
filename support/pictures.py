"""A picture of one's own, photographed or drawn, as a network sees it: the digit found, cut out, fitted and centred."""

import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

WORKING_SIZE = 400  # pixels along the longer side of a picture, before it is made as small as the network's
LEAST_CONTRAST = 0.06  # between black and white; what has less shows no digit
FAINT = 0.02, 0.2  # part of the strongest ink that is none: on even paper, and on a photograph's
SHARP = 0.96  # part of a digit's outline where the grey really changes; the rim of a shadow has less
SHEET = 1.7  # times as thick as what it holds, for its length, is a sheet of paper and not a digit
THICKEST = 0.3  # half a stroke's width, in lengths of the digit
EIGHT = np.ones((3, 3))  # neighbours of a pixel, and itself


class PictureError(Exception):
    """A picture cannot be used; one line."""


class Frame(NamedTuple):
    """How digits lie in the images of a data set, in pixels."""

    longest: int  # the longer side of a digit
    row: float  # of the centre of mass
    column: float


def read_picture(path: str, frame: Frame, height: int, width: int) -> np.ndarray:
    """The digit in a PNG or JPEG file as a network sees it, (height, width) from 0 to 1, or a PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                return centred(ink_of(picture), frame, height, width)
    except PictureError as error:
        reason = str(error)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = "has too many pixels; make it smaller"
    except UnidentifiedImageError:
        reason = "is neither PNG nor JPEG; save it as one of them"
    except Exception as error:  # decoders fail in many ways
        reason = getattr(error, "strerror", None) or "is damaged or cut off; save it again"
    raise PictureError(f"{path}: {reason}")


def grey_of(picture: Image.Image) -> np.ndarray:
    """A picture in grey, black 0 and white 1: (h, w). Ink of one colour on transparent paper is black on white."""
    picture = ImageOps.exif_transpose(picture)  # a telephone turns its pictures by a note in the file
    if picture.mode.startswith("I"):  # 16 bits, which convert would clip
        picture = Image.fromarray((np.asarray(picture) / 257).astype(np.uint8))
    picture = picture.convert("RGBA")
    picture.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
    grey = np.asarray(picture.convert("RGB").convert("L"), np.float32) / 255
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    opaque = grey[alpha > 0.5]
    if alpha.min() < 0.5 and opaque.size and np.ptp(np.quantile(opaque, (0.02, 0.98))) < 0.1:
        return 1 - alpha
    return grey * alpha + 1 - alpha


def ink_of(picture: Image.Image) -> np.ndarray:
    """The digit in a picture, from 0 to 1: (h, w). It may be dark or light; the reading with the longer strokes counts.

    Unless they are much thicker than the other reading's: then they are the sheet that the digit is on.
    """
    grey = grey_of(picture)
    noise = 1.4 * np.median(abs(grey - ndimage.median_filter(grey, 3)))
    if noise > 0.01:
        grey = ndimage.gaussian_filter(grey, min(30 * noise, max(grey.shape) / 100))
    readings = [strokes(grey, sign, FAINT[bool(noise > 0)]) for sign in (1, -1)]
    found = sorted(filter(None, readings), key=lambda reading: -reading[0])
    if not found:
        raise PictureError("shows no digit that stands free; leave paper around it, without dark lines or a table")
    _, _, ink = found[-1] if found[0][1] > SHEET * found[-1][1] else found[0]
    if ink is None:
        raise PictureError("shows more than one digit; give a picture of each")
    return ink


def strokes(grey: np.ndarray, sign: int, faint: float) -> tuple[float, float, np.ndarray | None] | None:
    """The digit in `grey` (h, w) if dark (`sign` 1) or light (-1): length, thickness and ink; no ink if it is two.

    The paper's grey at each place is that of a closing (Serra 1982), which fills what is narrower than its window; what
    hangs together with the edge of the picture is a line, a table or a shadow; so is what has no sharp outline.
    """
    longest = max(grey.shape)
    close = ndimage.grey_closing if sign > 0 else ndimage.grey_opening
    paper = close(grey, size=max(3, round(0.35 * min(grey.shape))), mode="nearest")
    depth = sign * (paper - grey)
    ink = depth / np.maximum(paper, 0.1)  # light multiplies
    ink = (ink - np.median(ink)).clip(0)
    reach = 2 * max(1, longest // 130) + 1
    rise = ndimage.maximum_filter(grey, reach) - ndimage.minimum_filter(grey, reach)
    for width in (0, longest // 100, longest // 50, longest // 25):  # lines up to so wide would tie it to the edge
        free = ndimage.grey_opening(ink, size=width) if width > 1 else ink
        free = free - attached(free)
        if free.max() <= 0.03:
            continue
        mask, others = the_digit(free)
        typical = np.median(depth[mask])
        rim = mask & ~ndimage.binary_erosion(mask, EIGHT)
        length = max(np.ptp(np.argwhere(mask), axis=0) + 1)
        thickness = ndimage.distance_transform_edt(mask).max() / length
        sharp = (rise[rim] > 0.4 * depth[rim].clip(typical)).mean()
        if typical < LEAST_CONTRAST or sharp < SHARP or thickness > THICKEST:
            continue
        near = ndimage.binary_dilation(mask, EIGHT, iterations=2 + longest // 200)
        ink = np.where(near, free / free[near].max(), 0)
        ink[ink < faint] = 0
        return length, thickness, None if others else ink
    return None


def attached(ink: np.ndarray, levels: int = 24) -> np.ndarray:
    """The strongest ink by which each pixel of `ink` (h, w) hangs together with the edge of the picture."""
    found, edge = np.zeros_like(ink), np.ones(ink.shape, bool)
    edge[1:-1, 1:-1] = False
    for level in np.linspace(0, ink.max(), levels + 1)[1:]:
        mask = ink >= level
        found[ndimage.binary_propagation(edge & mask, EIGHT, mask)] = level + ink.max() / levels
    return np.minimum(found, ink)


def the_digit(ink: np.ndarray) -> tuple[np.ndarray, bool]:
    """Where the digit in `ink` (h, w) is, without specks and frames; and whether another one is far from it."""
    threshold = 0.4 * ink.max()
    for _ in range(2):  # a speck may be darker than the digit
        labels, count = ndimage.label(ink > threshold, EIGHT)
        mass = ndimage.sum_labels(ink, labels, range(1, count + 1))
        boxes = np.array([[(side.start, side.stop) for side in box] for box in ndimage.find_objects(labels)])
        low, high = boxes[..., 0], boxes[..., 1]
        lengths = (high - low).max(axis=1)
        for one in np.flatnonzero(lengths > 0.3 * lengths.max()):
            inner = (high[one] - low[one]) // 4
            (top, left), (bottom, right) = low[one] + inner, high[one] - inner
            held = ((low > low[one]) & (high < high[one])).all(axis=1)
            if not (labels[top:bottom, left:right] == one + 1).any() and any(lengths[held] > 0.15 * lengths[one]):
                mass[one] = 0  # a frame
        main = mass.argmax()
        threshold = 0.4 * np.quantile(ink[labels == main + 1], 0.9)
    apart = np.maximum(low - high[main], low[main] - high).max(axis=1) > 0.3 * lengths[main]
    kept = (mass > 0.03 * mass[main]) & (lengths > 0.1 * lengths[main]) & ~apart
    return np.isin(labels, np.flatnonzero(kept) + 1), bool((apart & (mass > 0.2 * mass[main])).any())


def centred(ink: np.ndarray, frame: Frame, height: int, width: int) -> np.ndarray:
    """`ink` in an image (height, width), fitted into `frame`: the ratio of its sides is kept.

    So MNIST was made (the foot of yann.lecun.com/exdb/mnist): fitted into 20 x 20 pixels, and put into 28 x 28 so that
    the centre of mass is in the middle.
    """
    picture = Image.fromarray(ink)
    picture = picture.crop(picture.getbbox())
    scale = min(frame.longest / max(picture.size), width / picture.width, height / picture.height)
    size = [max(1, round(side * scale)) for side in picture.size]
    digit = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    digit = digit / digit.max()  # a thin line grows pale when it is made small
    image = np.zeros((height, width), np.float32)
    corner = np.floor(np.array([frame.row, frame.column]) + 0.5 - ndimage.center_of_mass(digit)).astype(int)
    row, column = np.clip(corner, 0, np.subtract(image.shape, digit.shape))
    image[row : row + digit.shape[0], column : column + digit.shape[1]] = digit
    return image


def frame_of(images: np.ndarray) -> Frame:
    """How the digits in `images` (N, H, W) usually lie: in MNIST 20 pixels long, and around the pixel (14, 14)."""
    images = images[images.any(axis=(1, 2))]
    lengths = [side.shape[1] - side.argmax(1) - side[:, ::-1].argmax(1) for side in (images.any(2), images.any(1))]
    centre = np.round(2 * np.array(ndimage.center_of_mass(images.mean(axis=0)))) / 2
    return Frame(int(np.median(np.maximum(*lengths))), *centre)
