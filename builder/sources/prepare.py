"""Find, check, credit, hash, decode and resize the source images.

A prepared foreground is (h, w, 4) uint8 with straight alpha and zeroed colour where alpha is 0;
a prepared background is (size, size, 3) uint8. Both are kept as lossless PNG, so that a
published set can be composed again without the original files.
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.Image import Resampling

from builder.errors import BadSourcesError, FgbgError
from builder.files import read_text, sha256_file
from builder.pinned import SourceEntry, credit_fault
from builder.recipe import Recipe
from builder.remote import MAX_IMAGE_BYTES
from builder.untrusted import printable, shown

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
CREDITS_FILE = "credits.csv"
CREDIT_COLUMNS = ("file", "author", "license", "url")

Kind = Literal["foreground", "background"]
Pixels = npt.NDArray[np.uint8]

_MAX_PIXELS = 178_956_970  # Pillow's own limit: 0.7 GB as RGBA
# Pictures above this (134 MB as RGBA) are decoded one at a time, and not from a file that is all
# but empty: WebP holds 169 million equal pixels in 34 bytes, and takes 2.7 GB to decode them.
_LARGE_PIXELS = 2**25
_MAX_PIXELS_PER_BYTE = 1000
_BAND_ROWS = 256  # large pictures are changed a band at a time, so that no second one is needed
# An encoder makes about ten; each takes time for the whole picture, and may be 30 bytes.
_MAX_JPEG_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_MAX_CREDITS_BYTES = 16 * 2**20
_MAX_CREDIT_PROBLEMS = 20

_NEEDS_ALPHA = (
    "a foreground needs transparency around the object; cut the object out and save it as PNG or "
    "WebP with an alpha channel (for example with GIMP: Layer > Transparency > Add Alpha Channel, "
    "or with a background remover such as rembg)"
)


class _BadImage(Exception):
    """Why one file cannot be used; told together with all others as BadSourcesError."""


class _LargeImage(_BadImage):
    """Not bad yet: a picture that is to be decoded while no other is."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source folder: its path inside the folder and its content's sha256 (hex)."""

    path: Path
    file: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """A prepared source: its entry in the recipe and its pixels as lossless PNG bytes."""

    entry: SourceEntry
    png: bytes

    def pixels(self) -> Pixels:
        """Return the prepared image, (h, w, 3 or 4) uint8."""
        with Image.open(io.BytesIO(self.png), formats=("PNG",)) as image:
            return np.asarray(image)


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


def scan(folder: Path) -> list[SourceFile]:
    """List and hash the files of a source folder and its subfolders, in path order.

    Hidden files and `credits.csv` are left out, links to folders are not followed. Files are told
    apart by content only. The sha256 of what is not to be read, or cannot be, is empty.

    Raises:
        FgbgError: the folder is missing or holds no file.
    """
    if not folder.is_dir():
        raise FgbgError(f"{folder} is not a folder; give the folder that holds the images.")
    paths = sorted(path for path in _entries(folder) if path.name != CREDITS_FILE)
    if not paths:
        raise FgbgError(f"{folder} holds no image; put the images into it.")
    root = folder.resolve()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashes = pool.map(lambda path: _sha256_or_empty(path, root), paths)
        return [
            SourceFile(path, path.relative_to(folder).as_posix(), sha256)
            for path, sha256 in zip(paths, hashes, strict=True)
        ]


