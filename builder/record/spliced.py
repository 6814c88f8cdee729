"""JPEGs of composites that take most of their bits from the background's, coded before.

A baseline JPEG is one stream of bits, in which a row of blocks depends on the row above only by the
DC values of its last block (ITU T.81, F.1.2.1). So of a picture that differs from another one in
some rows of blocks, those are coded, with one row more on each side, and the other bits are copied.
The result is, to the byte, what coding the whole picture gives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

BLOCK_PX = 8
_TABLES = (0, 1, 1)  # of the three channels
_GREY = 128  # the level whose DC value is 0
_DCs = tuple[int, ...]  # of the three channels
_ZERO = (0, 0, 0)


class Spliced:
    """A picture's JPEG, ready to lend its rows of blocks.

    Args:
        pixels: (H, W, 3) uint8; sides are multiples of 8 px.
        encode: makes the JPEG of such a picture: baseline, 4:4:4, with the same tables for all.
    """

    def __init__(self, pixels: Pixels, encode: Callable[[Pixels], bytes]) -> None:
        self._encode = encode
        self.jpeg = encode(pixels)
        start = self.jpeg.index(b"\xff\xda")
        self._head = self.jpeg[: start + 2 + int.from_bytes(self.jpeg[start + 2 : start + 4])]
        data = self._data(self.jpeg)
        self._bits, self._n_bits = int.from_bytes(data), 8 * len(data)
        self._rows = [pixels[top : top + BLOCK_PX] for top in range(0, len(pixels), BLOCK_PX)]
        self._flat = np.full_like(self._rows[0], _GREY)
        tables = _tables(self._head)

        def n_dc(values: _DCs, before: _DCs) -> int:
            steps = [abs(a - b).bit_length() for a, b in zip(values, before, strict=True)]
            return sum(size[step] + step for size, step in zip(tables.dc, steps, strict=True))

        first, last = (
            _dcs(self._data(encode(np.ascontiguousarray(column))), tables, len(self._rows))
            for column in (pixels[:, :BLOCK_PX], pixels[:, -BLOCK_PX:])
        )
        # Of a flat row below each row, all is known but what its first block's DC takes.
        n_columns = pixels.shape[1] // BLOCK_PX
        ends = sum(lengths[0] for lengths in tables.ac)
        flat = n_columns * ends + (n_columns - 1) * n_dc(_ZERO, _ZERO)
        self._n_flat = [flat + n_dc(_ZERO, dc) for dc in last]
        # How many bits each row takes at the top of a picture, and where it begins in this one.
        self._n_alone: list[int] = []
        self._offsets = [0]
        for row, own, before, n_flat in zip(
            self._rows, first, [_ZERO, *last], self._n_flat, strict=False
        ):
            self._n_alone.append(self._before_flat(np.concatenate([row, self._flat]), n_flat)[2])
            n_own = self._n_alone[-1] - n_dc(own, _ZERO) + n_dc(own, before)
            self._offsets.append(self._offsets[-1] + n_own)

    def _data(self, jpeg: bytes) -> bytes:
        return jpeg[len(self._head) : -2].replace(b"\xff\x00", b"\xff")

    def _before_flat(self, pixels: Pixels, n_flat: int) -> tuple[bytes, int, int]:
        """Return the JPEG of a picture, and its bits but for those of the flat row at its end."""
        jpeg = self._encode(pixels)
        data = self._data(jpeg)
        bits = int.from_bytes(data)
        # A flat row ends in zeros, so all ones at the end are what fills the last byte.
        n_rest = (~bits & (bits + 1)).bit_length() - 1 + n_flat
        return jpeg, bits >> n_rest, 8 * len(data) - n_rest

    def with_rows(self, pixels: Pixels, first: int, stop: int) -> tuple[bytes, bytes, int]:
        """Return the JPEG of a picture that differs in rows of blocks [first, stop) alone.

        Its last block, at the lower right, must be as it was.

        Returns:
            That JPEG, one in which these rows were coded, and the px row there where they begin.
        """
        above, end = min(first, 1), min(stop + 1, len(self._rows))
        rows = pixels[BLOCK_PX * (first - above) : BLOCK_PX * end]
        jpeg, bits, n_bits = self._before_flat(
            np.concatenate([rows, self._flat]), self._n_flat[end - 1]
        )
        if above:
            n_bits -= self._n_alone[first - 1]
            bits &= (1 << n_bits) - 1
        n_before, n_after = self._offsets[first], self._offsets[-1] - self._offsets[end]
        whole = self._bits >> (self._n_bits - n_before) << n_bits | bits
        after = self._bits >> (self._n_bits - self._offsets[-1]) & ((1 << n_after) - 1)
        whole = whole << n_after | after
        n_whole = n_before + n_bits + n_after
        fill = -n_whole % 8
        whole = ((whole + 1) << fill) - 1
        coded = whole.to_bytes((n_whole + fill) // 8).replace(b"\xff", b"\xff\x00")
        return b"".join((self._head, coded, b"\xff\xd9")), jpeg, BLOCK_PX * above


class _Tables(NamedTuple):
    """Huffman tables, a channel each: how many bits DC and AC symbols take, and what codes mean.

    A code is looked up by the 16 bits that begin with it: its length, and its symbol.
    """

    dc: list[dict[int, int]]
    ac: list[dict[int, int]]
    dc_codes: list[list[tuple[int, int]]]
    ac_codes: list[list[tuple[int, int]]]


@lru_cache(8)
def _tables(head: bytes) -> _Tables:
    found, at = {}, 2
    while at < len(head):
        kind, stop = head[at + 1], at + 2 + int.from_bytes(head[at + 2 : at + 4])
        at += 4
        while kind == 0xC4 and at < stop:
            counts, symbols = head[at + 1 : at + 17], iter(head[at + 17 :])
            found[head[at] >> 4, head[at] & 15] = [
                (n, next(symbols)) for n, count in enumerate(counts, 1) for _ in range(count)
            ]
            at += 17 + sum(counts)
        at = stop
    lengths, codes = {}, {}
    for key, table in found.items():
        lengths[key] = {symbol: n for n, symbol in table}
        codes[key] = [code for code in table for _ in range(1 << (16 - code[0]))]
    return _Tables(
        [lengths[0, table] for table in _TABLES],
        [lengths[1, table] for table in _TABLES],
        [codes[0, table] for table in _TABLES],
        [codes[1, table] for table in _TABLES],
    )


def _dcs(data: bytes, tables: _Tables, n_rows: int) -> list[_DCs]:
    """Read the DC values of the blocks of a picture one block wide."""
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data + bytes(4), np.uint8), 4)
    words = np.ascontiguousarray(windows).view(">u4")[:, 0].tolist()
    values, last, at = [], list(_ZERO), 0
    for _ in range(n_rows):
        for channel, (dc, ac) in enumerate(zip(tables.dc_codes, tables.ac_codes, strict=True)):
            length, size = dc[words[at >> 3] >> (16 - (at & 7)) & 65535]
            at += length
            if size:
                step = words[at >> 3] >> (32 - size - (at & 7)) & ((1 << size) - 1)
                last[channel] += step if step >> (size - 1) else step - (1 << size) + 1
                at += size
            coefficient = 1
            while coefficient < BLOCK_PX**2:
                length, symbol = ac[words[at >> 3] >> (16 - (at & 7)) & 65535]
                at += length + (symbol & 15)
                coefficient = coefficient + (symbol >> 4) + 1 if symbol else BLOCK_PX**2
        values.append(tuple(last))
    return values
