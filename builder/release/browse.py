"""A page over a whole finished set, served to this machine alone: `fgbg browse`.

What a set holds reaches the page as JSON, which becomes text there, or as a picture whose header
was looked at; the page's policy lets no other script or style run and asks no other server. The
address holds a random token, without which every request is refused, and so is one whose `Host` is
not this server's: other pages and other people of the machine see nothing.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import logging
import math
import re
import secrets
import struct
import threading
import webbrowser
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from builder.errors import FgbgError, OutputError
from builder.files import read_text, write_text
from builder.pictures import FORMATS, MAX_SIDE, check_scans, open_picture, open_undecoded
from builder.recipe import DEMO_DEPTH_MODEL
from builder.record import DepthCodec, decode_instances, decode_mask
from builder.release.access import Repo, Stored, open_place
from builder.release.preview import FARTHEST, LUT, NEAREST, DepthScale
from builder.release.shelf import Place, Question, Shelf
from builder.untrusted import Unreadable, one_line, printable, refusing, shown

FLAGS_FILE = "flags.csv"
_FLAG_COLUMNS = ("record_id", "split", "note", "fingerprint")
_MAX_FLAGS_BYTES = 2**26
_MAX_NOTE = 500  # characters
_MAX_BODY_BYTES = 2**16
_MOST_ROWS = 500  # in one answer
_SCALE_RECORDS = 12  # whose depths the colours are chosen by
_PAGE = "browse.html"

# Colours of objects 1, 2, ...; they repeat. Each stands out on dark and on bright pictures.
PALETTE = (
    (255, 64, 129), (0, 200, 255), (255, 214, 0), (118, 255, 3), (224, 64, 251), (255, 145, 0),
    (29, 233, 182), (83, 109, 254), (255, 82, 82), (198, 255, 0), (140, 158, 255), (255, 171, 145),
)  # fmt: skip
_MASK_COLOUR = (255, 64, 129)
_GROUND_COLOUR = (40, 220, 90)
_TINT_ALPHA = 150
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_log = logging.getLogger(__name__)


class Desk:
    """What the page asks for: answers as JSON and bytes, of one finished set.

    Args:
        shelf: the set.
        flags: the file that flags are kept in.
        where: what makes the set's folder in Python, for the lines that make a record again.
    """

    def __init__(self, shelf: Shelf, flags: Flags, where: str) -> None:
        self._shelf, self._flags, self._where = shelf, flags, where
        self._recipe = shelf.pinned.recipe
        info = shelf.pinned.depth
        self._codec = DepthCodec(self._recipe, info) if info else None
        self._failure: FgbgError | None = None
        self._ready = threading.Event()

    def read_columns(self) -> None:
        """Read the columns; whoever asks for them waits until then."""
        try:
            _ = self._shelf.columns
        except FgbgError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - the page has to say it, whatever it is
            _log.exception("the columns cannot be read")
            self._failure = FgbgError(f"the columns cannot be read ({one_line(error)}).")
        self._ready.set()

    def _columns(self) -> Any:
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self._shelf.columns

    # -- what is said of the set and its records

    def about(self, _query: Mapping[str, list[str]]) -> Any:
        """Return what is known before any column is read."""
        shelf, recipe, info = self._shelf, self._recipe, self._shelf.pinned.depth
        scenes = recipe.layout == "scenes"
        depth = None
        if info is not None:
            depth = {
                "scale": info.scale,
                "unit": "m" if info.kind == "metric" else "",
                "inverse": info.quantity == "inverse_depth",
                "demo": recipe.depth_model == DEMO_DEPTH_MODEL and not recipe.composes_depth,
                "colours": LUT[FARTHEST : NEAREST + 1].tobytes().hex(),
            }
        return {
            "name": printable(shelf.name),
            "records": shelf.n_records,
            "splits": {name: split.n_records for name, split in shelf.plan.splits.items()},
            "size": recipe.size,
            "scenes": scenes,
            "depth": depth,
            "fov_deg": recipe.fov_deg,
            "ground": recipe.needs_background_depth,
            "fingerprint": shelf.pinned.fingerprint,
            "palette": PALETTE,
            "flags": {"file": printable(str(self._flags.path)), "ids": self._flags.notes()},
        }

    def progress(self, _query: Mapping[str, list[str]]) -> Any:
        """Return how many records' columns are read."""
        return {"read": self._shelf.n_read, "ready": self._ready.is_set()}

    def scale(self, _query: Mapping[str, list[str]]) -> Any:
        """Return what the colours of depth mean."""
        scale = self._scale
        return {
            "near": scale.near,
            "far": scale.far,
            "logarithmic": scale.logarithmic,
            "texts": [scale.text(scale.near), scale.text(scale.far)],
        }

    def columns(self, _query: Mapping[str, list[str]]) -> Any:
        """Return what can be filtered by, and how many of the whole set are in each bin."""
        columns = self._columns()
        return {
            "numbers": {
                name: {
                    "title": number.title,
                    "unit": number.unit,
                    "edges": number.edges.tolist(),
                    "of_objects": number.of_objects and self._recipe.layout == "scenes",
                }
                for name, number in columns.numbers.items()
            },
            "choices": {
                name: {
                    "title": choice.title,
                    "names": choice.names,
                    "of_objects": choice.of_objects and self._recipe.layout == "scenes",
                }
                for name, choice in columns.choices.items()
            },
            "counts": columns.find(Question()).counts,
        }

    def find(self, query: Mapping[str, list[str]]) -> Any:
        """Return how many records a question finds, and how many are in each bin."""
        answer = self._columns().find(self._question(query))
        return {"records": len(answer.rows), "counts": answer.counts}

    def order(self, query: Mapping[str, list[str]]) -> bytes:
        """Return the numbers of the records that a question finds, int32 little-endian."""
        content: bytes = self._columns().find(self._question(query)).rows.astype("<i4").tobytes()
        return content

    def _question(self, query: Mapping[str, list[str]]) -> Question:
        columns = self._columns()
        ranges = []
        for name in columns.numbers:
            for value in query.get(name, []):
                low, _, high = value.partition(",")
                ranges.append((name, float(low), float(high)))
        choices = [
            (name, tuple(sorted(set(query[name])))) for name in columns.choices if query.get(name)
        ]
        among = tuple(sorted(self._flags.notes())) if query.get("flagged") else None
        layout = query.get("layout")
        return Question(
            tuple(ranges),
            tuple(choices),
            query.get("q", [""])[0].strip()[:200],
            int(layout[0]) if layout else None,
            tuple(map(int, among)) if among is not None else None,
        )

    def rows(self, query: Mapping[str, list[str]]) -> Any:
        """Return what some records say of themselves; `at` are their numbers."""
        numbers = [int(text) for text in query["at"][0].split(",")]
        if len(numbers) > _MOST_ROWS:
            raise ValueError(f"at most {_MOST_ROWS} at once")
        return [self._row(number) for number in numbers]

    def _row(self, number: int) -> dict[str, Any]:
        place, row = self._shelf.place(number), self._shelf.row(number)
        objects = row.pop("objects", None)
        if objects is not None:
            names = self._shelf.pinned.categories
            objects = {
                **objects,
                "category": [
                    names[n] if n is not None and 0 <= n < len(names) else ""
                    for n in objects["category"]
                ],
            }
        return {
            "number": number,
            "place": vars(place),
            "values": _plain(row),
            "objects": _plain(objects),
            "horizon": self._horizon(str(row["background_id"])),
            "sources": self._sources(row, objects),
            "remake": self._remake(place, int(row["record_id"])),
        }

    def _sources(self, row: Mapping[str, Any], objects: Mapping[str, Any] | None) -> Any:
        ids = objects["foreground_id"] if objects else [row["foreground_id"]]
        wanted = [("background", row["background_id"])]
        wanted += [("foreground", name) for name in dict.fromkeys(ids)]
        return [self._source(kind, str(name)) for kind, name in wanted]

    def _source(self, kind: str, name: str) -> dict[str, Any]:
        number = self._shelf.number_of(kind, name)
        if number is None:
            return {"kind": kind, "id": name, "number": None}
        entry = self._shelf.entries(kind)[number]
        return {
            "kind": kind,
            "id": name,
            "number": number,
            "file": entry.file,
            "author": entry.author,
            "license": entry.license,
            "url": entry.url,
            "category": entry.category if kind == "foreground" else "",
        }

    def _horizon(self, background: str) -> dict[str, Any] | None:
        found = self._backdrops.get(background)
        return found and {**found, "number": self._shelf.number_of("background", background)}

    @cached_property
    def _backdrops(self) -> dict[str, dict[str, Any]]:
        """Where the horizon of each background is that has a ground."""
        names = ("id", "horizon_px", "roll_deg", "why_free")
        if not self._recipe.needs_background_depth:
            return {}
        rows = self._shelf.source_rows("background", names)
        return {
            row["id"]: {"px": row["horizon_px"], "roll_deg": row["roll_deg"]}
            for row in rows
            if not row["why_free"] and math.isfinite(row["horizon_px"] + row["roll_deg"])
        }

    def _remake(self, place: Place, record_id: int) -> str:
        """Return Python that makes a record again from what the set publishes."""
        return (
            "from builder.layout import BACKGROUNDS_FILE, FOREGROUNDS_FILE, read_recipe\n"
            "from builder.record import Plan, Renderer\n"
            "from builder.remote import place\n"
            "from builder.sources import SourceBank, read_sources\n"
            f"out = {self._where}\n"
            "bank = SourceBank(*(read_sources(out / f) for f in (FOREGROUNDS_FILE, "
            "BACKGROUNDS_FILE)))\n"
            f"record = Renderer(Plan(read_recipe(out)), bank, None).compose({record_id})"
            f"  # {place.split}, position {place.position}\n"
        )

    # -- pictures

    def picture(self, number: int) -> bytes:
        """Return the composite as it is stored."""
        return self._checked(self._shelf.picture(number, "fg_bg"))

    def _checked(self, data: bytes, most_px: int | None = None) -> bytes:
        """Look at the header of a picture that the browser will decode."""
        with refusing("is damaged"):
            image = open_undecoded(io.BytesIO(data), FORMATS)
            check_scans(data)
            side = self._recipe.size
            due = image.size == (side, side) if most_px is None else max(image.size) <= most_px
            if not due or getattr(image, "n_frames", 1) != 1:
                raise Unreadable(f"is {image.width}x{image.height} px, which is not due")
        return data

    def mask(self, number: int) -> bytes:
        """Return the mask as a tint, PNG: transparent where there is no object."""
        return self._tinted(self._shelf.picture(number, "mask"), (_MASK_COLOUR,), 1)

    def instances(self, number: int) -> bytes:
        """Return the instances as tints, PNG."""
        return self._tinted(self._shelf.picture(number, "instances"), PALETTE, 8)

    def _tinted(self, png: bytes, colours: tuple[tuple[int, int, int], ...], bits: int) -> bytes:
        palette = np.zeros((2**bits, 4), np.uint8)
        palette[1:, :3] = np.resize(np.array(colours, np.uint8), (2**bits - 1, 3))
        palette[1:, 3] = _TINT_ALPHA
        if (quick := _with_palette(png, palette, self._recipe.size, bits)) is not None:
            return quick
        pixels = (decode_instances if bits == 8 else decode_mask)(png, self._recipe.size)
        return _palette_png(pixels.astype(np.uint8), palette)

    def labels(self, number: int) -> bytes:
        """Return the instance of each pixel, uint8, row by row; of pairs 1 in the mask."""
        size = self._recipe.size
        if self._recipe.layout == "scenes":
            return decode_instances(self._shelf.picture(number, "instances"), size).tobytes()
        return decode_mask(self._shelf.picture(number, "mask"), size).astype(np.uint8).tobytes()

    def depth(self, number: int) -> bytes:
        """Return depth in stored units, uint16 little-endian, row by row, 0 = unknown."""
        content: bytes = self._depth(number).astype("<u2").tobytes()
        return content

    def _depth(self, number: int) -> Any:
        if self._codec is None:
            raise KeyError("depth")
        stored = self._codec.decode(self._shelf.picture(number, "depth"))
        if stored.shape != (self._recipe.size,) * 2:
            raise Unreadable("is of another size than is due")
        return stored

    def colour(self, number: int) -> bytes:
        """Return depth as a picture, PNG, on the one scale of the page."""
        metres = self._metres(number)
        palette = np.concatenate([LUT, np.full((256, 1), 255, np.uint8)], axis=1)
        return _palette_png(self._scale.codes(metres), palette)

    def _metres(self, number: int) -> Any:
        stored = self._depth(number)
        info = self._shelf.pinned.depth
        assert info is not None
        return np.where(stored > 0, stored / np.float32(info.scale), np.float32(np.nan))

    @cached_property
    def _scale(self) -> DepthScale:
        info = self._shelf.pinned.depth
        if info is None:
            raise KeyError("depth")
        n = self._shelf.n_records
        numbers = sorted({n * k // _SCALE_RECORDS for k in range(_SCALE_RECORDS)})
        return DepthScale.around((self._metres(at)[::3, ::3] for at in numbers), info)

    def source(self, kind: str, number: int) -> bytes:
        """Return the picture of a prepared source."""
        row = self._shelf.source(kind, number, ("image",))
        return self._checked((row["image"] or {}).get("bytes") or b"", MAX_SIDE)

    def ground(self, number: int) -> bytes:
        """Return the ground of a background as a tint, PNG."""
        row = self._shelf.source("background", number, ("ground",))
        data = (row.get("ground") or {}).get("bytes")
        size = self._recipe.size
        region = np.asarray(open_picture(data, (size, size), ("PNG",)).convert("1"))
        palette = np.array([(0, 0, 0, 0), (*_GROUND_COLOUR, _TINT_ALPHA)], np.uint8)
        return _palette_png(region.astype(np.uint8), palette)

    # -- flags

    def flag(self, content: Any) -> Any:
        """Flag a record with a note, or take its flag away where the note is null."""
        number, note = content["number"], content["note"]
        if type(number) is not int or not (note is None or isinstance(note, str)):
            raise ValueError("a flag is a number of a record and a note or null")
        record_id = int(self._shelf.row(number)["record_id"])
        self._flags.put(record_id, self._shelf.place(number).split, note)
        return self._flags.notes()


class Flags:
    """Flags of records in a CSV file, which may hold those of other sets too.

    Raises:
        OutputError: the file is no such CSV.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path, self._fingerprint = path, fingerprint
        self._lock = threading.Lock()
        self._mine, _ = self._read()

    def _read(self) -> tuple[dict[int, tuple[str, str]], list[tuple[str, ...]]]:
        """Return this set's flags and the lines of other sets, as they stand in the file."""
        mine: dict[int, tuple[str, str]] = {}
        others: list[tuple[str, ...]] = []
        if not self.path.exists():
            return mine, others
        try:
            text = read_text(self.path, _MAX_FLAGS_BYTES)
            rows = list(csv.reader(io.StringIO(text, newline="")))
            if tuple(rows[0]) != _FLAG_COLUMNS:
                raise ValueError("its first line is another")
            for row in rows[1:]:
                if len(row) != len(_FLAG_COLUMNS):
                    raise ValueError("a line has another number of cells")
                if row[3] != self._fingerprint:
                    others.append(tuple(row))
                elif abs(number := int(row[0])) < 2**63:
                    mine[number] = (row[1], row[2])
                else:
                    raise ValueError(f"{shown(row[0])} is the id of no record")
        except (OSError, ValueError, IndexError, csv.Error) as error:
            raise OutputError(
                f"{self.path} is not a file of flags of fgbg ({one_line(error)}); name another "
                "one with --flags."
            ) from None
        return mine, others

    def notes(self) -> dict[str, str]:
        """Return the notes by record id."""
        with self._lock:
            return {str(record_id): note for record_id, (_, note) in self._mine.items()}

    def put(self, record_id: int, split: str, note: str | None) -> None:
        """Set or take away a flag, and write the file."""
        with self._lock:
            # Read again, since a page over another set, or a person, may have written there.
            mine, others = self._read()
            if note is None:
                mine.pop(record_id, None)
            else:
                mine[record_id] = (split, " ".join(note.split())[:_MAX_NOTE])
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(_FLAG_COLUMNS)
            writer.writerows(others)
            writer.writerows(
                (record_id, *about, self._fingerprint) for record_id, about in sorted(mine.items())
            )
            try:
                write_text(self.path, text.getvalue())
            except OSError as error:
                raise OutputError(f"{self.path}: {error.strerror or error}") from None
            self._mine = mine


def _plain(value: Any) -> Any:
    """Return a value that JSON has: no NaN, and integers beyond JavaScript's as text."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _with_palette(png: bytes, palette: Any, size: int, bits: int) -> bytes | None:
    """Return a grey PNG with a palette put in, none of its pixels decoded.

    None where it is not the plain PNG that a build writes.
    """
    head = _PNG_SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, bits, 0, 0, 0, 0))
    if not png.startswith(head) or png[len(head) + 4 : len(head) + 8] != b"IDAT":
        return None
    coloured = struct.pack(">IIBBBBB", size, size, bits, 3, 0, 0, 0)
    return b"".join(
        (
            _PNG_SIGNATURE,
            _chunk(b"IHDR", coloured),
            _chunk(b"PLTE", palette[:, :3].tobytes()),
            _chunk(b"tRNS", palette[:, 3].tobytes()),
            png[len(head) :],
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _palette_png(indexes: Any, palette: Any) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(indexes))
    image.putpalette(palette[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1, transparency=palette[:, 3].tobytes())
    return buffer.getvalue()


# Over HTTP

_JSON = ("about", "progress", "scale", "columns", "find", "rows")
_PICTURES = ("picture", "mask", "instances", "colour", "ground")
_RAW = ("labels", "depth")
_TYPES = {b"\xff\xd8": "image/jpeg", b"\x89P": "image/png", b"RI": "image/webp"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, desk: Desk, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.desk, self.token = desk, secrets.token_urlsafe(24)
        self.page = Path(__file__).with_name(_PAGE).read_bytes()
        self.policy = _policy(self.page.decode())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong; a browser that hangs up is no error."""
        _log.debug("a request failed", exc_info=True)


def _policy(page: str) -> str:
    """Return the Content-Security-Policy: the page's own script and style, this server, no more."""
    hashes = {}
    for tag in ("style", "script"):
        content = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = hashlib.sha256(content[1].encode() if content else b"").digest()
        hashes[tag] = f"'sha256-{base64.b64encode(digest).decode()}'"
    return (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; style-src {hashes['style']}"
        f"; script-src {hashes['script']}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"  # one connection for many pictures
    server_version, sys_version = "fgbg", ""
    timeout = 120  # s, of a connection that says nothing

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the address holds the token."""

    def do_GET(self) -> None:
        """Answer."""
        if (rest := self._allowed()) is not None:
            self._answer(lambda: self._get(rest))

    def do_POST(self) -> None:
        """Set a flag."""
        if (rest := self._allowed()) is None:
            return
        own = self.server.url.rpartition("/")[0].rpartition("/")[0]
        length = self.headers.get("Content-Length", "")
        if (
            rest != "flag"
            or self.headers.get("Content-Type") != "application/json"
            or self.headers.get("Origin", own) not in (own, own.replace("127.0.0.1", "localhost"))
            or not length.isdecimal()
            or int(length) > _MAX_BODY_BYTES
        ):
            self._refuse(HTTPStatus.BAD_REQUEST)
            return
        body = self.rfile.read(int(length))
        self._answer(lambda: _as_json(self.server.desk.flag(json.loads(body))))

    def _allowed(self) -> str | None:
        """Return what stands behind the token; refuse whoever does not know it."""
        port = self.server.server_port
        if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
            self._refuse(HTTPStatus.FORBIDDEN)  # another name, that leads here: DNS rebinding
            return None
        token, slash, rest = self.path[1:].partition("/")
        if not slash or not secrets.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN)
            return None
        return rest

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", status.phrase.encode())

    def _answer(self, make: Callable[[], tuple[str, bytes]]) -> None:
        try:
            status, (kind, content) = HTTPStatus.OK, make()
        except (LookupError, ValueError, TypeError, FgbgError) as error:
            text = str(error) if isinstance(error, FgbgError) else one_line(error)
            status = HTTPStatus.NOT_FOUND
            kind, content = _as_json({"error": printable(text)})
        except Exception as error:  # noqa: BLE001 - the page has to say it, whatever it is
            _log.debug("a request failed", exc_info=True)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            kind, content = _as_json({"error": one_line(error)})
        self._send(status, kind, content)

    def _get(self, rest: str) -> tuple[str, bytes]:
        parts = urlsplit(rest)
        desk, query = self.server.desk, parse_qs(parts.query, keep_blank_values=True)
        if not parts.path:
            return "text/html; charset=utf-8", self.server.page
        if parts.path in _JSON:
            return _as_json(getattr(desk, parts.path)(query))
        if parts.path == "order":
            return "application/octet-stream", desk.order(query)
        what, _, which = parts.path.partition("/")
        if what in _RAW:
            return "application/octet-stream", getattr(desk, what)(_number(which))
        if what == "source":
            kind, _, which = which.partition("/")
            if kind in ("foreground", "background"):
                return _as_picture(desk.source(kind, _number(which)))
        if what in _PICTURES:
            return _as_picture(getattr(desk, what)(_number(which)))
        raise LookupError("there is nothing of that name")

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        lasting = status == HTTPStatus.OK and kind.startswith("image/")
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", self.server.policy),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cross-Origin-Opener-Policy", "same-origin"),
            ("Cache-Control", "private, max-age=3600" if lasting else "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("there is no such number")
    return int(text)


def _as_json(content: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(content, allow_nan=False).encode()


def _as_picture(data: bytes) -> tuple[str, bytes]:
    return _TYPES[data[:2]], data


@contextmanager
def serving(
    target: str | Path,
    *,
    port: int = 0,
    flags: str | Path = FLAGS_FILE,
    revision: str | None = None,
    token: str | None = None,
) -> Iterator[str]:
    """Serve the page of a set while the block runs, and give its address.

    Args and errors are those of `browse`.
    """
    with open_place(target, revision, token) as where:
        shelf = Shelf(where)
        pages = Flags(Path(flags), shelf.pinned.fingerprint)
        desk = Desk(shelf, pages, _folder_text(where))
        try:
            server = _Server(desk, port)
        except OSError as error:
            raise FgbgError(
                f"port {port} cannot be used ({error.strerror or error}); without --port a free "
                "one is taken."
            ) from None
        reading = threading.Thread(target=desk.read_columns, name="columns", daemon=True)
        serving = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
        reading.start()
        serving.start()
        try:
            yield server.url
        finally:
            shelf.stop()
            server.shutdown()
            server.server_close()
            reading.join()
            shelf.close()


def _folder_text(where: Any) -> str:
    """Return Python that makes the set's folder."""
    if isinstance(where, Repo):
        patterns = ["recipe.json", "foregrounds/*", "backgrounds/*"]
        return (
            f"place(__import__('huggingface_hub').snapshot_download({where.name!r}, "
            f"repo_type='dataset', revision={where.revision!r}, allow_patterns={patterns}))"
        )
    if isinstance(where, Stored):
        return f"place({where.name!r})"
    return f"place({str(where.root)!r})"


def browse(
    target: str | Path,
    *,
    port: int = 0,
    open_browser: bool = True,
    flags: str | Path = FLAGS_FILE,
    revision: str | None = None,
    token: str | None = None,
    report: Callable[[str], object] | None = None,
) -> None:
    """Serve a page over a whole finished set to this machine, until interrupted (Ctrl-C).

    Args:
        target: a built folder, here or on a store, or the id of a repository on the Hub; of the
            latter two no more is fetched than is looked at, and the columns without pictures.
        port: on 127.0.0.1; 0 takes a free one.
        open_browser: whether to open the page in the browser of this machine.
        flags: the CSV file that flags are kept in, one for any number of sets.
        revision: of the repository; its main branch by default.
        token: for the Hub; by default the one of `hf auth login`.
        report: called with the address of the page; by default it is printed.

    Raises:
        NotABuildError: the target is neither a finished build nor such a repository, or a file of
            it is missing.
        OutputError: `flags` is another file.
        FgbgError: the Hub cannot be read, or the port is taken.
    """
    with serving(target, port=port, flags=flags, revision=revision, token=token) as url:
        try:
            (report or _print)(url)
            if open_browser:
                webbrowser.open(url)
            threading.Event().wait()
        except KeyboardInterrupt:
            return


def _print(url: str) -> None:
    print(f"{url} (Ctrl-C ends it)")  # noqa: T201 - called from Python, there is no other place
