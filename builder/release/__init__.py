"""What is made from a finished set, and read from nothing else: card, page, publication, checks."""

from builder.release.access import Folder, Repo, Stored, open_place
from builder.release.browse import browse
from builder.release.card import write_card
from builder.release.ground_sheet import ground_sheet
from builder.release.preview import LUT, TABLE_RECORDS, DepthScale, write_preview
from builder.release.publish import Publication, PushPlan, publish
from builder.release.verify import VerifyReport, verify

__all__ = [
    "LUT",
    "TABLE_RECORDS",
    "DepthScale",
    "Folder",
    "Publication",
    "PushPlan",
    "Repo",
    "Stored",
    "VerifyReport",
    "browse",
    "ground_sheet",
    "open_place",
    "publish",
    "verify",
    "write_card",
    "write_preview",
]
