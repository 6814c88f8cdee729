"""Make prepared sources of pictures: credited, resized, stored as lossless PNG.

A prepared foreground is (h, w, 4) uint8 with straight alpha and zeroed colour where alpha is 0;
a prepared background is (size, size, 3) uint8. Both are kept, so that a published set can be
composed again without the original files.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from PIL.Image import Resampling

from builder.caches import ByteCache
from builder.errors import BadSourcesError, FgbgError
from builder.ladder import N_LEVELS, level_size
from builder.pictures import open_picture
from builder.pinned import SourceEntry
from builder.recipe import Recipe
from builder.sources.backdrop import Backdrop, Given
from builder.sources.companions import (
    Companion,
    companion_of,
    read_depth,
    read_ground,
    read_object_depth,
)
from builder.sources.credits import Credit, read_credits
from builder.sources.decode import Kind, LargeImageError, decode
from builder.sources.fringe import decontaminated
from builder.sources.relief import Relief, StoredRelief
from builder.sources.samples import BadImageError, bands
from builder.sources.scan import SourceFile, ids_of, name_key, same_sources, scan, unread
from builder.untrusted import listed, printable

Pixels = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)
_CACHE_BYTES = 600 * 2**20  # of decoded pictures of a kind: 4,000 backgrounds of 224 px
_ENLARGED = 2  # times, from which a cut-out looks blurred
# Background removers leave specks of hardly any alpha far from the object. Nobody sees alpha up to
# the first number; the box without it counts where it is shorter by more than the second.
_SPECK_ALPHA, _SPECK_SHARE = 10, 0.05
_SPECKS = {
    True: "specks that nobody sees, far around it, are left out",
    False: "specks that nobody sees, far around it, make it smaller than it should be; erase them",
}

_HALO = 30.0  # seen at a glance where an object lies on an even background

_NEEDS_ALPHA = (
    "a foreground needs transparency around the object; run `fgbg cutout PHOTOS CUTOUTS` first, "
    "where PHOTOS is this folder, and build from the folder CUTOUTS"
)


@dataclass(frozen=True)
class Source:
    """A prepared source: its entry in the recipe and its pixels as lossless PNG bytes.

    `levels` are a foreground's smaller sizes, largest first, where the set has any; then, of each
    angle that it is turned to, all of its sizes. `relief` is that of the picture itself and of each
    of them, see `builder.sources.relief`; it is empty where its photograph has no depth. `given` is
    what a person put beside a background, until `backdrop` is made of it or of an estimate.
    """

    entry: SourceEntry
    png: bytes
    levels: tuple[bytes, ...] = ()
    relief: tuple[bytes, ...] = ()
    given: Given = Given()
    backdrop: Backdrop | None = None

    def pixels(self, level: int = 0) -> Pixels:
        """Return the prepared image, (h, w, 3 or 4) uint8, or a smaller size of it."""
        png = self.levels[level - 1] if level else self.png
        return np.asarray(open_picture(png, None, ("PNG",)))

    def relief_at(self, level: int) -> StoredRelief | None:
        """Return the relief of a foreground at a level, (h, w) uint16; None where it has none."""
        if not self.relief:
            return None
        return np.asarray(open_picture(self.relief[level], None, ("PNG",), ("I;16",)), np.uint16)

    @property
    def sizes_sha256(self) -> str:
        """Sha256 (hex) over pixels and relief of a foreground at all of its sizes and angles."""
        digest = hashlib.sha256()
        for level in range(len(self.levels) + 1):
            pixels = self.pixels(level)
            digest.update(repr(pixels.shape).encode() + pixels.tobytes())
        for level in range(len(self.relief)):
            digest.update(np.asarray(self.relief_at(level), "<u2").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class PreparedFolder:
    """The prepared sources of one folder, in id order, what was skipped, and what is doubled."""

    sources: tuple[Source, ...]
    skipped: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]


def demo_folders() -> tuple[Path, Path]:
    """Return the bundled foreground and background folders."""
    demo = Path(__file__).parents[1] / "demo"
    return demo / "foregrounds", demo / "backgrounds"


def prepare(
    folder: Path,
    kind: Kind,
    recipe: Recipe,
    *,
    skip_bad: bool = False,
    known: Mapping[str, Source] | None = None,
    like: Sequence[SourceEntry] = (),
    like_has_ladder: bool = True,
    apart: Collection[Path] = (),
    progress: Callable[[int], object] | None = None,
) -> PreparedFolder:
    """Decode, check and resize every image of a folder.

    What a reader should know of the pictures that are used is logged, a line for each kind.

    Args:
        folder: searched with its subfolders; a `credits.csv` in any of them is read.
        kind: foregrounds are trimmed to their alpha's box and scaled to
            `recipe.foreground_size`; backgrounds become `recipe.size` square.
        recipe: says the sizes and the fit.
        skip_bad: leave files out that cannot be used instead of refusing them.
        known: sources prepared before with the same recipe, by file; used again when the file
            still has the same content.
        like: the sources of a set to be made again, gone on with or extended. Those that are
            found keep their ids, and are made into pixels as they were then.
        like_has_ladder: whether that set has cut-outs at several sizes. Only then do its entries
            say whether their edges were mended.
        apart: folders for something else; their files are left out.
        progress: called with 1 after each file.

    Raises:
        BadSourcesError: files or credits that cannot be used, all of them at once.
        FgbgError: the folder is missing or empty, or nothing usable is left.
    """
    wanted = {entry.file for entry in like}
    found = scan(folder, apart=apart, wanted=wanted)
    files, beside = _without_companions(found.files, wanted, kind)
    for reason, names in _grouped(found.left_out).items():
        _log.info("%s: ignored (%s): %s", _label(folder), reason, listed(names))
    credits = read_credits(folder, found.credits, {file.file for file in found.files})
    before = {entry.sha256 for entry in like if entry.intake == 1}
    unmended = {entry.sha256 for entry in like if like_has_ladder and not entry.halo}
    by_key = {name_key(name): source for name, source in (known or {}).items()}
    credited = {file.file: credits.by_file.get(file.file, Credit()) for file in files}
    heights = {file: credit.height_m for file, credit in credited.items()}
    maker = _Maker(folder, kind, recipe, by_key, before, unmended, beside, wanted, heights)
    results = _made(maker, files, progress)
    named = same_sources(files, like)
    if kind == "foreground":
        credited = {file: _classed(credit, file) for file, credit in credited.items()}
    else:  # what is said of objects and cut-outs means nothing of a background
        credited = {file: Credit(*credit[:3]) for file, credit in credited.items()}
    sources, problems = _entered(results, named, [entry.id for entry in like], credited)
    problems = [*credits.lost, *credits.unused, *problems]
    if credits.lost and skip_bad:  # the others can be left out
        problems = credits.lost
    problems = [(_label(folder, name), reason) for name, reason in problems]
    if problems and (credits.lost or not skip_bad):
        raise BadSourcesError(problems, skippable=not credits.lost)
    if not sources:
        raise FgbgError(f"{folder} holds no {kind} that can be used.\n{BadSourcesError(problems)}")
    _warn(_label(folder), maker.notes, sources)
    if kind == "foreground":
        _say_relief(_label(folder), recipe, sources, beside)
    return PreparedFolder(sources, tuple(problems), duplicates(sources))


def _warn(where: str, notes: Iterable[tuple[str, str]], sources: Iterable[Source]) -> None:
    """Say what a reader should know of the pictures of a folder that are used."""
    for note, names in _grouped(sorted(notes)).items():
        _log.warning("%s: %s: %s", where, note, listed(names))
    if halos := sorted((-s.entry.halo, s.entry.file) for s in sources if s.entry.halo >= _HALO):
        _log.warning(
            "%s: an old background showed at the edge and was taken out as far as it goes; look at "
            "the edges, and cut out again what is not good enough (worst first): %s",
            where,
            listed([name for _, name in halos]),
        )


def _say_relief(
    where: str, recipe: Recipe, sources: Sequence[Source], beside: Collection[str]
) -> None:
    """Say where depth beside foregrounds is of no use, or is missed."""
    if beside and not recipe.has_relief:
        names = listed([printable(f"{stem}.depth.png") for stem in sorted(beside)])
        _log.info("%s: ignored (depth of objects, for relief photo alone): %s", where, names)
    elif recipe.has_relief and not any(source.relief for source in sources):
        _log.warning(
            "%s: relief is photo, and no foreground has NAME.depth.png beside it, so that all of "
            "them are boards",
            where,
        )


def _made(
    maker: _Maker, files: Sequence[SourceFile], progress: Callable[[int], object] | None
) -> dict[str, Source | BadImageError]:
    """Prepare files, at most four at a time, so that memory does not grow with the cores."""

    def one(file: SourceFile, alone: bool = False) -> Source | BadImageError:
        result: Source | BadImageError
        try:
            result = maker.source(file, alone)
        except BadImageError as error:
            # Not itself: its traceback keeps the decoded picture.
            result = type(error)(str(error))
        if progress and not isinstance(result, LargeImageError):
            progress(1)
        return result

    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        # Metadata that Pillow only complains about does not hurt pixels; and its bomb warning
        # starts at half of the limit that is enforced. Set here: filters are not per thread.
        warnings.simplefilter("ignore")
        results = list(pool.map(one, files))
        # In one thread, or the C library would keep memory for each that had a large one.
        return {
            file.file: one(file, alone=True) if isinstance(result, LargeImageError) else result
            for file, result in zip(files, results, strict=True)
        }


def _entered(
    results: Mapping[str, Source | BadImageError],
    named: Mapping[str, SourceEntry],
    taken: Collection[str],
    credits: Mapping[str, Credit],
) -> tuple[tuple[Source, ...], list[tuple[str, str]]]:
    """Return the sources in id order, each under its id and credited; what cannot be used.

    Args:
        named: what an earlier set calls those files that are sources of it.
        taken: the ids of that set.
    """
    # Of pictures alone: a caption beside its picture has the same name and is bad anyway.
    pictures = [file for file, result in results.items() if isinstance(result, Source)]
    ids, problems = ids_of([file for file in pictures if file not in named], taken)
    clashing, sources = {file for file, _ in problems}, []
    for file, result in results.items():
        if isinstance(result, BadImageError):
            problems.append((file, str(result)))
        elif file not in clashing:
            entry, was = result.entry, named.get(file)
            if was is None:
                entry = replace(entry, id=ids[file])
            else:
                same_path = name_key(was.file) == name_key(entry.file)
                entry = replace(entry, id=was.id, file=was.file if same_path else entry.file)
            credit = credits.get(file, Credit())._asdict()
            sources.append(replace(result, entry=replace(entry, **credit)))
    return tuple(sorted(sources, key=lambda source: source.entry.id)), problems


def _label(folder: Path, name: str = "") -> str:
    # Of "." the name is empty, and the label would look like a path from the root.
    return printable("/".join(filter(None, (folder.absolute().name, name))))


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the names that each reason is given for."""
    groups = defaultdict(list)
    for name, reason in pairs:
        groups[reason].append(name)
    return groups


