"""What cuts photographs out, chosen by name: the background's colour, a network, or rembg."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from builder import __version__
from builder.cutout.by_rembg import PREFIX, RembgSegmenter
from builder.cutout.edge import Matting, alpha_cutout, cut_by_mask, has_pymatting
from builder.cutout.key import cut_out
from builder.cutout.models import Matter, Segment, Segmenter, Weights, find_folder
from builder.cutout.objects import Cutout, NotCutError, objects_of, reduced, sides_of, subjects
from builder.cutout.shapes import Mask
from builder.depth import Device
from builder.errors import CutoutModelError
from builder.pinned import credit_fault

_BY_COLOUR = ("auto", "key")
_INSIDE = 0.5  # of probability


@dataclass(frozen=True)
class Settings:
    """How a person wants photographs cut out; `builder.cutout.cutout` says what each means."""

    how: str = "auto"
    instances: bool = False
    text: str = ""
    label: str = ""
    matting: str = ""
    revision: str | None = None
    weights_license: str | None = None
    device: Device = "auto"


class Cutter(Protocol):
    """Cuts the objects of photographs out.

    `options` is what decides how; `tool`, `weights` and `license` are for the credits.
    """

    options: dict[str, Any]
    tool: str
    weights: str
    license: str

    def __call__(self, photograph: Image.Image) -> list[Cutout]:
        """Return the cut-outs of a photograph of mode RGB, largest object first.

        Raises:
            NotCutError: none can be made.
        """
        ...


def cutter(settings: Settings) -> Cutter:
    """Return what cuts out in the way that a person names.

    Raises:
        CutoutModelError: it is not there, or the settings do not go together.
    """
    if settings.how in _BY_COLOUR:
        return _ByColour(settings)
    return _ByNetwork(settings)


@contextmanager
def sharing_cores(workers: int, cores: int) -> Iterator[None]:
    """Let torch use as many threads for each photograph as leave a core to all of them.

    The number is the same whatever else runs, so that a photograph comes out the same again.
    """
    import sys

    if "torch" not in sys.modules:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, cores // workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _ByColour:
    def __init__(self, settings: Settings) -> None:
        names = ("text", "label", "matting", "revision", "weights_license")
        if given := [name for name in names if getattr(settings, name)]:
            raise CutoutModelError(
                f"only a network has a use for {' and '.join(given)}; name one with --how, such "
                "as --how Roboflow/rf-detr-seg-medium."
            )
        self.options: dict[str, Any] = {"how": settings.how, "instances": settings.instances}
        self.tool = f"fgbg-dataset {__version__} key"
        self.weights = self.license = ""
        self._asked = settings.how == "key"

    def __call__(self, photograph: Image.Image) -> list[Cutout]:
        return cut_out(photograph, instances=self.options["instances"], asked=self._asked)


class _ByNetwork:
    def __init__(self, settings: Settings) -> None:
        self._instances = settings.instances
        if fault := credit_fault(settings.weights_license or ""):
            raise CutoutModelError(f"the license given with --weights-license {fault}.")
        self._find, used = _segmenter(settings)
        self._matting: tuple[str, Matting] | None = None
        mats: list[Weights] = []
        if settings.matting:
            folder, weights = find_folder("matting model", settings.matting, None)
            self._matting = "ViTMatte", Matter(folder, settings.device)
            mats = [weights]
        self._chosen = bool(settings.label or settings.text)
        self.tool = f"fgbg-dataset {__version__} {used.name}"
        self.weights = " + ".join(one.weights for one in (used, *mats))
        self.license = _licenses([used, *mats], settings.weights_license)
        self.options = {
            "how": "network",
            "instances": settings.instances,
            "weights": [one.sha256 for one in (used, *mats)],
            "text": settings.text,
            "label": settings.label,
            "pymatting": has_pymatting(),
            "weights_license": settings.weights_license,
        }

    def __call__(self, photograph: Image.Image) -> list[Cutout]:
        small, scale = reduced(photograph)
        segments = self._find(photograph, small.size)
        found = _objects(segments)
        if not found:
            raise NotCutError(
                "shows nothing that the network takes for an object; try another model, or another "
                "--label or --text"
            )
        if any(segments[n].any_class for n, _ in found):
            # A wall, the sky or a floor reaches several sides; an object seldom does.
            found = [one for one in found if len(sides_of(one[1])) < 2] or found
        labels = sorted({segments[n].label for n, _ in found} - {""})
        more = f", or name a class with --label ({', '.join(labels)})" if len(labels) > 1 else ""
        chosen = subjects([int(np.count_nonzero(mask)) for _, mask in found], self._instances, more)
        return [self._cut(photograph, segments[found[n][0]], found[n][1], scale) for n in chosen]

    def _cut(self, photograph: Image.Image, seen: Segment, mask: Mask, scale: int) -> Cutout:
        if seen.is_alpha:
            cutout = alpha_cutout(photograph, seen.probability, mask, scale)
        else:
            cutout = cut_by_mask(
                photograph, seen.probability, mask, scale, self._matting, seen.grain
            )
        score = None if seen.score is None else round(seen.score, 2)
        return cutout._replace(figures=replace(cutout.figures, score=score), label=seen.label)


def _segmenter(
    settings: Settings,
) -> tuple[Callable[[Image.Image, tuple[int, int]], list[Segment]], Weights]:
    if not settings.how.startswith(PREFIX):
        folder, weights = find_folder("cut-out model", settings.how, settings.revision)
        found = Segmenter(folder, settings.text, settings.label, settings.device)
        return found, weights
    if given := [name for name in ("text", "label", "revision") if getattr(settings, name)]:
        raise CutoutModelError(f"rembg has no use for {' and '.join(given)}; leave it out.")
    rembg = RembgSegmenter(settings.how.removeprefix(PREFIX))
    return rembg, rembg.weights


def _licenses(used: Sequence[Weights], stated: str | None) -> str:
    """Return the licenses of weights, each once; '' where none of them is known."""
    if stated is not None:
        return stated
    names = list(dict.fromkeys(one.license or "unknown" for one in used))
    return "" if names == ["unknown"] else " + ".join(names)


def _objects(segments: Sequence[Segment]) -> list[tuple[int, Mask]]:
    """Return the objects in segments, each with the number of its segment."""
    found = []
    for number, segment in enumerate(segments):
        parts = objects_of(segment.probability >= _INSIDE)
        if not segment.parted and parts:
            # A network that tells objects apart may say one in parts, behind a pole.
            whole = parts[0].copy()
            for part in parts[1:]:
                whole |= part
            parts = [whole]
        found += [(number, part) for part in parts]
    return found
