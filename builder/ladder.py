"""The sizes a foreground is prepared at: a ladder of quarter octaves. Integers only."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

N_LEVELS = 12
OCTAVE = 64  # steps of the table of powers of two
_ONE = 1 << 16

# 2^(i / 64) in units of 2^-16, in decimal arithmetic: equal on every machine.
_POWERS = tuple(
    int((Decimal(2) ** (Decimal(i) / OCTAVE) * _ONE).to_integral_value()) for i in range(OCTAVE)
)


def power_of_two(sixty_fourths: int) -> int:
    """Return 2^(n / 64) in units of 2^-16."""
    octaves, rest = divmod(sixty_fourths, OCTAVE)
    return _POWERS[rest] << octaves if octaves >= 0 else _POWERS[rest] >> -octaves


def ladder(longest: int) -> tuple[int, ...]:
    """Return the longer sides in px of a ladder: 12 sizes a quarter octave apart, largest first."""
    return tuple(
        max(2, (longest * power_of_two(-16 * level) + _ONE // 2) // _ONE)
        for level in range(N_LEVELS)
    )


def level_size(width: int, height: int, level: int) -> tuple[int, int]:
    """Return width and height in px of a foreground at a level; level 0 is width x height."""
    longest = max(width, height)
    side = ladder(longest)[level]
    w, h = (max(1, (2 * n * side + longest) // (2 * longest)) for n in (width, height))
    return w, h


def nearest_level(sides: Sequence[int], wanted: int) -> int:
    """Return the level whose longer side is nearest to a size, on a logarithmic scale.

    Args:
        sides: of the ladder, largest first.
        wanted: in units of 2^-16 px.
    """
    level = 0
    # Below the geometric mean of two sides the smaller one is nearer.
    while level + 1 < len(sides) and wanted * wanted < (sides[level] * sides[level + 1]) << 32:
        level += 1
    return level
