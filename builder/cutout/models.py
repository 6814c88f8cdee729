"""Networks that say where objects are in a photograph, found and loaded as safely as depth models.

Pictures are prepared and outputs read here, and not by Transformers' image processors, of which
some need torchvision. Each kind of network says its masks in its own way; a `Segment` is what they
come to.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from builder.cutout.shapes import Floats
from builder.cutout.sweep import Pixels
from builder.depth import Device, pick_device
from builder.errors import CutoutModelError
from builder.files import read_text
from builder.hub import is_hub_id
from builder.model_folder import ModelFolder, download, hash_files
from builder.untrusted import one_line, printable

if TYPE_CHECKING:
    import torch

# What a model is loaded with, by the type that its config states.
_CLASSES = "AutoModelForUniversalSegmentation"
_SEMANTIC = "AutoModelForSemanticSegmentation"
_POINT = "AutoModelForMaskGeneration"
_MATTING = "AutoModelForImageMatting"
_KINDS = {
    **dict.fromkeys(
        ("detr", "eomt", "eomt_dinov3", "mask2former", "maskformer", "oneformer"), _CLASSES
    ),
    "rf_detr": "AutoModelForInstanceSegmentation",
    **dict.fromkeys(
        ("beit", "data2vec-vision", "dpt", "mobilenet_v2", "mobilevit", "mobilevitv2", "segformer"),
        _SEMANTIC,
    ),
    "upernet": _SEMANTIC,
    **dict.fromkeys(("edgetam", "sam", "sam2", "sam2_video", "sam3_tracker", "sam_hq"), _POINT),
    "clipseg": "CLIPSegForImageSegmentation",
    **dict.fromkeys(("sam3", "sam3_video"), "Sam3Model"),
    "sapiens2": _MATTING,
}
_BY_TEXT = ("clipseg", "sam3", "sam3_video")
_TYPES = (
    "RF-DETR, Mask2Former, MaskFormer, OneFormer, EoMT and DETR with masks; SegFormer, BEiT, DPT, "
    "UPerNet, MobileViT and others of semantic segmentation; SAM, SAM 2, SAM 3, CLIPSeg; Sapiens2 "
    "for matting"
)
_FILES = ("*.json", "*.safetensors", "*.txt", "README.md")
_MAX_CARD_BYTES = 2**22
_STATED = re.compile(r"^license(?:_name)?:.*(?:\n[ \t-].*)*", re.MULTILINE)

_SURE = 0.5  # of a query, from which it is one of an object
_SAME = 0.7  # of the area of two masks together, from which both are of one object
_MOST_SEGMENTS = 50
_LEAST_SHARE = 0.001  # of the picture, for a class to be one that is seen
_INPUT_PX = (8, 2048)  # of a side of what a network is given
_LABELS_SHOWN = 60


class Segment(NamedTuple):
    """What a network says of one object, or of all of one class.

    `probability` (h, w) float32 is as large as the small picture; `parted`: what does not touch may
    be several objects; `grain`: how many px of that are one of the network's own; `any_class`: it
    may be a background, such as sky, as well as an object; `is_alpha`: it is alpha already.
    """

    probability: Floats
    score: float | None = None
    label: str = ""
    parted: bool = False
    grain: float = 1.0
    any_class: bool = False
    is_alpha: bool = False


@dataclass(frozen=True)
class Weights:
    """What made a cut-out, in the words of credits: the name, its weights and their license."""

    name: str
    weights: str
    license: str
    sha256: str


def find_folder(words: str, name: str, revision: str | None) -> tuple[ModelFolder, Weights]:
    """Find a model: a folder, or a Hub id, which is downloaded.

    Args:
        words: what it is for, in messages.

    Raises:
        CutoutModelError: there is none, or its files are not ones to load.
    """
    if name and Path(name).is_dir():
        if revision:
            raise CutoutModelError(
                f"{words} {name!r} is a folder, which has no revision; leave out --revision."
            )
        path, weights, commit = Path(name), one_line(Path(name).resolve().name), ""
    elif "/" in name and is_hub_id(name) and not Path(name).exists():
        path = download(words, name, revision, _FILES, CutoutModelError)
        commit = path.name
        weights = f"{name}@{commit}"
    else:
        raise CutoutModelError(
            f"{words} {name!r} is neither a folder nor a Hub id such as "
            "Roboflow/rf-detr-seg-medium; by colour it is auto or key, and rembg:NAME by rembg."
        )
    folder = ModelFolder(words, name, path, CutoutModelError)
    digest = hash_files(folder.weight_files(folder.config()[0]))
    shown = weights if commit else f"{weights} sha256:{digest[:12]}"
    return folder, Weights(weights, shown, _license_of(path), digest)


def _license_of(path: Path) -> str:
    """Return the license that a model's card states, '' where it states none."""
    try:
        text = read_text(path / "README.md", _MAX_CARD_BYTES)
        found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
        # Those lines alone: merged mappings elsewhere could grow without bound.
        stated = yaml.safe_load("\n".join(_STATED.findall(found[1]))) if found else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return ""
    if not isinstance(stated, Mapping):
        return ""
    license = stated.get("license")
    if license == "other" and isinstance(stated.get("license_name"), str):
        license = stated["license_name"]
    if isinstance(license, list):
        license = " + ".join(one for one in license if isinstance(one, str))
    return one_line(license)[:100] if isinstance(license, str) else ""