def _entries(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is not hidden and not a folder, and folders shut to us."""
    shut: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=lambda e: shut.append(Path(e.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(where, name).is_symlink()]
        yield from (Path(where, n) for n in files + links if not n.startswith("."))
    yield from (path for path in shut if path != folder)


def _unread(path: Path, root: Path) -> str | None:
    """Say why a file must not be read at all, before it is opened; `root` is the real folder."""
    try:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            return "is a link that leads out of the folder; copy the file instead"
        status = path.stat()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return "cannot be read; check that it is there and that you may read it"
    if stat.S_ISDIR(status.st_mode) and path.is_symlink():
        return "is a link to a folder; copy the folder instead"
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return "is no regular file but a pipe, socket or device; remove it"
    if status.st_size > MAX_IMAGE_BYTES:
        return f"has {status.st_size:,} bytes; too large to be an image"
    return None


def _sha256_or_empty(path: Path, root: Path) -> str:
    try:
        return "" if _unread(path, root) else sha256_file(path)
    except OSError:
        return ""  # unreadable: said with the others when it is decoded


def prepare(
    folder: Path,
    kind: Kind,
    recipe: Recipe,
    *,
    skip_bad: bool = False,
    known: dict[str, Source] | None = None,
    progress: Callable[[int], object] | None = None,
) -> PreparedFolder:
    """Decode, check and resize every image of a folder.

    Args:
        folder: searched with its subfolders; an optional `credits.csv` in it is read.
        kind: foregrounds are trimmed to their alpha's box and scaled to
            `recipe.foreground_size`; backgrounds become `recipe.size` square.
        recipe: says the sizes and the fit.
        skip_bad: leave files out that cannot be used instead of refusing them.
        known: sources prepared before with the same recipe, by file; used again when the file
            still has the same content.
        progress: called with 1 after each file.

    Raises:
        BadSourcesError: files or credits that cannot be used, all of them at once.
        FgbgError: the folder is missing or empty, or nothing usable is left.
    """
    files = scan(folder)
    credits, problems = _read_credits(folder, {f.file for f in files})

    def one(file: SourceFile, alone: bool = False) -> Source | _BadImage:
        result: Source | _BadImage
        try:
            result = _prepare_file(folder, file, kind, recipe, known or {}, alone)
        except _BadImage as error:
            # Not itself: its traceback keeps the decoded picture.
            result = type(error)(str(error))
        if progress and not isinstance(result, _LargeImage):
            progress(1)
        return result

    # At most four decoded pictures at a time, so memory does not grow with the cores.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        # Metadata that Pillow only complains about does not hurt pixels; and its bomb warning
        # starts at half of the limit that is enforced. Set here: filters are not per thread.
        warnings.simplefilter("ignore")
        results = list(pool.map(one, files))
        # In one thread, or the C library would keep memory for each that had a large one.
        results = [
            one(file, alone=True) if isinstance(result, _LargeImage) else result
            for file, result in zip(files, results, strict=True)
        ]
    # Told of pictures alone: a caption beside its picture has the same name and is bad anyway.
    pictures = [f for f, r in zip(files, results, strict=True) if isinstance(r, Source)]
    clashes = _clashes(folder, pictures)
    clashing = {name for name, _ in clashes}
    problems += clashes
    sources = []
    for file, result in zip(files, results, strict=True):
        if isinstance(result, _BadImage):
            problems.append((_label(folder, file), str(result)))
        elif _label(folder, file) not in clashing:
            author, license, url = credits.get(file.file, ("", "", ""))
            entry = replace(result.entry, author=author, license=license, url=url)
            sources.append(replace(result, entry=entry))
    if problems and not skip_bad:
        raise BadSourcesError(problems)
    if not sources:
        raise FgbgError(f"{folder} holds no {kind} that can be used.\n{BadSourcesError(problems)}")
    sources.sort(key=lambda source: source.entry.id)
    return PreparedFolder(tuple(sources), tuple(problems), duplicates(sources))


def _label(folder: Path, file: SourceFile) -> str:
    return _inside(folder, file.file)


def _inside(folder: Path, name: str) -> str:
    # Of "." the name is empty, and the label would look like a path from the root.
    return printable(f"{folder.absolute().name}/{name}")


def _clashes(folder: Path, files: Sequence[SourceFile]) -> list[tuple[str, str]]:
    """Every file whose id another file has too; case alone does not tell two files apart."""
    by_id = defaultdict(list)
    for file in files:
        by_id[printable(Path(file.file).stem).casefold()].append(file)
    problems = []
    for same in by_id.values():
        for file in same if len(same) > 1 else ():
            others = [printable(other.file) for other in same if other is not file]
            listed = ", ".join(others[:3]) + (" ..." if len(others) > 3 else "")
            reason = f"has the same name (without extension) as {listed}; rename one of them"
            problems.append((_label(folder, file), reason))
    return problems


def duplicates(sources: Sequence[Source]) -> tuple[tuple[str, ...], ...]:
    """Return the ids of sources of equal content, in groups."""
    groups = defaultdict(list)
    for source in sources:
        groups[source.entry.sha256].append(source.entry.id)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _read_credits(
    folder: Path, files: set[str]
) -> tuple[dict[str, tuple[str, str, str]], list[tuple[str, str]]]:
    """Read `credits.csv`: file -> (author, license, url); and what is wrong with it."""
    path, name = folder / CREDITS_FILE, _inside(folder, CREDITS_FILE)
    if not path.exists() and not path.is_symlink():
        return {}, []
    if reason := _unread(path, folder.resolve()):
        return {}, [(name, reason)]
    try:
        text = read_text(path, _MAX_CREDITS_BYTES).removeprefix("\ufeff")
        return _parse_credits(name, csv.reader(io.StringIO(text), strict=True), files)
    except (OSError, ValueError, csv.Error) as error:
        return {}, [(name, f"cannot be read as CSV in UTF-8 ({error})")]


def _parse_credits(
    name: str, rows: Iterator[list[str]], files: set[str]
) -> tuple[dict[str, tuple[str, str, str]], list[tuple[str, str]]]:
    header = [cell.strip().lower().replace("licence", "license") for cell in next(rows, [])]
    missing = [column for column in CREDIT_COLUMNS if column not in header]
    if missing:
        reason = f"has no column {', '.join(missing)}; its first line must name all of "
        return {}, [(name, reason + ", ".join(CREDIT_COLUMNS))]
    credits: dict[str, tuple[str, str, str]] = {}
    problems: list[tuple[str, str]] = []
    more = 0
    for line, row in enumerate(rows, start=2):
        if not any(cell.strip() for cell in row):
            continue
        named = dict(zip(header, row, strict=False)).get("file", "")
        cells = dict(zip(header, (cell.strip() for cell in row), strict=False))
        file = named if named in files else named.strip()  # names may begin or end with spaces
        credit = cells.get("author", ""), cells.get("license", ""), cells.get("url", "")
        reason = ""
        if len(row) != len(header):
            reason = f"has {len(row)} cells, not {len(header)}"
        elif file not in files:
            reason = f"names {shown(file)}, which is not there"
        elif file in credits:
            reason = f"names {shown(file)} a second time"
        else:
            reason = next(filter(None, map(credit_fault, credit)), "")
        if not reason:
            credits[file] = credit
        elif len(problems) < _MAX_CREDIT_PROBLEMS:
            problems.append((name, f"line {line} {reason}"))
        else:
            more += 1
    if more:
        problems.append((name, f"and {more} more lines of it are wrong"))
    return credits, problems


def _prepare_file(
    folder: Path,
    file: SourceFile,
    kind: Kind,
    recipe: Recipe,
    known: dict[str, Source],
    alone: bool,
) -> Source:
    if reason := _unread(file.path, folder.resolve()):
        raise _BadImage(reason)
    if not file.sha256:
        raise _BadImage("cannot be read; check that it is there and that you may read it")
    name = printable(file.file)
    if (old := known.get(name)) and old.entry.sha256 == file.sha256:
        return old
    image = _decode(file.path, alone)
    source_width, source_height = image.size
    if kind == "foreground":
        prepared = _foreground(image, recipe.foreground_size)
    else:
        prepared = _background(image, recipe)
    buffer = io.BytesIO()
    prepared.save(buffer, "PNG", compress_level=6)
    entry = SourceEntry(
        id=printable(Path(file.file).stem),
        file=name,
        sha256=file.sha256,
        width=prepared.width,
        height=prepared.height,
        source_width=source_width,
        source_height=source_height,
    )
    return Source(entry, buffer.getvalue())


def _decode(path: Path, alone: bool) -> Image.Image:
    """Return the image as RGB or RGBA, upright.

    Raises:
        _BadImage: it cannot be used; the text says why.
        _LargeImage: it is large, and this is not the only one decoded now.
    """
    try:
        if not (size_bytes := path.stat().st_size):
            raise _BadImage("is empty (0 bytes)")
        with Image.open(path, formats=FORMATS) as image:
            # MPO is how phones store a JPEG with a preview behind it; its first frame is it.
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                raise _BadImage(f"has {frames} frames; save one of them as an image")
            if min(image.size) < 2:
                raise _BadImage(f"is {image.width}x{image.height} px; too small to use")
            if image.width * image.height > _MAX_PIXELS:
                raise _BadImage(f"is {image.width}x{image.height} px; too large to be safe")
            if image.width * image.height > _LARGE_PIXELS:
                if image.width * image.height > _MAX_PIXELS_PER_BYTE * size_bytes:
                    extent = f"{image.width}x{image.height} px in {size_bytes} bytes"
                    raise _BadImage(f"is {extent}; no photograph is that empty")
                if not alone:
                    raise _LargeImage
            if image.format in ("JPEG", "MPO") and _jpeg_scans(path) > _MAX_JPEG_SCANS:
                raise _BadImage(f"has more than {_MAX_JPEG_SCANS} scans; save it again as JPEG")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except _BadImage:
        raise
    except Image.DecompressionBombError:
        raise _BadImage(f"is larger than {_MAX_PIXELS} px; too large to be safe") from None
    except UnidentifiedImageError:
        raise _BadImage("is not a JPEG, PNG, WebP, TIFF or BMP image") from None
    except MemoryError:
        raise _BadImage("needs more memory to decode than there is") from None
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        # Of an OSError the reason alone: its text may hold a path of this machine.
        reason = getattr(error, "strerror", None) or error
        why = printable(f"{type(error).__name__}: {reason}")
        raise _BadImage(f"is damaged or cut short ({why[:200]})") from None


def _jpeg_scans(path: Path) -> int:
    """Count the scans of a JPEG's first picture, up to one more than are allowed."""
    data, at, scans = path.read_bytes(), 2, 0
    while scans <= _MAX_JPEG_SCANS and (found := _JPEG_MARKER.search(data, at)):
        marker, at = found[0][1], found.end()
        if marker == 0xD9:  # end of image
            break
        scans += marker == 0xDA
        if marker not in (0x01, 0xD8):  # these two stand alone
            at += int.from_bytes(data[at : at + 2])
    return scans


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    for top in range(0, image.height, _BAND_ROWS):
        yield 0, top, image.width, min(top + _BAND_ROWS, image.height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        transparent = image.info.get("transparency")
        grey = Image.new("LA" if isinstance(transparent, int) else "L", image.size)
        for band in _bands(image):
            values = np.asarray(image.crop(band)).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise _BadImage("has 32-bit values; save it with 8 or 16 bits per channel")
            part = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
            if grey.mode == "LA":
                alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
                part.putalpha(Image.fromarray(alpha))
            grey.paste(part, band)
        return grey.convert("RGBA" if grey.mode == "LA" else "RGB")
    if image.mode == "F":
        raise _BadImage("has floating-point values; save it with 8 or 16 bits per channel")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode and "transparency" not in image.info else image.convert(mode)


def _foreground(image: Image.Image, longer_side: int) -> Image.Image:
    if image.mode != "RGBA":
        raise _BadImage(f"has no alpha channel; {_NEEDS_ALPHA}")
    alpha = image.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == 255:
        raise _BadImage(f"is wholly opaque; {_NEEDS_ALPHA}")
    if highest == 0:
        raise _BadImage(f"is wholly transparent; {_NEEDS_ALPHA}")
    image = image.crop(alpha.getbbox())
    scale = longer_side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    # Neither filter overshoots: Lanczos and bicubic leave a halo of faint alpha around the
    # object. Pillow weighs colours of RGBA by alpha while it resizes, so nothing bleeds in.
    image = image.resize(size, Resampling.HAMMING if scale < 1 else Resampling.BILINEAR)
    pixels = np.array(image)
    if not (pixels[..., 3] >= 128).any():
        raise _BadImage(f"has no pixel that is at least half opaque at {size[0]}x{size[1]} px")
    pixels[pixels[..., 3] == 0] = 0
    return Image.fromarray(pixels)


def _background(image: Image.Image, recipe: Recipe) -> Image.Image:
    if image.mode == "RGBA":  # what lies behind a transparent background is taken as white
        flat = Image.new("RGB", image.size)
        for band in _bands(image):
            part = image.crop(band)
            white = Image.new("RGBA", part.size, "white")
            flat.paste(Image.alpha_composite(white, part).convert("RGB"), band)
        image = flat
    size = (recipe.size, recipe.size)
    if recipe.background_fit == "stretch":
        return image.resize(size, Resampling.LANCZOS)
    return ImageOps.fit(image, size, Resampling.LANCZOS)


class SourceBank:
    """Prepared sources by index, decoded when first used; the last used stay decoded.

    Args:
        foregrounds, backgrounds: in the order of the pinned recipe.
    """

    def __init__(self, foregrounds: Sequence[Source], backgrounds: Sequence[Source]) -> None:
        self.foreground = lru_cache(4096)(lambda index: foregrounds[index].pixels())
        # 4096 backgrounds of 224 px are 600 MB.
        self.background = lru_cache(4096)(lambda index: backgrounds[index].pixels())


def uncredited(entries: Sequence[SourceEntry]) -> list[str]:
    """Return the ids of sources without author or license."""
    return [e.id for e in entries if not (e.author and e.license)]


def license_counts(entries: Sequence[SourceEntry]) -> dict[str, int]:
    """Return how many sources have each license, the most frequent first."""
    return dict(Counter(e.license for e in entries if e.license).most_common())
