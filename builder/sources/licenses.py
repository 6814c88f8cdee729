"""What the licenses of sources allow, as far as their names say: a small table, not legal advice.

A set hands out its sources, resized, and composites made of them, so both are derived works.
The weights of a network that cut an object out of its photograph are no part of what comes out, so
that whoever runs it makes no derived work of them: their terms on credit, share-alike and
derivatives bind those who hand on the weights, not the set. Their terms of use bind it: nobody may
use weights for a commercial set that may only be used otherwise, or use reserved ones at all.
Names may be identifiers of the Hub (`cc-by-sa-4.0`), of SPDX (`CC-BY-SA-4.0`), as people write
them (`CC BY-SA 4.0`), or links to creativecommons.org.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from builder.errors import CardError
from builder.pinned import SourceEntry
from builder.untrusted import shown


@dataclass(frozen=True)
class Terms:
    """What a license asks for; `same` names the family a derived work must be licensed under."""

    credit: bool = False
    non_commercial: bool = False
    same: str = ""
    forbidden: str = ""  # why nothing derived from it may be handed out


_FREE = Terms()
_CREDIT = Terms(credit=True)
_NO_DERIVATIVES = "no derivatives: a resized picture and a composite are derivatives"
_RESERVED = Terms(forbidden="all rights reserved: it may not be handed on without permission")
_UNKNOWN = Terms(forbidden="unknown terms: nobody has said that it may be handed on")
_NON_COMMERCIAL = Terms(credit=True, non_commercial=True)

# By the start of the name, lower case, words joined by hyphens; Creative Commons is read by parts.
_TABLE = {
    "pddl": _FREE,
    "unlicense": _FREE,
    "public-domain": _FREE,
    "0bsd": _FREE,
    "wtfpl": _FREE,
    "odc-by": _CREDIT,
    "mit": _CREDIT,
    "apache": _CREDIT,
    "bsd": _CREDIT,
    "isc": _CREDIT,
    "odbl": Terms(True, same="odbl"),
    "gfdl": Terms(True, same="gfdl"),
    "gpl": Terms(True, same="gpl"),
    "agpl": Terms(True, same="agpl"),
    "lgpl": Terms(True, same="lgpl"),
    "bria-rmbg": _NON_COMMERCIAL,  # of weights that cut-outs are often made by
    "all-rights-reserved": _RESERVED,
    "copyright": _RESERVED,
    "proprietary": _RESERVED,
    "commercial": _RESERVED,
    "unknown": _UNKNOWN,
}


def check_license_id(text: str) -> None:
    """Check that a text may stand as the license of a card on the Hub.

    Raises:
        CardError: it has another form than identifiers have.
    """
    if not re.fullmatch(r"[a-z0-9]+([.+-][a-z0-9]+)*\+?", text):
        raise CardError(
            f"{shown(text)} is no license identifier of the Hub, such as cc-by-4.0 or mit; `other` "
            "stands for terms that have none."
        )


def terms(name: str) -> Terms | None:
    """Return what a license of this name asks for; None when the name says nothing."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower().replace("©", "copyright")).strip("-")
    words = re.sub(r"^(the|licen[cs]e)-", "", words)
    if found := re.search(r"creativecommons-org-(licenses|publicdomain)-(.*)", words):
        words = f"cc-{found[2]}"
    words = re.sub(r"^creative-commons-?", "cc-", words)
    if words.startswith(("cc-", "cc0")):
        return _creative_commons(words)
    for start, found_terms in _TABLE.items():
        if re.match(rf"{start}(-|\d|$)", words):
            return found_terms
    return _NON_COMMERCIAL if re.search(r"(^|-)non-?commercial(-|$)", words) else None


def _creative_commons(words: str) -> Terms | None:
    long = {
        "attribution": "by",
        "noncommercial": "nc",
        "non-commercial": "nc",
        "noderivatives": "nd",
        "noderivs": "nd",
        "no-derivatives": "nd",
        "sharealike": "sa",
        "share-alike": "sa",
    }
    for text, short in long.items():
        words = words.replace(text, short)
    parts = set(words.split("-"))
    if parts & {"cc0", "zero", "pdm", "mark", "publicdomain"} or re.match(r"cc-0(-|$)", words):
        return _FREE
    if "nd" in parts:
        return Terms(True, "nc" in parts, forbidden=_NO_DERIVATIVES)
    if "by" not in parts and "nc" not in parts and "sa" not in parts:
        return None
    family = "cc-by-nc-sa" if {"nc", "sa"} <= parts else "cc-by-sa" if "sa" in parts else ""
    return Terms(True, "nc" in parts, family)


_COMMERCIAL = "non-commercial: the set must be under a license that forbids commercial use too"


def conflict(source: str, chosen: str | None) -> str | None:
    """Return why a source under one license cannot be in a set under another; None if it can."""
    asked = terms(source)
    if asked is None:
        return None
    if asked.forbidden:
        return asked.forbidden
    given = terms(chosen) if chosen else None
    if asked.same and (given is None or given.same != asked.same):
        return f"share-alike: the set must be under {asked.same} too"
    if asked.non_commercial and (given is None or not given.non_commercial):
        return _COMMERCIAL
    if asked.credit and given == _FREE:
        return "asks for credit, which that license of the set does not"
    return None


def weights_conflict(license: str, chosen: str | None) -> str | None:
    """Return why what some weights made cannot be in a set under a license; None if it can.

    Unlike a source, weights bind a set by their terms of use alone; see above.
    """
    asked, given = _terms_of_each(license), terms(chosen) if chosen else None
    if _RESERVED in asked:
        return "all rights reserved: nobody may use them without permission"
    if any(one and one.non_commercial for one in asked):
        return None if given and given.non_commercial else _COMMERCIAL
    return None


def _terms_of_each(license: str) -> list[Terms | None]:
    """Return the terms of each of several weights, such as `mit + cc-by-nc-4.0`."""
    return [terms(name) for name in re.split(r"\s*[+,;]\s+|\s+and\s+", license)]


def unclear_weights(entries: Iterable[SourceEntry]) -> list[str]:
    """Return the weights that cut-outs were made by whose terms are not known, each once."""
    found = set()
    for entry in entries:
        asked = _terms_of_each(entry.weights_license)
        if entry.weights and (None in asked or _UNKNOWN in asked):
            found.add(f"{entry.weights} ({entry.weights_license or 'no license stated'})")
    return sorted(found)


def conflicts(
    kinds: Iterable[tuple[str, tuple[SourceEntry, ...]]], chosen: str | None
) -> dict[str, list[str]]:
    """Return the files that cannot be in a set under the chosen license, by reason.

    Both the license of a file counts and that of the weights that cut it out.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for kind, entries in kinds:
        for entry in entries:
            if entry.license and (reason := conflict(entry.license, chosen)):
                found[f"{entry.license}, {reason}"].append(f"{kind}/{entry.file}")
            if reason := weights_conflict(entry.weights_license, chosen):
                weights = f"cut out by {entry.weights or 'weights'} under {entry.weights_license}"
                found[f"{weights}, {reason}"].append(f"{kind}/{entry.file}")
    return dict(found)