class _Input(NamedTuple):
    """A picture as a network takes it: (1, c, h, w), and the part of it that is the picture."""

    values: torch.Tensor
    height: int
    width: int


class _Runner:
    """A network ready to run on a device.

    Args:
        fixed: the side of the square that it takes, if it takes no other.
    """

    def __init__(self, folder: ModelFolder, auto: str, device: Device) -> None:
        import torch
        import transformers

        self.folder = folder
        self._device = torch.device(pick_device(device))
        self.network = folder.load(getattr(transformers, auto)).to(self._device)
        self._settings = folder.pixel_settings()
        scale, mean, std = folder.pixel_scaling(self._settings)
        mean_, std_ = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        self._factor, self._offset = scale / std_, -mean_ / std_
        # On a processor, workers run it side by side, on a part of the cores each.
        self._alone = nullcontext() if self._device.type == "cpu" else threading.Lock()

    def pixels(self, seen: Pixels) -> torch.Tensor:
        """Return (h, w, 3) uint8 as the network takes it, (1, 3, h, w)."""
        import torch

        values = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float()
        return values * self._factor + self._offset

    def prepared(self, photograph: Image.Image, fixed: int | None) -> _Input:
        """Return a photograph in the size that the network is given it."""
        import torch

        width, height, wide, high = self._size(photograph.size, fixed)
        small = photograph.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
        values = self.pixels(np.asarray(small))
        padded = torch.nn.functional.pad(values, (0, wide - width, 0, high - height))
        return _Input(padded, height, width)

    def _size(self, size: tuple[int, int], fixed: int | None) -> tuple[int, int, int, int]:
        """Return the width and height of a picture for the network, and with what it is padded."""
        stated = self._settings.get("size")
        try:
            width, height, square = _fitted(stated, size)
            divisor = int(self._settings.get("size_divisor") or 32)
        except (TypeError, ValueError, KeyError, OverflowError, AttributeError):
            width = height = divisor = 0
            square = False
        if not all(_INPUT_PX[0] <= side <= _INPUT_PX[1] for side in (width, height, divisor)):
            raise self.folder.fault(
                f": its preprocessor config has the size {one_line(stated)}, which no picture can "
                f"be brought to; sides of {_INPUT_PX[0]} to {_INPUT_PX[1]} px can be."
            )
        if fixed is not None:
            if square:
                return fixed, fixed, fixed, fixed
            ratio = fixed / max(width, height)
            width, height = (max(1, round(side * ratio)) for side in (width, height))
            return width, height, fixed, fixed
        if not square:
            width, height = (-(-side // divisor) * divisor for side in (width, height))
        return width, height, width, height

    def __call__(self, **inputs: Any) -> Any:
        """Return the network's outputs.

        Raises:
            CutoutModelError: it fails.
        """
        import torch

        moved = {
            key: value.to(self._device) if isinstance(value, torch.Tensor) else value
            for key, value in inputs.items()
        }
        try:
            with self._alone, torch.inference_mode():
                return self.network(**moved)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
            shape = tuple(inputs["pixel_values"].shape)
            raise self.folder.fault(
                f" fails on a picture of {shape[3]}x{shape[2]} px: {one_line(error)}. Use another "
                "model, --device cpu or fewer --workers."
            ) from None


def _fitted(stated: Any, size: tuple[int, int]) -> tuple[int, int, bool]:
    """Return the width and height that a preprocessor config gives a picture; whether stretched."""
    if isinstance(stated, int):
        stated = {"shortest_edge": stated}
    if "height" in stated:
        return int(stated["width"]), int(stated["height"]), True
    short, long = stated.get("shortest_edge"), stated.get("longest_edge")
    if "max_height" in stated:
        ratio = min(int(stated["max_width"]) / size[0], int(stated["max_height"]) / size[1])
    else:
        bounds = [int(short) / min(size)] if short else []
        bounds += [int(long) / max(size)] if long else []
        # Of a long picture the shorter side alone would make a very large one.
        bounds += [_INPUT_PX[1] / max(size)]
        ratio = min(bounds)
    width, height = (max(_INPUT_PX[0], round(side * ratio)) for side in size)
    return width, height, False


class Segmenter:
    """A segmentation network, ready to run.

    Args:
        folder: of the model.
        text: what it is to find, for a network that reads.
        label: the class that it is to find, for one that knows classes.

    Raises:
        CutoutModelError: it cannot be loaded, or has no use for the text or the label.
    """

    def __init__(self, folder: ModelFolder, text: str, label: str, device: Device) -> None:
        config, self._type = folder.config()
        self._kind = _kind_of(folder, config, self._type)
        by_text = self._type in _BY_TEXT
        if by_text and not text.strip():
            raise folder.fault(" finds what a text says; give it, as in --text 'a cup'.")
        if text and not by_text:
            raise folder.fault(
                f" is of type {self._type!r}, which reads no text; leave out --text, or use "
                "CLIPSeg or SAM 3."
            )
        self._knows = self._kind in (_CLASSES, _SEMANTIC, "AutoModelForInstanceSegmentation")
        if label and not self._knows:
            raise folder.fault(
                f" is of type {self._type!r}, which knows no classes; leave out --label."
            )
        self._run = _Runner(folder, self._kind, device)
        self._folder, self._config = folder, self._run.network.config
        self._labels = self._known_labels()
        self._wanted = self._numbers_of(label) if label else None
        self._tokens = self._tokenized(text)

    def _known_labels(self) -> dict[int, str]:
        labels = getattr(self._config, "id2label", None) or {}
        return {int(number): one_line(name) for number, name in labels.items()}

    def _numbers_of(self, label: str) -> set[int]:
        """Return the classes of a name; those of ADE20k have several, divided by commas."""
        wanted = label.strip().lower()
        found = {
            number
            for number, name in self._labels.items()
            if wanted in (name.lower(), *(word.strip() for word in name.lower().split(",")))
        }
        if not found:
            known = sorted(set(self._labels.values()))
            more = f" and {len(known) - _LABELS_SHOWN} more" if len(known) > _LABELS_SHOWN else ""
            raise self._folder.fault(
                f" knows no class {printable(label)!r}; it knows "
                f"{', '.join(known[:_LABELS_SHOWN])}{more}."
            )
        return found

    def _tokenized(self, text: str) -> dict[str, torch.Tensor]:
        """Return what the network is given beside the picture."""
        if self._type == "oneformer":
            length = int(getattr(self._config, "task_seq_len", 77))
            return {"task_inputs": self._read("the task is instance", length)["input_ids"]}
        if self._type == "clipseg":
            return self._read(text, 77)
        if self._type in _BY_TEXT:
            return self._read(text, 32)
        return {}

    def _read(self, text: str, length: int) -> dict[str, torch.Tensor]:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self._folder.path, trust_remote_code=False, local_files_only=True
            )
            read = tokenizer(
                [text],
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            )
        except Exception as error:  # noqa: BLE001 - files that make no sense can raise anything
            raise self._folder.fault(
                f": its tokenizer cannot be loaded from {self._folder.path} ({one_line(error)})."
            ) from None
        return {key: read[key] for key in ("input_ids", "attention_mask") if key in read}

    def __call__(self, photograph: Image.Image, size: tuple[int, int]) -> list[Segment]:
        """Return what the network sees, surest first, in masks of some width and height."""
        input_ = self._run.prepared(photograph, self._fixed())
        given = {"pixel_values": input_.values, **self._tokens}
        if self._kind == _POINT:
            middle = [[[[input_.width / 2, input_.height / 2]]]]
            return self._by_point(self._run(**given, **_point(middle)), input_, size)
        outputs = self._run(**given)
        if self._kind == _SEMANTIC:
            return self._by_class(outputs.logits, input_, size)
        if self._kind == _MATTING:
            alpha = self._resized(outputs.alphas[0].float(), input_, size)[0]
            return [Segment(_numbers(alpha, self._folder), parted=True, is_alpha=True)]
        if self._type == "clipseg":
            logits = outputs.logits.float().reshape(1, *outputs.logits.shape[-2:])
            found = self._resized(logits, input_, size).sigmoid()[0]
            grain = _grain(logits, input_, size)
            return [Segment(_numbers(found, self._folder), parted=True, grain=grain)]
        return self._by_query(outputs, input_, size)

    def _fixed(self) -> int | None:
        """Return the side of the square that the network takes, if it takes no other."""
        side: Any = None
        if self._type.startswith("eomt"):
            side = self._config.image_size
        elif self._type in ("sam", "sam_hq"):
            side = self._config.vision_config.image_size
        if isinstance(side, list | tuple):
            side = side[0]
        if side is not None and not _INPUT_PX[0] <= side <= _INPUT_PX[1]:
            raise self._folder.fault(f" takes pictures of {side} px, which is out of range.")
        return None if side is None else int(side)

    def _resized(self, logits: torch.Tensor, input_: _Input, size: tuple[int, int]) -> torch.Tensor:
        """Bring (n, h, w) over the network's input to the small picture."""
        import torch

        whole = tuple(input_.values.shape[-2:])
        if whole != (input_.height, input_.width):
            logits = torch.nn.functional.interpolate(logits[None], size=whole, mode="bilinear")[0]
            logits = logits[:, : input_.height, : input_.width]
        width, height = size
        return torch.nn.functional.interpolate(logits[None], size=(height, width), mode="bilinear")[
            0
        ]

    def _by_point(self, outputs: Any, input_: _Input, size: tuple[int, int]) -> list[Segment]:
        scores = outputs.iou_scores.float().reshape(-1)
        masks = outputs.pred_masks.float()
        masks = masks.reshape(-1, *masks.shape[-2:])
        best = int(scores.argmax())
        found = self._resized(masks[best : best + 1], input_, size).sigmoid()[0]
        grain, sure = _grain(masks, input_, size), min(1.0, float(scores[best]))
        return [Segment(_numbers(found, self._folder), sure, grain=grain)]

    def _by_class(
        self, logits: torch.Tensor, input_: _Input, size: tuple[int, int]
    ) -> list[Segment]:
        """Read one map a class: each pixel is of the class that is likeliest there."""
        import torch

        logits = logits[0].float()
        best = logits.argmax(0)
        segments = []
        for number in np.unique(best.cpu().numpy()).tolist():
            label = self._labels.get(number, "")
            share = float((best == number).float().mean())
            if share < _LEAST_SHARE or label.lower() in ("background", "__background__"):
                continue
            if self._wanted is not None and number not in self._wanted:
                continue
            others = torch.cat([logits[:number], logits[number + 1 :]]).amax(0)
            lead = self._resized((logits[number] - others)[None], input_, size).sigmoid()[0]
            any_class = self._wanted is None
            values = _numbers(lead, self._folder)
            grain = _grain(logits, input_, size)
            segments.append(Segment(values, None, label, True, grain, any_class))
        return segments

    def _by_query(self, outputs: Any, input_: _Input, size: tuple[int, int]) -> list[Segment]:
        """Read queries, each of which may have found an object."""
        masks, scores, numbers = self._queries(outputs)
        _check_numbers(self._folder, scores, masks)  # NaN would be nothing that was found
        solid = masks > 0
        kept: list[int] = []
        for query in scores.argsort(descending=True, stable=True).tolist():
            if float(scores[query]) < _SURE or len(kept) == _MOST_SEGMENTS:
                break
            number = int(numbers[query])
            if self._wanted is not None and number not in self._wanted:
                continue
            if not bool(solid[query].any()):
                continue
            if any(_overlap(solid[query], solid[other]) > _SAME for other in kept):
                continue
            kept.append(query)
        any_class = self._knows and self._wanted is None
        return [
            Segment(
                _numbers(self._resized(masks[q : q + 1], input_, size).sigmoid()[0], self._folder),
                float(scores[q]),
                self._labels.get(int(numbers[q]), "") if self._knows else "",
                grain=_grain(masks, input_, size),
                any_class=any_class,
            )
            for q in kept
        ]

    def _queries(self, outputs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the mask logits of all queries, (n, h, w), how sure each is, and its class."""
        if self._type in _BY_TEXT:
            scores = outputs.pred_logits[0].float().sigmoid().reshape(-1)
            if outputs.presence_logits is not None:
                scores = scores * outputs.presence_logits.float().sigmoid().reshape(-1)[0]
            return outputs.pred_masks[0].float(), scores, scores.long() * 0
        if self._type in ("detr", "rf_detr"):
            masks, classes = outputs.pred_masks[0].float(), outputs.logits[0].float()
        else:
            masks = outputs.masks_queries_logits[0].float()
            classes = outputs.class_queries_logits[0].float()
        if self._type == "rf_detr":
            scores, numbers = classes.sigmoid().max(-1)
            return masks, scores, numbers
        scores, numbers = classes.softmax(-1)[:, :-1].max(-1)  # the last one is: nothing
        if self._type != "detr":
            solid = (masks > 0).float()
            sure = (masks.sigmoid() * solid).sum((1, 2)) / solid.sum((1, 2)).clamp(min=1)
            scores = scores * sure
        return masks, scores, numbers


def _kind_of(folder: ModelFolder, config: Mapping[str, Any], model_type: str) -> str:
    if model_type == "vitmatte":
        raise folder.fault(
            " is a matting network, which must be told where the object is; give it with "
            "--matting, beside a model that finds objects."
        )
    kind = _KINDS.get(model_type)
    classes = config.get("architectures")
    named = str(classes[0]) if isinstance(classes, Sequence) and classes else ""
    if kind == _MATTING and named.endswith("ForSemanticSegmentation"):
        return _SEMANTIC
    of_other = re.search(r"For(ImageClassification|DepthEstimation|ObjectDetection)\b", named)
    if kind is None or of_other:
        what = f"type {model_type!r}" + (f" ({printable(named)})" if of_other else "")
        raise folder.fault(f" is of {what}, which finds no masks of objects; use {_TYPES}.")
    return kind


def _point(points: Any) -> dict[str, Any]:
    import torch

    return {
        "input_points": torch.tensor(points),
        "input_labels": torch.ones((1, 1, 1), dtype=torch.long),
    }


def _grain(masks: torch.Tensor, input_: _Input, size: tuple[int, int]) -> float:
    """Return how many px of the small picture are one of a network's masks."""
    of_input = input_.values.shape[-1] / masks.shape[-1]
    return of_input * size[0] / input_.width


def _overlap(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first & second).sum()) / max(1.0, float((first | second).sum()))


def _numbers(values: torch.Tensor, folder: ModelFolder) -> Floats:
    _check_numbers(folder, values)
    found: Floats = values.cpu().numpy().astype(np.float32)
    return found


def _check_numbers(folder: ModelFolder, *values: torch.Tensor) -> None:
    if not all(bool(some.isfinite().all()) for some in values):
        raise folder.fault(" gives NaN or infinity; the training that made it may have diverged.")


class Matter:
    """A matting network that is told where the object is, ready to run.

    Raises:
        CutoutModelError: it cannot be loaded, or is none of that kind.
    """

    def __init__(self, folder: ModelFolder, device: Device) -> None:
        _, model_type = folder.config()
        if model_type != "vitmatte":
            raise folder.fault(
                f" is of type {model_type!r}, which refines no edges; use ViTMatte, such as "
                "hustvl/vitmatte-small-composition-1k."
            )
        self._run, self._folder = _Runner(folder, _MATTING, device), folder

    def __call__(self, seen: Pixels, trimap: Pixels) -> Floats:
        """Return alpha (h, w), 0 to 1, of a picture with a trimap of 0, 128 and 255."""
        import torch

        height, width = trimap.shape
        known = torch.from_numpy(np.array(trimap))[None, None].float() / 255
        values = torch.cat([self._run.pixels(seen), known], 1)
        padded = torch.nn.functional.pad(values, (0, -width % 32, 0, -height % 32))
        alpha = self._run(pixel_values=padded).alphas[0, 0, :height, :width].float()
        return np.clip(_numbers(alpha, self._folder), 0, 1)
