"""Make records: the one place where composition meets depth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from builder.caches import ByteCache
from builder.pinned import NO_CATEGORY, PinnedRecipe
from builder.record.canvas import Canvas
from builder.record.compose import Seen, compose
from builder.record.composition import Corners, Cutout, Pixels, cut_out, paste, pixel_hash
from builder.record.looks import Dressed, Look, Looks, colour_values, described
from builder.record.plan import Plan, random_words
from builder.record.scene import Rules, n_words, place_objects
from builder.record.stage import Stage, focal_of
from builder.schema import MASK_ON, OBJECTS, object_fields
from builder.sources import SourceBank

_CACHE_BYTES = 300 * 2**20  # of cut-outs ready to be pasted, and of canvases


class Estimator(Protocol):
    """Gives the depth of composites, so many at a time; see `builder.depth.DepthEstimator`."""

    @property
    def batch_size(self) -> int:
        """How many composites it takes at once."""

    def __call__(self, images: Pixels) -> npt.NDArray[np.uint16]:
        """Return the depth (B, H, W) of composites (B, H, W, 3), in stored units."""


@dataclass(frozen=True)
class Record:
    """A record before encoding: composite (H, W, 3) uint8, mask (H, W) uint8 in {0, 255}, depth.

    `depth` is (H, W) uint16 in the stored unit (mm for a metric model, 0 = unknown), or None.
    """

    record_id: int
    fg_bg: Pixels
    mask: Pixels
    depth: npt.NDArray[np.uint16] | None
    background_id: str
    foreground_id: str
    flipped: bool
    bbox: tuple[int, int, int, int]
    coverage: float
    scene: Scene | None = None
    # Of a composite that is its background's outside of one box: that, and the box.
    canvas: Canvas | None = None
    changed: Corners = (0, 0, 0, 0)

    @property
    def pixel_hash(self) -> str:
        """XXH3-128 (hex) of the pixels: composite and mask, and what else is made by integers."""
        if self.scene is None:
            return pixel_hash(self.fg_bg, self.mask)
        depth = self.depth if self.scene.has_exact_depth else None
        return pixel_hash(self.fg_bg, self.mask, self.scene.instances, depth)

    def described(self) -> dict[str, Any]:
        """Return what a row says of a record beside its id, pictures and hash."""
        described: dict[str, Any] = {
            "background_id": self.background_id,
            "foreground_id": self.foreground_id,
            "flipped": self.flipped,
            "bbox": list(self.bbox),
            "coverage": float(np.float32(self.coverage)),
        }
        if self.scene is not None:
            if self.scene.objects is not None:
                described["objects"] = self.scene.objects
            described.update(self.scene.look)
        return described


@dataclass(frozen=True)
class Scene:
    """What a composed record holds beside a record's own columns.

    `instances` is (H, W) uint8, 0 = background, k = the k-th object; `objects` the column of that
    name, a list a field, None where the layout has one object; `look` what its columns say of how
    it looks; `left_out` how many objects were left out because too little of them would have been
    seen.
    """

    instances: Pixels
    objects: dict[str, list[Any]] | None
    look: dict[str, Any]
    has_exact_depth: bool
    left_out: int


class Renderer:
    """Makes records of a plan from prepared sources.

    Args:
        plan: says what each record combines and where it is placed.
        bank: the prepared sources.
        estimator: gives the depth; None leaves it out.
    """

    def __init__(self, plan: Plan, bank: SourceBank, estimator: Estimator | None) -> None:
        self._plan, self._bank = plan, bank
        recipe = plan.pinned.recipe
        self._composes_depth = recipe.composes_depth
        self._estimator = None if self._composes_depth else estimator
        self._canvas = ByteCache(self._make_canvas, lambda canvas: canvas.size_bytes, _CACHE_BYTES)
        self._cutout = ByteCache(self._cut_out, lambda cutout: cutout.size_bytes, _CACHE_BYTES)
        self._scenes: tuple[Rules, Stage, Looks] | None = None
        if recipe.is_composed:
            stage = Stage(plan.pinned, bank)
            self._scenes = rules_of(plan.pinned), stage, Looks(plan.pinned, bank, stage)

    def _make_canvas(self, background: int, mirrored: bool) -> Canvas:
        pixels = self._bank.background(background)
        return Canvas(pixels[:, ::-1] if mirrored else pixels, self._plan.pinned.recipe)

    def _cut_out(self, foreground: int, flipped: bool) -> Cutout:
        return cut_out(self._bank.foreground(foreground), flipped)

    def compose(self, record_id: int, epoch: int = 0) -> Record:
        """Make one record, placed as in the stored set or, in epoch 1, 2, ..., anew.

        It has depth where that is composed.

        Raises:
            IndexError: there is no such record.
        """
        if self._scenes is not None:
            return self._scene(*self._scenes, record_id, epoch)
        plan = self._plan
        what = plan.combination(record_id)
        left, top = plan.placement(record_id, what.foreground, epoch)
        cutout = self._cutout(what.foreground, what.flipped)
        composite = paste(self._bank.background(what.background), cutout, left, top)
        height, width = cutout.mask.shape
        return Record(
            record_id=record_id,
            fg_bg=composite.fg_bg,
            mask=composite.mask,
            depth=None,
            background_id=plan.pinned.backgrounds[what.background].id,
            foreground_id=plan.pinned.foregrounds[what.foreground].id,
            flipped=what.flipped,
            bbox=composite.bbox,
            coverage=composite.coverage,
            canvas=self._canvas(what.background, False),
            changed=(left, top, left + width, top + height),
        )

    def _scene(
        self, rules: Rules, stage: Stage, looks: Looks, record_id: int, epoch: int
    ) -> Record:
        plan = self._plan
        recipe, what = plan.pinned.recipe, plan.combination(record_id)
        own = None if recipe.balance == "category" else (what.foreground, what.flipped)
        groups = plan.companions(record_id, what.foreground)
        words = random_words(recipe.seed, what.layout_id, epoch, n_words(rules))
        look = Look.of(recipe, what.sibling, words)
        placed = place_objects(
            *(rules, stage, what.background, own, groups, words),
            n_distractors=look.n_distractors,
            mirrored=look.mirrored,
        )
        dressed = [looks.dressed(one, look, what.background) for one in placed]
        cutouts = {one: made.cutout for one, made in zip(placed, dressed, strict=True)}
        made = compose(
            self._bank.background(what.background),
            stage.depth(what.background),
            stage.tilt(what.background),
            placed,
            cutouts.__getitem__,
            min_visible=round(1000 * recipe.min_visible),
            hides=stage.hides(what.background),
            inverse=stage.inverse,
            shadow=lambda one: looks.shadow(one, look),
            relief=stage.relief,
            mirrored=look.mirrored,
        )
        first = made.objects[0]
        objects = (
            columns_of(plan.pinned, stage, made.objects, dressed)
            if recipe.layout == "scenes"
            else None
        )
        fg_bg = looks.finished(made.fg_bg, look)
        is_as_pasted = fg_bg is made.fg_bg
        return Record(
            record_id=record_id,
            fg_bg=fg_bg,
            mask=(made.instances > 0) * np.uint8(MASK_ON),
            depth=made.depth if self._composes_depth else None,
            background_id=plan.pinned.backgrounds[what.background].id,
            foreground_id=plan.pinned.foregrounds[first.placed.foreground].id,
            flipped=first.placed.flipped,
            bbox=first.bbox,
            coverage=first.area / made.instances.size,
            scene=Scene(
                made.instances,
                objects,
                described(plan.pinned, look, what.layout_id, made.distractors),
                self._composes_depth,
                made.left_out,
            ),
            canvas=self._canvas(what.background, look.mirrored) if is_as_pasted else None,
            changed=made.changed,
        )

    def composites(self, split: str, start: int, stop: int, epoch: int = 0) -> Iterator[Record]:
        """Make the records at positions [start, stop) of a split, in order, without a network."""
        for record_id in self._plan.splits[split].record_ids(start, stop).tolist():
            yield self.compose(record_id, epoch)

    def records(self, split: str, start: int, stop: int, epoch: int = 0) -> Iterator[Record]:
        """Make the records at positions [start, stop) of a split, in order.

        The next batch is composed in a thread while the model works on this one.
        """
        if self._estimator is None or start == stop:  # a stream may resume at the end of a unit
            yield from self.composites(split, start, stop, epoch)
            return
        size = self._estimator.batch_size
        batches = [(at, min(at + size, stop)) for at in range(start, stop, size)]
        with ThreadPoolExecutor(1, thread_name_prefix="compose") as pool:

            def compose(start: int, stop: int) -> Future[list[Record]]:
                return pool.submit(lambda: list(self.composites(split, start, stop, epoch)))

            following = compose(*batches[0])
            for number in range(len(batches)):
                batch = following.result()
                if number + 1 < len(batches):
                    following = compose(*batches[number + 1])
                depths = self._estimator(np.stack([record.fg_bg for record in batch]))
                for record, depth in zip(batch, depths, strict=True):
                    yield replace(record, depth=depth)


def rules_of(pinned: PinnedRecipe) -> Rules:
    """Return how a recipe places objects, in whole numbers."""
    recipe = pinned.recipe
    return Rules(
        size=recipe.size,
        objects=recipe.n_objects,
        sides=recipe.foreground_sides,
        on_ground=recipe.placement == "ground",
        flip=recipe.flip,
        jitter=round(64 * recipe.scale_jitter),
        truncation=round(1000 * recipe.truncation),
        max_overlap=round(1000 * recipe.max_overlap),
        focal=focal_of(recipe.size, recipe.fov_deg),
        n_turns=len(recipe.turns_deg),
        distractors=recipe.n_distractors,
    )


def columns_of(
    pinned: PinnedRecipe, stage: Stage, objects: Sequence[Seen], dressed: Sequence[Dressed]
) -> dict[str, list[Any]]:
    """Return the column `objects` of a record: a list for each of its fields."""
    categories, fields = pinned.categories, object_fields(pinned.recipe)
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    for number, seen in enumerate(objects, start=1):
        one, entry = seen.placed, pinned.foregrounds[seen.placed.foreground]
        outside = 1 - seen.n_inside / seen.area_amodal
        step, turn_deg = stage.step_and_turn(one.foreground, one.level)
        values = (
            *(number, categories.index(entry.category or NO_CATEGORY), list(seen.bbox), seen.area),
            *(entry.id, one.flipped, step, float(np.float32(turn_deg)), one.left_px, one.top_px),
            *(*one.foot, one.depth),
            *(one.stance, float(np.float32(seen.area / seen.n_inside))),
            *(float(np.float32(outside)), list(seen.bbox_amodal), seen.area_amodal),
        )
        look = dressed[seen.index]
        said = dict(zip(OBJECTS, values, strict=True)) | {
            "colour": colour_values(look.colour),
            "blur_px": look.blur_px,
            "noise": look.noise,
        }
        for name in fields:
            columns[name].append(said[name])
    return columns
