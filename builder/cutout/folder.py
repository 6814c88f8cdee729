"""A folder of photographs becomes a folder of cut-outs: all that can be, the rest with reasons.

What was made of a photograph is noted in a hidden file of its own in OUT, written after the
cut-out: a run that was stopped goes on where it was, and a photograph that has not changed is not
cut out a second time. Nothing of the photographs is ever written to.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from builder.cutout.credits import Made, check_credits, write_credits
from builder.cutout.cutter import Cutter, Settings, cutter, sharing_cores
from builder.cutout.depth import FOV_DEG, PhotographDepth, SeenDepth, wanted_depth
from builder.cutout.notes import cutout_file, depth_file, files_of, read_note
from builder.cutout.objects import Cutout, NotCutError
from builder.cutout.report import Card, depth_tile_of, strip_of, thumbnail_of, write_report
from builder.depth import Device
from builder.errors import BadSourcesError, CutoutError, FgbgError
from builder.files import create_bytes, sha256_file, sweep, write_bytes, write_text
from builder.sources import (
    REPORT_FILE,
    BadImageError,
    Credit,
    LargeImageError,
    SourceFile,
    companion_of,
    decode,
    name_key,
    read_credits,
    scan,
    unread,
)
from builder.untrusted import printable

_NOTES = ".cutout"  # in OUT: a note on each photograph
# Of errors that another name would mend; any other, such as a full disk, ends the run.
_OF_A_NAME = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_PHOTOGRAPHS_AT_ONCE = 4  # by default, so that memory does not grow with the cores
_PNG_LEVEL = 1  # half the time of the default, for a few percent more bytes
_IS_CUT_OUT = (
    "is transparent in places, so it is a cut-out already; put it with the others in the folder "
    "that you build from"
)


@dataclass(frozen=True)
class CutoutReport:
    """What became of a folder of photographs.

    `cut` are the files made now, `kept` those made before, by path in OUT; `refused` are
    photographs and why each is. `dry_run`: nothing was written.
    """

    out: str
    cut: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    dry_run: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        refused = [{"file": file, "reason": reason} for file, reason in self.refused]
        return {**asdict(self), "cut": list(self.cut), "kept": list(self.kept), "refused": refused}


@dataclass(frozen=True)
class _Outcome:
    """What became of a photograph: its note, whether it was made now, and what was deleted."""

    note: Mapping[str, Any]
    is_new: bool
    deleted: tuple[str, ...] = ()


def cutout(
    photos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    how: str = "auto",
    instances: bool = False,
    text: str = "",
    label: str = "",
    matting: str = "",
    revision: str | None = None,
    weights_license: str | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    skip_bad: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    depth_model: str | None = None,
    fov_deg: float = FOV_DEG,
    progress: Callable[[int], object] | None = None,
) -> CutoutReport:
    """Cut the objects out of photographs.

    OUT gets NAME.png for each photograph, in the same subfolders: straight alpha, trimmed; beside
    them credits.csv and report.html. What cannot be cut out well is refused with the reason, and
    the rest is made. The same call goes on where one was stopped.

    Args:
        photos: the folder of photographs, searched with its subfolders.
        out: the folder of cut-outs.
        how: by the colour of the background, where `auto` refuses photographs whose border is not
            one smooth colour, and `key` takes those too of which half the border is; or by a
            network: a Hub id, which is downloaded, the folder of a Transformers model, or
            `rembg:NAME`.
        text: what to cut out, for a network that reads (CLIPSeg, SAM 3).
        label: the class to cut out, for a network that knows classes.
        matting: a Hub id or folder of a ViTMatte, which settles the edges that a network leaves.
        revision: the branch, tag or commit of a network on the Hub.
        weights_license: what the credits say of the network's license, instead of its card.
        device: where networks run.
        instances: make a cut-out of each object of a photograph, NAME-1.png and so on, the
            largest first, instead of refusing photographs of several.
        overwrite: make cut-outs again that differ from what would be made now; without it, no
            file is replaced.
        skip_bad: do not raise where photographs are refused.
        dry_run: write nothing.
        workers: photographs at once; None is one a core, four at most.
        depth_model: Hub id or folder of a metric depth model, or `demo`, that looks at each
            photograph once; what it sees in the box of a cut-out is written as NAME.depth.png.
        fov_deg: field of view over the longer side of photographs whose EXIF does not say their
            focal length, which NAME.depth.png says.
        progress: called with 1 after each photograph.

    Raises:
        DepthModelError: there is no such depth model, or it is not metric.
        CutoutError: photographs were refused; all others are made.
        BadSourcesError: the credits cannot be read.
        CutoutModelError: the network cannot be used.
        FgbgError: a folder is missing, or one lies in the other.
    """
    report = cut_folder(
        Path(photos),
        Path(out),
        Settings(how, instances, text, label, matting, revision, weights_license, device),
        overwrite=overwrite,
        dry_run=dry_run,
        workers=workers,
        depth_model=depth_model,
        fov_deg=fov_deg,
        progress=progress,
    )
    if report.refused and not skip_bad:
        raise CutoutError(report.refused, report.out, len(report.cut) + len(report.kept))
    return report


def cut_folder(
    photos: Path,
    out: Path,
    settings: Settings,
    *,
    overwrite: bool,
    dry_run: bool,
    workers: int | None,
    depth_model: str | None,
    fov_deg: float,
    progress: Callable[[int], object] | None,
    began: Callable[[int], object] | None = None,
) -> CutoutReport:
    """Do what `cutout` does, and leave what was refused to the caller.

    Args:
        began: called with the number of photographs.
    """
    _refuse_same_folder(photos, out)
    found = scan(photos)
    credits = read_credits(photos, found.credits, {file.file for file in found.files})
    if wrong := [(f"{photos.name}/{name}", reason) for name, reason in credits.lost]:
        raise BadSourcesError(wrong, skippable=False)
    check_credits(out)
    cut_out = cutter(settings)
    depth = wanted_depth(depth_model, fov_deg, settings.device)
    if began:
        began(len(found.files))
    folder = _Folder(photos, out, cut_out, depth, overwrite, dry_run)
    workers = workers or min(_cores(), _PHOTOGRAPHS_AT_ONCE)
    outcomes = folder.outcomes(found.files, workers)
    cut: list[str] = []
    kept: list[str] = []
    refused: list[tuple[str, str]] = []
    made: list[Made] = []
    deleted: set[str] = set()
    with sharing_cores(workers, _cores()):
        for file, outcome in zip(found.files, outcomes, strict=True):
            if progress:
                progress(1)
            deleted.update(outcome.deleted)
            if reason := outcome.note["refused"]:
                refused.append((printable(file.file), reason))
                continue
            names = [one["file"] for one in outcome.note["made"]]
            (cut if outcome.is_new else kept).extend(names)
            credit = credits.by_file.get(file.file, Credit())
            made += [_made(one, credit, outcome) for one in outcome.note["made"]]
    if not dry_run:
        out.mkdir(parents=True, exist_ok=True)
        if made:
            write_credits(out, made, deleted)
        write_report(out / REPORT_FILE, folder.cards({name_key(name) for name, _ in refused}))
    return CutoutReport(str(out), tuple(cut), tuple(kept), tuple(refused), dry_run)


def _made(one: Mapping[str, Any], credit: Credit, outcome: _Outcome) -> Made:
    """Return what is credited of a cut-out in a note."""
    note = outcome.note
    # A photograph in a folder has its class from that.
    label = "" if "/" in one["file"] else one.get("label", "")
    weights, license = note.get("weights", ""), note.get("weights_license", "")
    return Made(
        one["file"], credit, one["cut_at"], note["tool"], outcome.is_new, weights, license, label
    )


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _refuse_same_folder(photos: Path, out: Path) -> None:
    first, second = (Path(os.path.realpath(path)) for path in (photos, out))
    if first == second or second.is_relative_to(first) or first.is_relative_to(second):
        raise FgbgError(
            f"{out} and {photos} are one folder, or one lies in the other; choose a folder beside "
            "the photographs for the cut-outs."
        )
    if out.exists() and not out.is_dir():
        raise FgbgError(f"{out} is a file; give a folder for the cut-outs.")


class _Folder:
    """Cuts the photographs of one folder out, each alone."""

    def __init__(
        self,
        photos: Path,
        out: Path,
        cut_out: Cutter,
        depth: PhotographDepth | None,
        overwrite: bool,
        dry_run: bool,
    ) -> None:
        self._root, self._out, self._cut_out = photos.resolve(), out, cut_out
        self._depth = depth
        self._overwrite, self._dry_run = overwrite, dry_run
        self._sharing: dict[str, list[str]] = {}

    def outcomes(self, files: Sequence[SourceFile], workers: int) -> Iterator[_Outcome]:
        """Give what becomes of each photograph, in their order; several are made at once."""
        sharing = defaultdict(list)
        for file in files:
            sharing[name_key(self._target(file))].append(printable(file.file))
        self._sharing = dict(sharing)
        with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
            # As where sources are prepared: what Pillow only complains about hurts no pixel.
            warnings.simplefilter("ignore")
            try:
                yield from self._in_order(files, pool, workers)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _in_order(
        self, files: Sequence[SourceFile], pool: ThreadPoolExecutor, workers: int
    ) -> Iterator[_Outcome]:
        """Give outcomes while few photographs are begun, so that nothing piles up."""
        waiting: dict[int, Future[_Outcome]] = {}
        begun = 0
        for number in range(len(files)):
            while begun < len(files) and len(waiting) < 2 * workers:
                waiting[begun] = pool.submit(self._outcome, files[begun])
                begun += 1
            try:
                outcome = waiting.pop(number).result()
            except LargeImageError:
                wait(waiting.values(), return_when="ALL_COMPLETED")
                outcome = self._outcome(files[number], alone=True)
            yield outcome

    def _outcome(self, file: SourceFile, alone: bool = False) -> _Outcome:
        note = self._note(file)
        if note is not None:
            same = note["sha256"] == file.sha256 and note["options"] == self._cut_out.options
            if same and note["made"] and self._is_kept(note):
                if self._depth is None or self._has_depth(note):
                    if note["refused"]:  # it was other depth that could not be written
                        note["refused"] = ""
                        self._write_note(file, note)
                    return self._outlived(file, note)
                return self._deepened(file, note, alone)
        earlier = files_of(note) if note else {}
        deleted: tuple[str, ...] = ()
        note = {
            "photograph": printable(file.file),
            "sha256": file.sha256,
            "options": self._cut_out.options,
            "tool": self._cut_out.tool,
            "weights": self._cut_out.weights,
            "weights_license": self._cut_out.license,
            "made": [],
            "refused": "",
            "picture": "",
            "earlier": earlier,
        }
        try:
            note["made"] = self._made(file, note, alone)
            deleted = self._clear(note)
        except LargeImageError:
            raise
        except (BadImageError, NotCutError) as error:
            note["refused"] = str(error)
        self._write_note(file, note)
        return _Outcome(note, is_new=True, deleted=deleted)

    def _outlived(self, file: SourceFile, note: dict[str, Any]) -> _Outcome:
        """Keep what is there; with --overwrite, of that what would be made now."""
        deleted = self._clear(note) if self._overwrite and note.get("earlier") else ()
        if deleted:
            self._write_note(file, note)
        return _Outcome(note, is_new=False, deleted=deleted)

    def _write_note(self, file: SourceFile, note: Mapping[str, Any]) -> None:
        if not self._dry_run:
            path = self._note_path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(note))

    def _has_depth(self, note: Mapping[str, Any]) -> bool:
        """Whether the depth that is asked for is there, as it was unless --overwrite."""
        assert self._depth is not None
        return all(
            (depth := one.get("depth"))
            and depth["options"] == self._depth.options
            and (path := self._out / depth["file"]).is_file()
            and not (self._overwrite and sha256_file(path) != depth["sha256"])
            for one in note["made"]
        )

    def _deepened(self, file: SourceFile, note: dict[str, Any], alone: bool) -> _Outcome:
        """Add depth to cut-outs that are there, which stay as they are."""
        assert self._depth is not None
        note = {**note, "refused": ""}
        try:
            photograph = self._photograph(file, alone)
            seen = self._depth.of(photograph, file.path)
            note["made"] = [
                {**one, "depth": self._depth_written(one["file"], (*one["at"], *one["size"]), seen)}
                for one in note["made"]
            ]
        except LargeImageError:
            raise
        except (BadImageError, NotCutError) as error:
            note["refused"] = str(error)
        self._write_note(file, note)
        return _Outcome(note, is_new=False)

    def _clear(self, note: dict[str, Any]) -> tuple[str, ...]:
        """Delete what was written for this photograph earlier and does not belong to it now.

        That is the depth of what is cut out again without, and, with --overwrite, cut-outs of
        which there are fewer now. What a person has changed since stays. Returns what is deleted.
        """
        now = files_of({**note, "earlier": {}})
        deleted = []
        for name, digest in note["earlier"].items():
            if name in now or not (self._overwrite or cutout_file(name) in now):
                continue
            path = self._out / name
            if path.is_file() and sha256_file(path) == digest:
                deleted.append(name)
                if not self._dry_run:
                    path.unlink()
        gone = {*now, *deleted}
        note["earlier"] = {k: v for k, v in note["earlier"].items() if k not in gone}
        return tuple(deleted)

    def _is_kept(self, note: Mapping[str, Any]) -> bool:
        """Whether all that was made of a photograph is there, as it was unless --overwrite."""
        for one in note["made"]:
            path = self._out / one["file"]
            if not path.is_file() or (self._overwrite and sha256_file(path) != one["sha256"]):
                return False
        return True

    def _target(self, file: SourceFile) -> str:
        return str(PurePosixPath(file.file).with_suffix(".png"))

    def _made(self, file: SourceFile, note: dict[str, Any], alone: bool) -> list[dict[str, Any]]:
        """Cut a photograph out and write what was found.

        Raises:
            BadImageError, NotCutError: it cannot be used.
            LargeImageError: it is to be decoded while no other is.
        """
        if reason := unread(file.path, self._root):
            raise BadImageError(reason)
        if not _is_utf8(file.file):
            raise NotCutError("has a name that is not UTF-8, which credits.csv is in; rename it")
        target = self._target(file)
        if companion_of(target, "foreground"):
            raise NotCutError(
                f"would be {printable(target)}, which is what the depth of a cut-out is called; "
                "rename it"
            )
        others = [name for name in self._sharing[name_key(target)] if name != printable(file.file)]
        if others:
            raise NotCutError(
                f"would be the same cut-out, {printable(target)}, as {', '.join(others[:3])}; "
                "rename one of them"
            )
        photograph = self._photograph(file, alone)
        note["picture"] = _base64(thumbnail_of(photograph))
        found = self._cut_out(photograph)
        stem = target.removesuffix(".png")
        names = [target] if not self._cut_out.options["instances"] else [
            f"{stem}-{number}.png" for number in range(1, len(found) + 1)
        ]  # fmt: skip
        made = [
            self._written(photograph, name, one) for name, one in zip(names, found, strict=True)
        ]
        if self._depth is not None:
            seen = self._depth.of(photograph, file.path)
            for one in made:
                box = (*one["at"], *one["size"])
                one["depth"] = self._depth_written(one["file"], box, seen)
        return made

    def _photograph(self, file: SourceFile, alone: bool) -> Image.Image:
        photograph = decode(file.path, "background", alone=alone).image
        if photograph.mode == "RGBA":
            if photograph.getchannel("A").getextrema() != (255, 255):
                raise NotCutError(_IS_CUT_OUT)
            photograph = photograph.convert("RGB")
        return photograph

    def _depth_written(
        self, name: str, box: tuple[int, int, int, int], seen: SeenDepth
    ) -> dict[str, Any]:
        """Write the depth in a cut-out's box, unless it is there; return what is noted of it.

        Raises:
            NotCutError: another file is there.
        """
        assert self._depth is not None
        depth, name = seen.part(*box), depth_file(name)
        content = seen.png(depth)
        digest = self._kept_file(name, content)
        picture, options = _base64(depth_tile_of(depth)), self._depth.options
        return {"file": name, "sha256": digest, "options": options, "picture": picture}

    def _written(self, photograph: Image.Image, name: str, cutout: Cutout) -> dict[str, Any]:
        """Write a cut-out, unless it is there; return what is noted of it.

        Raises:
            NotCutError: another file is there.
        """
        buffer = io.BytesIO()
        Image.fromarray(cutout.pixels).save(buffer, "PNG", compress_level=_PNG_LEVEL)
        digest = self._kept_file(name, buffer.getvalue())
        height, width = cutout.pixels.shape[:2]
        figures = asdict(cutout.figures)
        return {
            "file": name,
            "sha256": digest,
            "cut_at": cutout.cut_at,
            "size": [width, height],
            "at": [cutout.left, cutout.top],
            "edge": cutout.edge,
            "label": cutout.label,
            "figures": {key: value for key, value in figures.items() if value is not None},
            "strip": _base64(strip_of(photograph, cutout)),
        }

    def _kept_file(self, name: str, content: bytes) -> str:
        """Write a file unless it is there; return its sha256.

        Raises:
            NotCutError: another file is there, or its name cannot be.
        """
        digest = hashlib.sha256(content).hexdigest()
        try:
            self._put(name, content, digest)
        except OSError as error:
            if error.errno not in _OF_A_NAME:
                raise
            raise NotCutError(
                f"is not cut out: {printable(name)} cannot be written ({error.strerror}); rename "
                "the photograph, or move away what is in the way"
            ) from None
        return digest

    def _put(self, name: str, content: bytes, digest: str) -> None:
        path = self._out / name
        if not self._dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
        is_there = path.exists()
        if not is_there and not self._dry_run:
            is_there = not create_bytes(path, content)
        # The same bytes: a run was stopped between a cut-out and the note on it.
        if is_there and (not path.is_file() or sha256_file(path) != digest):
            if not self._overwrite:
                raise NotCutError(
                    f"is not cut out: {printable(name)} is there already, made otherwise or by "
                    "hand; --overwrite (overwrite=True) replaces it"
                )
            if not self._dry_run:
                write_bytes(path, content)

    def _note_path(self, file: SourceFile) -> Path:
        key = hashlib.sha256(os.fsencode(file.file)).hexdigest()[:32]
        return self._out / _NOTES / f"{key}.json"

    def _note(self, file: SourceFile) -> dict[str, Any] | None:
        return read_note(self._note_path(file))

    def cards(self, refused: set[str]) -> Iterator[Card]:
        """Give what the report shows: what is refused now, then all cut-outs that are there."""
        paths = sorted((self._out / _NOTES).glob("*.json"))
        order = []
        for path in paths:
            if note := read_note(path):
                bad = bool(note["refused"])
                if (bad and name_key(note["photograph"]) in refused) or note["made"]:
                    order.append((not bad, note["photograph"], path))
        for _, _, path in sorted(order):
            if (note := read_note(path)) is None:
                continue
            if note["refused"]:
                yield Card(note["photograph"], note["picture"], refused=note["refused"])
            for one in note["made"]:
                if (self._out / one["file"]).is_file():
                    yield Card(
                        note["photograph"],
                        one["strip"],
                        file=one["file"],
                        size=tuple(one["size"]),
                        cut_at=one["cut_at"],
                        edge=one.get("edge", ""),
                        figures=one["figures"],
                        depth=(one.get("depth") or {}).get("picture", ""),
                    )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