def contents(sources: Sequence[Source]) -> tuple[str, ...]:
    """Return what tells sources apart: of those that became the same pixels, one sha256 for all.

    A picture that was saved again, in another format, with another compression or without its
    metadata, is another file and yet the same source.
    """
    first: dict[bytes, str] = {}
    for source in sources:
        first[source.png] = min(source.entry.sha256, first.get(source.png, source.entry.sha256))
    return tuple(first[source.png] for source in sources)


def duplicates(sources: Sequence[Source]) -> tuple[tuple[str, ...], ...]:
    """Return the ids of sources of equal content, in groups."""
    groups = defaultdict(list)
    for source, content in zip(sources, contents(sources), strict=True):
        groups[content].append(source.entry.id)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


class _Maker:
    """Makes prepared sources of the files of one folder; `notes` gathers what is to be said.

    Args:
        known: sources prepared before, by the key of their file's name.
        before: the sha256 of files to be decoded as version 0.1.0 did.
        unmended: the sha256 of cut-outs whose edges stay as they are.
        beside: companions of files, by the file's name without extension.
        wanted: names of files that are pictures, whatever they are called.
        heights: true heights of what is in files, in m, 0 = unknown.
    """

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        recipe: Recipe,
        known: Mapping[str, Source],
        before: Collection[str],
        unmended: Collection[str],
        beside: Mapping[str, Mapping[Companion, Path]],
        wanted: Collection[str],
        heights: Mapping[str, float],
    ) -> None:
        self._root, self._kind, self._recipe = folder.resolve(), kind, recipe
        self._known, self._before, self._beside = known, before, beside
        self._unmended, self._wanted, self._heights = unmended, wanted, heights
        self.notes: list[tuple[str, str]] = []

    def source(self, file: SourceFile, alone: bool) -> Source:
        """Return the prepared source of a file.

        Raises:
            BadImageError: it cannot be used.
        """
        if reason := unread(file.path, self._root):
            raise BadImageError(reason)
        if not file.sha256:
            raise BadImageError("cannot be read; check that it is there and that you may read it")
        if self._kind == "background" and file.file not in self._wanted:
            self._refuse_orphan(file.path.name)
        name = printable(file.file)
        old = self._known.get(name_key(name))
        beside = self._beside.get(str(PurePosixPath(file.file).with_suffix("")), {})
        if old and old.entry.sha256 == file.sha256 and not beside and not old.relief:
            measured = old.backdrop is not None and old.backdrop.depth_by == "measured"
            return replace(old, backdrop=None) if measured else old
        decoded = decode(file.path, self._kind, alone=alone, as_before=file.sha256 in self._before)
        source_width, source_height = decoded.image.size
        levels: tuple[bytes, ...] = ()
        relief: tuple[bytes, ...] = ()
        given, halo = Given(), 0.0
        if self._kind == "foreground":
            prepared, levels, relief, halo = self._sizes(file, name, decoded.image, beside)
        else:
            prepared = _background(decoded.image, self._recipe)
            given = self._given(beside, decoded.image.size)
        self.notes += [(name, note) for note in decoded.notes]
        entry = SourceEntry(
            id=printable(Path(file.file).stem),
            file=name,
            sha256=file.sha256,
            width=prepared.width,
            height=prepared.height,
            source_width=source_width,
            source_height=source_height,
            intake=decoded.intake,
            halo=halo,
            has_relief=bool(relief),
        )
        made = Source(entry, _png(prepared), levels, relief, given)
        if self._kind == "foreground" and self._recipe.has_ladder:
            entry = replace(entry, prepared_sha256=made.sizes_sha256)
        return replace(made, entry=entry)

    def _sizes(
        self, file: SourceFile, name: str, image: Image.Image, beside: Mapping[Companion, Path]
    ) -> tuple[Image.Image, tuple[bytes, ...], tuple[bytes, ...], float]:
        """Return a foreground at its largest size, its others, the relief of all, and its halo."""
        recipe = self._recipe
        try:
            box = _box_of(image)
        except BadImageError:
            self._refuse_orphan(file.path.name)
            raise
        if inner := _box_without_specks(image.crop(box)):
            self.notes.append((name, _SPECKS[recipe.has_ladder]))
            # Pairs are what they were in version 0.1.0, to which a speck was the object's end.
            if recipe.has_ladder:
                left, top = box[:2]
                box = left + inner[0], top + inner[1], left + inner[2], top + inner[3]
        whole, halo = image.crop(box), 0.0
        if recipe.has_ladder and file.sha256 not in self._unmended:
            whole, halo = decontaminated(whole)
        prepared, scale = _foreground(whole, recipe.largest_side)
        if scale > _ENLARGED:
            note = f"enlarged more than {_ENLARGED}x, to {recipe.largest_side} px"
            self.notes.append((name, note))
        if not recipe.has_ladder:
            return prepared, (), (), halo
        relief = None
        if recipe.has_relief and "depth" in beside:
            with self._reading(beside["depth"]) as path:
                seen = read_object_depth(path, image.size).cropped(box)
                height_m = self._heights.get(file.file, 0.0)
                relief = Relief.of(np.asarray(whole)[..., 3], seen, height_m)
        return prepared, *_levels(whole, prepared, recipe.turns_deg, relief), halo

    def _refuse_orphan(self, name: str) -> None:
        if found := companion_of(name, self._kind):
            picture, what = found
            raise BadImageError(
                f"is named as the {what} of a {self._kind} {printable(picture)}, which is not "
                "there; rename one of them"
            )

    @contextmanager
    def _reading(self, path: Path) -> Iterator[Path]:
        """Name a companion in what is wrong with it.

        Raises:
            BadImageError: from within the block too.
        """
        name = printable(path.name)
        if reason := unread(path, self._root):
            raise BadImageError(f"cannot be used: {name} {reason}")
        try:
            yield path
        except BadImageError as error:
            raise BadImageError(f"has {name} beside it, which {error}") from None

    def _given(self, beside: Mapping[Companion, Path], shape: tuple[int, int]) -> Given:
        """Read what lies beside a background, if the set has a use for it."""
        if not self._recipe.needs_background_depth:
            return Given()
        given: dict[str, Any] = {}
        for what, path in beside.items():
            read = read_depth if what == "depth" else read_ground
            with self._reading(path):
                given[what] = read(path, shape, self._recipe)
        return Given(**given)


