"""Names of licenses as people write them, and which license allows which."""

from __future__ import annotations

import pytest

from builder.pinned import SourceEntry
from builder.sources.licenses import (
    Terms,
    conflict,
    conflicts,
    terms,
    unclear_weights,
    weights_conflict,
)

FREE, CREDIT = Terms(), Terms(credit=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CC0-1.0", FREE),
        ("cc0", FREE),
        ("CC 0", FREE),
        ("Public Domain", FREE),
        ("https://creativecommons.org/publicdomain/zero/1.0/", FREE),
        ("PDDL-1.0", FREE),
        ("CC BY 4.0", CREDIT),
        ("cc-by-4.0", CREDIT),
        ("Creative Commons Attribution 4.0 International", CREDIT),
        ("MIT", CREDIT),
        ("The MIT License", CREDIT),
        ("Apache-2.0", CREDIT),
        ("CC-BY-NC-4.0", Terms(True, non_commercial=True)),
        ("bria-rmbg-2.0", Terms(True, non_commercial=True)),
        ("PolyForm-Noncommercial-1.0.0", Terms(True, non_commercial=True)),
        ("Model license (non-commercial use)", Terms(True, non_commercial=True)),
        ("https://creativecommons.org/licenses/by-sa/3.0/", Terms(True, same="cc-by-sa")),
        (
            "Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International",
            Terms(True, non_commercial=True, same="cc-by-nc-sa"),
        ),
        ("ODbL-1.0", Terms(True, same="odbl")),
        ("GPL-3.0-only", Terms(True, same="gpl")),
    ],
)
def test_names_are_understood(name: str, expected: Terms) -> None:
    assert terms(name) == expected


@pytest.mark.parametrize("name", ["Unsplash License", "mitsubishi", "cc", "ask Ann", "", "BYOB"])
def test_other_names_tell_nothing(name: str) -> None:
    assert terms(name) is None
    assert conflict(name, "cc-by-4.0") is None


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("CC BY-ND 4.0", "no derivatives"),
        ("cc-by-nc-nd-4.0", "no derivatives"),
        ("All rights reserved", "all rights reserved"),
        ("© Ann", "all rights reserved"),
        ("proprietary", "all rights reserved"),
        ("unknown", "unknown terms"),
    ],
)
@pytest.mark.parametrize("chosen", [None, "cc-by-nc-nd-4.0", "mit", "other"])
def test_some_forbid_every_set(name: str, word: str, chosen: str | None) -> None:
    assert word in str(conflict(name, chosen))


CHOICES = (None, "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "odbl",
           "mit", "other", "unknown")  # fmt: skip


@pytest.mark.parametrize(
    ("source", "allowed"),
    [
        ("CC0-1.0", set(CHOICES)),
        ("CC BY 4.0", set(CHOICES) - {"cc0-1.0"}),
        ("CC BY-SA 4.0", {"cc-by-sa-4.0"}),
        ("CC BY-NC 4.0", {"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
        ("CC BY-NC-SA 4.0", {"cc-by-nc-sa-4.0"}),
        ("ODbL", {"odbl"}),
    ],
)
def test_what_a_source_allows(source: str, allowed: set[str | None]) -> None:
    assert {chosen for chosen in CHOICES if conflict(source, chosen) is None} == allowed


@pytest.mark.parametrize(
    ("weights", "allowed"),
    [
        ("", set(CHOICES)),
        ("apache-2.0", set(CHOICES)),
        # The network's output is no work derived of its weights.
        ("cc-by-4.0", set(CHOICES)),
        ("cc-by-sa-4.0", set(CHOICES)),
        ("cc-by-nd-4.0", set(CHOICES)),
        ("agpl-3.0", set(CHOICES)),
        ("openrail", set(CHOICES)),
        ("unknown", set(CHOICES)),
        # Whoever runs it for a commercial set uses it commercially.
        ("cc-by-nc-4.0", {"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
        ("cc-by-nc-nd-4.0", {"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
        ("bria-rmbg-1.4", {"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
        ("mit + cc-by-nc-4.0", {"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
        ("mit + apache-2.0", set(CHOICES)),
        ("apache-2.0, all rights reserved", set()),
        ("All rights reserved", set()),
    ],
)
def test_what_weights_allow(weights: str, allowed: set[str | None]) -> None:
    assert {chosen for chosen in CHOICES if weights_conflict(weights, chosen) is None} == allowed


def entry(name: str, license: str, **fields: str) -> SourceEntry:
    return SourceEntry(id=name, file=f"{name}.png", sha256="0" * 64, width=1, height=1,
                       source_width=1, source_height=1, license=license, **fields)  # fmt: skip


def test_weights_of_unclear_terms_are_named_once_each() -> None:
    given = [("a/b", "mit"), ("a/c", "openrail"), ("a/c", "openrail"), ("a/d", ""), ("", "")]
    entries = [entry("x", "", weights=name, weights_license=text) for name, text in given]
    assert unclear_weights(entries) == ["a/c (openrail)", "a/d (no license stated)"]
    for text in ("unknown", "mit + unknown", "openrail + mit"):
        one = entry("x", "", weights="a/e", weights_license=text)
        assert unclear_weights([one]) == [f"a/e ({text})"]


def test_conflicts_are_grouped_by_reason() -> None:
    kinds = (
        ("foregrounds", (entry("a", "CC BY-ND 4.0"), entry("b", ""), entry("c", "CC BY 4.0"))),
        ("backgrounds", (entry("a", "CC BY-ND 4.0"),)),
    )
    found = conflicts(kinds, "cc-by-4.0")
    assert list(found.values()) == [["foregrounds/a.png", "backgrounds/a.png"]]
    assert next(iter(found)).startswith("CC BY-ND 4.0, no derivatives")
