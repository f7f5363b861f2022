"""What look.py's reader makes of a digit on paper, by circumstance: shadows, ruled paper, a table, specks, noise.

    python benchmarks/pictures.py runs/NAME --digits 60

Test digits are drawn large on paper, photographed under each circumstance, and read back. A circumstance is handled if
the network answers what it answers on the clean picture, or if the reader refuses the picture in words.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent.parent))

import look
from support.pictures import PictureError, frame_of, read_picture

SIDE = 600  # pixels of a picture
PAPER, INK = 0.84, 0.18  # of the light that falls on them, reflected
Y, X = np.mgrid[:SIDE, :SIDE] / SIDE


def drawn(image: np.ndarray, rng: np.random.Generator, length: float = 0.5) -> np.ndarray:
    """The strokes of `image` (H, W) as a pen draws them, 0 to 1: (SIDE, SIDE), and about `length` of that long."""
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    box = Image.fromarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / image.max())
    scale = SIDE * length * rng.uniform(0.85, 1.15) / max(box.size)
    size = [round(side * scale) for side in box.size]
    digit = np.asarray(box.resize(size, Image.Resampling.BICUBIC))
    digit = np.pad(digit, [((SIDE - side) // 2, SIDE - side - (SIDE - side) // 2) for side in digit.shape])
    digit = np.roll(digit, rng.integers(-SIDE // 16, SIDE // 16 + 1, 2), axis=(0, 1))
    smooth = ndimage.gaussian_filter(digit, scale / 4)
    return ((smooth - 0.4) * scale / 2 + 0.5).clip(0, 1)  # an edge of a pixel or two


def lines(angle: float, distance: float, width: float, first: float = 0.4) -> np.ndarray:
    """Parallel lines, in parts of the picture's side, turned by `angle` degrees: (SIDE, SIDE), 1 where they are."""
    across = (Y * np.cos(np.radians(angle)) - X * np.sin(np.radians(angle)) - first * distance + 10) % distance
    return (0.5 + (width / 2 - abs(across - distance / 2)) * SIDE).clip(0, 1)


def inside(angle: float, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """A sheet that is turned by `angle` degrees: (SIDE, SIDE), 1 where it lies."""
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = 0.5 + (X - 0.5) * c + (Y - 0.5) * s, 0.5 - (X - 0.5) * s + (Y - 0.5) * c
    edge = np.minimum.reduce([x - left, right - x, y - top, bottom - y])
    return (0.5 + edge * SIDE).clip(0, 1)


def ramp(distance: np.ndarray, low: float, softness: float) -> np.ndarray:
    """Light: 1 where `distance` is positive, `low` where it is negative, and between them over `softness`."""
    return low + (1 - low) * (0.5 + distance / max(softness, 1e-6)).clip(0, 1)


class Scene:
    """A sheet of paper with a digit, and what happens to it on its way into a file."""

    def __init__(self, ink: np.ndarray, rng: np.random.Generator):
        self.ink, self.rng = ink, rng
        self.paper = np.full_like(ink, PAPER)  # reflectance
        self.light = np.ones_like(ink)
        self.around = np.zeros_like(ink)  # where no paper is, and what is there
        self.table = np.zeros_like(ink)
        self.grain, self.pen, self.quality = 0.008, INK, 0

    def shadow(self, low: float, softness: float) -> "Scene":
        """Of a hand, from a corner or a side, over a part of the picture."""
        angle = self.rng.uniform(0, 2 * np.pi)
        away = (X - 0.5) * np.cos(angle) + (Y - 0.5) * np.sin(angle) + self.rng.uniform(-0.1, 0.25)
        self.light = self.light * ramp(away, low, softness)
        return self

    def fingers(self, low: float, softness: float) -> "Scene":
        """The shadow of a hand with fingers."""
        wave = 0.12 * np.sin(2 * np.pi * (2.5 * X + self.rng.uniform()))
        self.light = self.light * ramp(0.55 - Y + wave, low, softness)
        return self

    def falling(self, low: float) -> "Scene":
        """Light that falls off evenly across the paper."""
        angle = self.rng.integers(4) * np.pi / 2 + self.rng.uniform(-0.5, 0.5)
        along = (X - 0.5) * np.cos(angle) + (Y - 0.5) * np.sin(angle)
        self.light = self.light * (1 + (low - 1) * (along - along.min()) / np.ptp(along))
        return self

    def vignette(self, low: float) -> "Scene":
        self.light = self.light * (1 + (low - 1) * 2 * ((X - 0.5) ** 2 + (Y - 0.5) ** 2))
        return self

    def lamp(self, low: float) -> "Scene":
        """A spot of light beside the middle."""
        row, column = self.rng.uniform(0.2, 0.8, 2)
        self.light = self.light * (low + (1 - low) * np.exp(-((X - column) ** 2 + (Y - row) ** 2) / 0.18))
        return self

    def specks(self, count: int, size: float, shade: float = INK) -> "Scene":
        """Specks of `size` pixels, away from the digit."""
        free = ndimage.distance_transform_edt(self.ink < 0.1) > 40
        free[:12], free[-12:], free[:, :12], free[:, -12:] = False, False, False, False
        places = np.argwhere(free)
        for row, column in places[self.rng.integers(len(places), size=count)]:
            radius = size / 2 * self.rng.uniform(0.9, 1.1)
            dot = (0.5 + radius - np.hypot(Y * SIDE - row, X * SIDE - column)).clip(0, 1)
            self.paper = self.paper * (1 - dot) + shade * dot
        return self

    def ruled(self, angle: float, distance: float, width: float, shade: float) -> "Scene":
        mask = lines(angle, distance, width, self.rng.uniform())
        self.paper = self.paper * (1 - mask) + shade * mask
        return self

    def squared(self, angle: float, distance: float, width: float, shade: float) -> "Scene":
        return self.ruled(angle, distance, width, shade).ruled(angle + 90, distance, width, shade)

    def frame(self, inset: int, width: int, shade: float) -> "Scene":
        ring = np.zeros_like(self.ink)
        ring[inset : SIDE - inset, inset : SIDE - inset] = 1
        ring[inset + width : SIDE - inset - width, inset + width : SIDE - inset - width] = 0
        self.paper = np.where(ring > 0, shade, self.paper)
        return self

    def on_table(self, shade: float, sides: str, depth: float, angle: float = 0.0, wood: float = 0.0) -> "Scene":
        """Lies on something that is seen on these `sides`: l, t, r, b."""
        left, top, right, bottom = (depth if side in sides else -1 for side in "ltrb")
        self.around = 1 - inside(angle, left, top, 1 - right, 1 - bottom)
        rings = np.sin(60 * (Y + 0.03 * np.sin(9 * X)) + 4 * ndimage.gaussian_filter1d(self.rng.normal(size=SIDE), 9))
        self.table = shade * (1 + wood * rings)
        return self

    def edge(self, angle: float, shade: float) -> "Scene":
        """A dark line beside the sheet, as at the spine of a book."""
        place = abs(X - 0.06 + (Y - 0.5) * np.tan(np.radians(angle)))
        self.paper = self.paper * (1 - (1 - shade / PAPER) * np.exp(-((place / 0.008) ** 2)))
        return self

    def made(self, **how: float) -> "Scene":
        """Otherwise than usual: deviation of the `grain`, shade of the `pen`, `quality` of the JPEG file."""
        vars(self).update(how)
        return self

    def picture(self) -> Image.Image:
        sheet = self.paper * (1 - self.ink) + np.minimum(self.paper, self.pen) * self.ink
        seen = (sheet * (1 - self.around) + self.table * self.around) * self.light
        seen = seen + self.rng.normal(0, self.grain, seen.shape)
        picture = Image.fromarray((255 * seen + 0.5).clip(0, 255).astype(np.uint8))
        if self.quality:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=self.quality)
            picture = Image.open(buffer)
        return picture


