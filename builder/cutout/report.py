"""The report on cut-outs: a page on which a person sees in a minute which to do again."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.Image import Resampling

from builder.cutout.objects import Cutout
from builder.cutout.shapes import grown
from builder.files import replacing
from builder.sources import CUTOUT_REPORT_MARK

_TILE_PX = 220
_QUALITY = 80
_OUTLINE = (255, 0, 160)
# From which a figure says: look at this one.
_LOOK = {"alike": 0.08, "filled": 0.1, "soft": 0.5, "shadow": 0.3, "edge_px": 6.0}
_SAYS = {
    "soft": ("soft edge", "share of its pixels that are partly transparent"),
    "edge_px": ("edge", "width of the edge in px"),
    "holes": ("holes", "holes left open"),
    "parts": ("parts", "parts that do not touch"),
    "filled": ("filled", "share of it that has the background's colour and was kept"),
    "alike": ("edge like background", "share of the edge that has the background's colour"),
    "spill": ("spill", "colour of the background taken out behind the edge, 0 to 255"),
    "shadow": ("shadow", "area of the shadow left out, of the object's"),
    "score": ("score", "how sure the network is of the object, 0 to 1"),
}
_SHARES = ("soft", "filled", "alike", "shadow")


class Card(NamedTuple):
    """What the report shows of a cut-out, or of a photograph that was refused.

    `picture` is a JPEG in base64: three tiles of a cut-out, or the photograph; `depth` one of its
    depth, if there is any.
    """

    photograph: str
    picture: str
    refused: str = ""
    file: str = ""
    size: tuple[int, ...] = ()
    cut_at: str = ""
    edge: str = ""
    figures: Mapping[str, Any] = {}
    depth: str = ""


def thumbnail_of(photograph: Image.Image) -> bytes:
    """Return a small JPEG of a photograph."""
    return _jpeg(_small(photograph))


def strip_of(photograph: Image.Image, cutout: Cutout) -> bytes:
    """Return a JPEG of three tiles: the photograph with the outline, and it on black and white."""
    small = _small(photograph)
    scale = small.width / photograph.width
    height, width = cutout.pixels.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    at = round(cutout.left * scale), round(cutout.top * scale)
    alpha = Image.fromarray(cutout.pixels[..., 3]).resize(size, reducing_gap=2)
    whole = Image.new("L", small.size)
    whole.paste(alpha, at)
    solid = np.asarray(whole) >= 128
    outlined = np.array(small)
    outlined[grown(solid) & ~solid] = _OUTLINE
    fit = min(_TILE_PX / width, _TILE_PX / height)
    fitted = max(1, round(width * fit)), max(1, round(height * fit))
    own = Image.fromarray(cutout.pixels).resize(fitted, Resampling.BILINEAR, reducing_gap=2)
    strip = Image.new("RGB", (3 * _TILE_PX, _TILE_PX), (128, 128, 128))
    strip.paste("black", (_TILE_PX, 0, 2 * _TILE_PX, _TILE_PX))
    strip.paste("white", (2 * _TILE_PX, 0, 3 * _TILE_PX, _TILE_PX))
    strip.paste(
        Image.fromarray(outlined), ((_TILE_PX - small.width) // 2, (_TILE_PX - small.height) // 2)
    )
    for tile in (1, 2):
        left = tile * _TILE_PX + (_TILE_PX - fitted[0]) // 2
        strip.paste(own, (left, (_TILE_PX - fitted[1]) // 2), own)
    return _jpeg(strip)


def depth_tile_of(depth: npt.NDArray[np.uint16]) -> bytes:
    """Return a small JPEG of depth: near bright, far dark, unknown black."""
    step = max(1, max(depth.shape) // _TILE_PX)
    small = depth[::step, ::step].astype(np.float32)
    known = small > 0
    grey = np.zeros(small.shape, np.uint8)
    if known.any():
        near, far = float(small[known].min()), float(small[known].max())
        share = (far - small) / max(far - near, 1.0)
        grey = np.where(known, 40 + 215 * share, 0).astype(np.uint8)
    return _jpeg(Image.fromarray(grey))


def _small(photograph: Image.Image) -> Image.Image:
    scale = _TILE_PX / max(photograph.size)
    size = max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale))
    return photograph.resize(size, Resampling.BILINEAR, reducing_gap=2)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def write_report(path: Path, cards: Iterable[Card]) -> None:
    """Write the report, a card at a time; one page that needs no other file."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(_page(cards))


