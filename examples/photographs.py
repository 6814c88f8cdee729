"""Real photographs with masks, to measure on what a network has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from fgbg_dataset import FgbgError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class Photographs:
    """Real pictures (N, S, S, 3) uint8, where the object is (N, S, S), and how far all is."""

    pixels: np.ndarray
    mask: np.ndarray
    depth_m: np.ndarray | None

    def part(self, which: np.ndarray) -> Photographs:
        depth_m = None if self.depth_m is None else self.depth_m[which]
        return Photographs(self.pixels[which], self.mask[which], depth_m)

    def batch(self, mean: np.ndarray, std: np.ndarray) -> dict[str, torch.Tensor]:
        pixels = ((self.pixels / 255 - mean) / std).astype(np.float32)
        arrays = {
            "pixel_values": pixels.transpose(0, 3, 1, 2),
            "mask": self.mask[:, None].astype(np.float32),
        }
        if self.depth_m is not None:
            arrays["depth_m"] = self.depth_m[:, None]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def stems(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by their names without suffix, in order."""
    if not folder.is_dir():
        raise FgbgError(f"{folder} is not a folder; give a folder of pictures.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FgbgError(f"{folder} holds no picture; give a folder of pictures.")
    found = {path.stem: path for path in paths}
    if len(found) < len(paths):
        twice = next(path for path in paths if found[path.stem] != path)
        raise FgbgError(f"{folder} holds two pictures {twice.stem}; keep one of them.")
    return found


def opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise FgbgError(f"{path} cannot be read ({error}); repair or remove it.") from None


def photographs(images: Path, masks: Path, depth: Path | None, size: int) -> Photographs:
    """Read real pictures as squares."""
    pixels, marked, depths_m = [], [], []
    of_mask, of_depth = stems(masks), stems(depth) if depth else {}
    for stem, path in stems(images).items():
        for folder, found in ((masks, of_mask), *([(depth, of_depth)] if depth else [])):
            if stem not in found:
                raise FgbgError(f"{path} has no picture {stem} in {folder}; add it.")
        image, mask = opened(path).convert("RGB"), opened(of_mask[stem]).convert("L")
        if image.size != mask.size:
            raise FgbgError(
                f"{of_mask[stem]} is {mask.width} x {mask.height} px and its photograph "
                f"{image.width} x {image.height}; make them equal."
            )
        square = (size, size)
        pixels.append(np.asarray(image.resize(square, Image.Resampling.BICUBIC)))
        white = Image.fromarray(np.where(np.asarray(mask) > 127, np.uint8(255), np.uint8(0)))
        marked.append(np.asarray(white.resize(square, Image.Resampling.BILINEAR)) > 127)
        if not marked[-1].any():
            raise FgbgError(f"{of_mask[stem]} marks nothing (white above 127); remove the pair.")
        if depth:
            map_mm = opened(of_depth[stem])
            if not map_mm.mode.startswith("I"):
                raise FgbgError(f"{of_depth[stem]} is not a 16-bit grey PNG in mm; convert it.")
            near_mm = np.asarray(map_mm.resize(square, Image.Resampling.NEAREST), np.float32)
            depths_m.append(np.where(near_mm > 0, near_mm / 1000, np.float32(np.nan)))
    return Photographs(np.stack(pixels), np.stack(marked), np.stack(depths_m) if depths_m else None)