def _without_companions(
    files: tuple[SourceFile, ...], wanted: Collection[str], kind: Kind
) -> tuple[tuple[SourceFile, ...], dict[str, dict[Companion, Path]]]:
    """Take what lies beside pictures, their depth and ground, out of a folder's files.

    Returns:
        The pictures; and by the name of a picture without extension what lies beside it.
    """
    stems = {
        str(PurePosixPath(f.file).with_suffix("")) for f in files if not companion_of(f.file, kind)
    }
    pictures, beside = [], defaultdict[str, dict[Companion, Path]](dict)
    for file in files:
        found = companion_of(file.file, kind)
        if found and found[0] in stems and file.file not in wanted:
            beside[found[0]][found[1]] = file.path
        else:
            pictures.append(file)
    return tuple(pictures), beside


def _classed(credit: Credit, file: str) -> Credit:
    """Return the credit of a foreground with its class: as stated, or the first folder's name."""
    parts = PurePosixPath(file).parts
    folder = printable(parts[0]) if len(parts) > 1 else ""
    return credit._replace(category=credit.category or folder)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6, icc_profile=None)
    return buffer.getvalue()


def _levels(
    whole: Image.Image,
    largest: Image.Image,
    turns_deg: Sequence[float],
    relief: Relief | None,
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Return all sizes of a trimmed cut-out but the largest, at each angle as far as it is solid.

    Args:
        whole: as large as its file.
        largest: it at its largest size.
        relief: of `whole`; None where it has none.

    Returns:
        The sizes; and the relief of all of them and of the largest, none without `relief`.
    """
    turns: list[list[bytes]] = []
    reliefs: list[list[bytes]] = []
    for turn in turns_deg:
        turned, size, own = whole, largest.size, relief
        if turn:
            # Weighed by alpha, or the colour of transparent pixels would bleed in.
            turned = whole.convert("RGBa").rotate(turn, Resampling.BICUBIC, expand=True)
            turned = turned.convert("RGBA")
            box = _box_of(turned)
            turned = turned.crop(box)
            own = relief and relief.turned(turn, box)
            scale = max(largest.size) / max(whole.size)
            size = max(1, round(turned.width * scale)), max(1, round(turned.height * scale))
        steps = (_sized(turned, level_size(*size, step)) for step in range(N_LEVELS))
        solid = list(takewhile(_is_solid, steps))
        turns.append([_png(step) for step in solid])
        if own:
            reliefs.append([own.at(step, _filter(turned.size, step.size)) for step in solid])
    n_steps = min(map(len, turns))
    if not n_steps:
        raise BadImageError("has no pixel that is at least half opaque when it is turned")
    levels, of_relief = (
        tuple(png for turn in some for png in turn[:n_steps]) for some in (turns, reliefs)
    )
    return levels[1:], of_relief


def _box_of(image: Image.Image) -> tuple[int, int, int, int]:
    """Return the box of a cut-out without the empty rows and columns around it."""
    if image.mode != "RGBA":
        raise BadImageError(f"has no alpha channel; {_NEEDS_ALPHA}")
    alpha = image.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == 255:
        raise BadImageError(f"is wholly opaque; {_NEEDS_ALPHA}")
    if highest == 0:
        raise BadImageError(f"is wholly transparent; {_NEEDS_ALPHA}")
    box = alpha.getbbox()
    assert box is not None
    return box


def _box_without_specks(image: Image.Image) -> tuple[int, int, int, int] | None:
    """Return the box of a trimmed cut-out without specks, where these make it much larger."""
    box = (
        image.getchannel("A").point([0] * (_SPECK_ALPHA + 1) + [1] * (255 - _SPECK_ALPHA)).getbbox()
    )
    if box is None or max(box[2] - box[0], box[3] - box[1]) > (1 - _SPECK_SHARE) * max(image.size):
        return None
    return box


def _foreground(image: Image.Image, longer_side: int) -> tuple[Image.Image, float]:
    """Return a trimmed cut-out at its largest size, and by what it was scaled."""
    scale = longer_side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    sized = _sized(image, size)
    if not _is_solid(sized):
        raise BadImageError(f"has no pixel that is at least half opaque at {size[0]}x{size[1]} px")
    return sized, scale


def _sized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a trimmed cut-out at a size, colour 0 where it is transparent."""
    # Pillow weighs colours of RGBA by alpha while it resizes, so nothing bleeds in.
    pixels = np.array(image.resize(size, _filter(image.size, size)))
    pixels[pixels[..., 3] == 0] = 0
    return Image.fromarray(pixels)


def _filter(size: tuple[int, int], wanted: tuple[int, int]) -> Resampling:
    """Return what makes one size of another."""
    # Neither overshoots: Lanczos and bicubic leave a halo of faint alpha around the object.
    return Resampling.HAMMING if max(wanted) < max(size) else Resampling.BILINEAR


def _is_solid(image: Image.Image) -> bool:
    _, most = image.getchannel("A").getextrema()
    return int(most) >= 128  # type: ignore[arg-type]


def _background(image: Image.Image, recipe: Recipe) -> Image.Image:
    if image.mode == "RGBA":  # what lies behind a transparent background is taken as white
        flat = Image.new("RGB", image.size)
        for band in bands(image):
            part = image.crop(band)
            white = Image.new("RGBA", part.size, "white")
            flat.paste(Image.alpha_composite(white, part).convert("RGB"), band)
        image = flat
    size = (recipe.size, recipe.size)
    if recipe.background_fit == "stretch":
        return image.resize(size, Resampling.LANCZOS)
    return ImageOps.fit(image, size, Resampling.LANCZOS)


def _pixel_cache(make: Callable[[int], Pixels]) -> ByteCache[Pixels]:
    return ByteCache(make, lambda pixels: pixels.nbytes, _CACHE_BYTES)


class SourceBank:
    """Prepared sources by index, decoded when first used; the last used stay decoded.

    Args:
        foregrounds, backgrounds: in the order of the pinned recipe.
    """

    def __init__(self, foregrounds: Sequence[Source], backgrounds: Sequence[Source]) -> None:
        self.foreground = _pixel_cache(lambda index: foregrounds[index].pixels())
        self._foregrounds, self._backgrounds = foregrounds, backgrounds
        self.background = _pixel_cache(lambda index: backgrounds[index].pixels())

    def level(self, foreground: int, level: int) -> Pixels:
        """Return a foreground at a level of its ladder, (h, w, 4) uint8."""
        return self._foregrounds[foreground].pixels(level)

    def relief(self, foreground: int, level: int) -> StoredRelief | None:
        """Return the relief of a foreground at a level, (h, w) uint16; None where it has none."""
        return self._foregrounds[foreground].relief_at(level)

    def n_levels(self, foreground: int) -> int:
        """Return how many sizes a foreground has."""
        return 1 + len(self._foregrounds[foreground].levels)

    def backdrop(self, background: int) -> Backdrop | None:
        """Return the depth and the ground of a background, where the set has them."""
        return self._backgrounds[background].backdrop