def _page(cards: Iterable[Card]) -> Iterator[str]:
    yield CUTOUT_REPORT_MARK + _HEAD
    n_made = n_refused = n_look = 0
    for card in cards:
        n_made, n_refused = n_made + (not card.refused), n_refused + bool(card.refused)
        yield _refused(card) if card.refused else _made(card)
        n_look += bool(not card.refused and _doubts(card))
    made = f"{n_made:,} {'cut-out' if n_made == 1 else 'cut-outs'}"
    yield f"</main>\n<p>{made}, {n_look:,} to look at; {n_refused:,} photographs refused.</p>\n"
    yield "</body>\n</html>\n"


def _refused(card: Card) -> str:
    picture = ""
    if card.picture:
        text = html.escape(f"Photograph {card.photograph}")
        picture = f'<img loading="lazy" src="data:image/jpeg;base64,{card.picture}" alt="{text}">'
    return (
        f'<article class="refused">{picture}<h2>{html.escape(card.photograph)}</h2>'
        f"<p><b>Refused:</b> {html.escape(card.refused)}.</p></article>\n"
    )


def _doubts(card: Card) -> list[str]:
    return [name for name, bound in _LOOK.items() if card.figures.get(name, 0) >= bound]


def _made(card: Card) -> str:
    doubts = _doubts(card)
    rows = "".join(
        f'<div title="{html.escape(meaning)}"{" class=look" if name in doubts else ""}>'
        f"<dt>{html.escape(label)}</dt><dd>{_value(name, card.figures[name])}</dd></div>"
        for name, (label, meaning) in _SAYS.items()
        if name in card.figures
    )
    if card.edge:
        rows += f"<div><dt>alpha by</dt><dd>{html.escape(card.edge)}</dd></div>"
    if card.cut_at:
        rows += f'<div class="look"><dt>cut off at</dt><dd>{html.escape(card.cut_at)}</dd></div>'
    text = html.escape(f"{card.photograph}: outline, on black, on white")
    depth = ""
    if card.depth:
        seen = html.escape(f"{card.file}: depth, near bright")
        depth = f'<img loading="lazy" src="data:image/jpeg;base64,{card.depth}" alt="{seen}">'
    size = " x ".join(map(str, card.size))
    return (
        f"<article{' class=doubtful' if doubts or card.cut_at else ''}>"
        f'<img loading="lazy" src="data:image/jpeg;base64,{card.picture}" alt="{text}">'
        f"{depth}<h2>{html.escape(card.file)}</h2>"
        f"<p>{size} px, of {html.escape(card.photograph)}</p>"
        f"<dl>{rows}</dl></article>\n"
    )


def _value(name: str, value: Any) -> str:
    return f"{value:.0%}" if name in _SHARES else f"{value:g}"


_HEAD = """<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cut-outs</title>
<link rel="icon" href="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=">
<style>
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #16181d; --soft: #555b66;
  --line: #dcdfe5; --look: #9a4a00; --bad: #a3123a; }
@media (prefers-color-scheme: dark) { :root { --page: #101216; --card: #191c22; --ink: #eceef2;
  --soft: #a3aab7; --line: #2e333c; --look: #ffb066; --bad: #ff8aa5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 2.5rem); max-width: 100rem;
  background: var(--page); color: var(--ink); font: 0.9375rem/1.45 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.5rem; }
main { display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
article { padding: 0.75rem; border: 1px solid var(--line); border-radius: 0.5rem;
  background: var(--card); min-width: 0; }
article.doubtful { border-color: var(--look); }
article.refused { border-color: var(--bad); }
article.refused b { color: var(--bad); }
img { display: block; max-width: 100%; height: auto; border-radius: 0.25rem; }
h2 { margin: 0.5rem 0 0; font-size: 1rem; overflow-wrap: anywhere; }
p { margin: 0.2rem 0; color: var(--soft); overflow-wrap: anywhere; }
dl { display: flex; flex-wrap: wrap; gap: 0.2rem 0.9rem; margin: 0.4rem 0 0; font-size: 0.8125rem; }
dl div { display: flex; gap: 0.3rem; }
dt { color: var(--soft); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.look dt, .look dd { color: var(--look); font-weight: 600; }
</style>
</head>
<body>
<h1>Cut-outs</h1>
<p>Of each: the photograph with the outline, then the cut-out on black and on white. Refused
photographs come first; an orange frame says which cut-outs to look at, and why.</p>
<main>
"""