def transparent(ink: np.ndarray, pen: tuple[int, int, int], paper: tuple[int, int, int]) -> Image.Image:
    colours = np.where(ink[..., None] > 0, pen, paper).astype(np.uint8)
    return Image.fromarray(np.dstack([colours, np.round(255 * ink).astype(np.uint8)]))


def salted(picture: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.array(picture)
    hit = rng.uniform(size=pixels.shape)
    pixels[hit < share / 2], pixels[hit > 1 - share / 2] = 0, 255
    return Image.fromarray(pixels)


def negative(picture: Image.Image) -> Image.Image:
    return Image.fromarray(255 - np.asarray(picture))


def blackboard(scene: Scene) -> Image.Image:
    """Chalk on a dark board, under the light of the scene."""
    seen = (0.14 + 0.06 * ndimage.gaussian_filter(scene.rng.normal(size=scene.ink.shape), 25) * 25) * (1 - scene.ink)
    seen = (seen + 0.75 * scene.ink) * scene.light + scene.rng.normal(0, 0.01, seen.shape)
    return Image.fromarray((255 * seen).clip(0, 255).astype(np.uint8))


def beside(ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Two digits, far apart."""
    half = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX))
    both = np.zeros_like(ink)
    both[SIDE // 4 : 3 * SIDE // 4] = np.hstack([half, half])
    return Scene(both, rng).picture()


Circumstance = Callable[[Scene], Image.Image]
CIRCUMSTANCES: dict[str, Circumstance] = {
    "clean": lambda s: s.picture(),
    "shadow of a hand 0.6, soft": lambda s: s.shadow(0.6, 0.2).picture(),
    "shadow of a hand 0.75, hard": lambda s: s.shadow(0.75, 0.004).picture(),
    "shadow of a hand 0.6, hard": lambda s: s.shadow(0.6, 0.004).picture(),
    "shadow of fingers 0.7, hard": lambda s: s.fingers(0.7, 0.004).picture(),
    "two shadows": lambda s: s.shadow(0.75, 0.05).shadow(0.75, 0.05).picture(),
    "vignette 0.4": lambda s: s.vignette(0.4).picture(),
    "light falling off to 0.35": lambda s: s.falling(0.35).picture(),
    "a lamp's spot": lambda s: s.lamp(0.4).picture(),
    "one speck, 14 pixels": lambda s: s.specks(1, 14).picture(),
    "ten specks": lambda s: s.specks(10, 6).picture(),
    "ruled paper, dark": lambda s: s.ruled(0, 0.1, 0.005, 0.4).picture(),
    "ruled paper, turned": lambda s: s.ruled(4, 0.1, 0.005, 0.6).picture(),
    "ruled paper, as dark as the ink": lambda s: s.ruled(1, 0.13, 0.004, INK).picture(),
    "ruled paper, with a margin": lambda s: s.ruled(0, 0.1, 0.004, 0.6).ruled(90, 0.7, 0.006, 0.45).picture(),
    "squared paper, dark": lambda s: s.squared(0, 0.06, 0.004, 0.4).picture(),
    "squared paper, turned": lambda s: s.squared(-3, 0.05, 0.004, 0.6).picture(),
    "frame of 1 pixel": lambda s: s.frame(0, 1, 0).picture(),
    "frame of 3 pixels, far in": lambda s: s.frame(30, 3, INK).picture(),
    "dark table all round, sheet turned": lambda s: s.on_table(0.24, "ltrb", 0.11, 6).picture(),
    "dark table on one side": lambda s: s.on_table(0.24, s.rng.choice(list("ltrb")), 0.12).picture(),
    "grey table all round": lambda s: s.on_table(0.6, "ltrb", 0.1, 3).picture(),
    "light table all round, grey paper": lambda s: s.on_table(0.97, "ltrb", 0.1, 3).picture(),
    "light table on one side": lambda s: s.on_table(0.97, s.rng.choice(list("ltrb")), 0.12).picture(),
    "wooden table all round": lambda s: s.on_table(0.4, "ltrb", 0.1, -3, wood=0.3).picture(),
    "spine of a book": lambda s: s.edge(2, 0.2).picture(),
    "noise 0.2": lambda s: s.made(grain=0.2).picture(),
    "salt and pepper 3 %": lambda s: salted(s.picture(), 0.03, s.rng),
    "JPEG 20": lambda s: s.made(quality=20).picture(),
    "pencil, noise 0.05, falling light": lambda s: s.made(pen=0.5, grain=0.05).falling(0.6).picture(),
    "white ink, transparent paper": lambda s: transparent(s.ink, (255, 255, 255), (0, 0, 0)),
    "pale ink, transparent paper": lambda s: transparent(s.ink, (255, 245, 190), (255, 255, 255)),
    "black ink, transparent paper": lambda s: transparent(s.ink, (0, 0, 0), (255, 255, 255)),
    "light on dark, vignette": lambda s: negative(s.vignette(0.5).picture()),
    "light on dark, specks": lambda s: negative(s.specks(10, 6).picture()),
    "blackboard, shadow": lambda s: blackboard(s.shadow(0.6, 0.05)),
    "photograph: shadow, ruled, noise": (
        lambda s: s.shadow(0.7, 0.1).ruled(2, 0.09, 0.004, 0.6).made(grain=0.03, quality=60).picture()
    ),
    "photograph: vignette, table, specks": (
        lambda s: s.vignette(0.6).on_table(0.3, "ltr", 0.09, 4, 0.2).specks(4, 7).made(grain=0.03, quality=70).picture()
    ),
    "photograph: squared, falling light, table": (
        lambda s: s.falling(0.6).squared(3, 0.05, 0.003, 0.6).on_table(0.25, "rb", 0.12, 5).made(grain=0.02).picture()
    ),
    "photograph: fingers, frame, grey table": (
        lambda s: s.fingers(0.75, 0.05).frame(90, 2, 0.3).on_table(0.55, "ltrb", 0.08, 2).made(grain=0.02).picture()
    ),
    "two digits, far apart": lambda s: beside(s.ink, s.rng),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--digits", type=int, default=60, help="test digits a circumstance")
    options = parser.parse_args(argv)
    (run, *_), dataset = look.read_runs([options.run])
    frame = frame_of(dataset.train_images[: look.TYPICAL])
    images, labels = dataset.test_images[: options.digits], dataset.test_labels[: options.digits]
    print("| circumstance | right | wrong | refused |\n|---|---:|---:|---:|")
    for name, circumstance in CIRCUMSTANCES.items():
        count = dict.fromkeys(("right", "wrong", "refused"), 0)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            rng, file = np.random.default_rng(index), io.BytesIO()
            circumstance(Scene(drawn(image, rng), rng)).save(file, "PNG")
            try:
                seen = torch.from_numpy(read_picture(file, frame, *image.shape))
            except PictureError:
                count["refused"] += 1
            else:
                count["right" if look.probabilities(run.model, seen[None]).argmax() == label else "wrong"] += 1
        print(f"| {name} | {' | '.join(map(str, count.values()))} |")


if __name__ == "__main__":
    main()
