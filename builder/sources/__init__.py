"""Pictures in, prepared sources out."""

from builder.sources.backdrop import Backdrop, DepthBy, Given
from builder.sources.companions import companion_of
from builder.sources.credits import (
    Credit,
    credit_rows,
    license_counts,
    read_credits,
    uncredited,
)
from builder.sources.decode import Kind, LargeImageError, decode, focal_length_35mm
from builder.sources.ground import label_parts
from builder.sources.licenses import check_license_id, conflicts, terms, unclear_weights
from builder.sources.prepare import (
    PreparedFolder,
    Source,
    SourceBank,
    contents,
    demo_folders,
    duplicates,
    prepare,
)
from builder.sources.relief import RELIEF_ONE, RELIEF_ZERO, StoredRelief
from builder.sources.samples import BadImageError
from builder.sources.scan import (
    CREDITS_FILE,
    CUTOUT_REPORT_MARK,
    REPORT_FILE,
    SourceFile,
    name_key,
    refuse_overlap,
    scan,
    unread,
)
from builder.sources.stored import prepared_source, read_sources, stored_columns, write_sources

__all__ = [
    "CREDITS_FILE",
    "CUTOUT_REPORT_MARK",
    "RELIEF_ONE",
    "RELIEF_ZERO",
    "REPORT_FILE",
    "Backdrop",
    "BadImageError",
    "Credit",
    "DepthBy",
    "Given",
    "Kind",
    "LargeImageError",
    "PreparedFolder",
    "Source",
    "SourceBank",
    "SourceFile",
    "StoredRelief",
    "check_license_id",
    "companion_of",
    "conflicts",
    "contents",
    "credit_rows",
    "decode",
    "demo_folders",
    "duplicates",
    "focal_length_35mm",
    "label_parts",
    "license_counts",
    "name_key",
    "prepare",
    "prepared_source",
    "read_credits",
    "read_sources",
    "refuse_overlap",
    "scan",
    "stored_columns",
    "terms",
    "unclear_weights",
    "uncredited",
    "unread",
    "write_sources",
]
