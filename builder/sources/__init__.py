"""Pictures in, prepared sources out."""

from builder.sources.backdrop import Backdrop, DepthBy, Given
from builder.sources.credits import license_counts, uncredited
from builder.sources.decode import Kind
from builder.sources.ground import label_parts
from builder.sources.licenses import check_license_id, conflicts, terms
from builder.sources.prepare import (
    PreparedFolder,
    Source,
    SourceBank,
    contents,
    demo_folders,
    duplicates,
    prepare,
)
from builder.sources.scan import refuse_overlap, scan
from builder.sources.stored import prepared_source, read_sources, stored_columns, write_sources

__all__ = [
    "Backdrop",
    "DepthBy",
    "Given",
    "Kind",
    "PreparedFolder",
    "Source",
    "SourceBank",
    "check_license_id",
    "conflicts",
    "contents",
    "demo_folders",
    "duplicates",
    "label_parts",
    "license_counts",
    "prepare",
    "prepared_source",
    "read_sources",
    "refuse_overlap",
    "scan",
    "stored_columns",
    "terms",
    "uncredited",
    "write_sources",
]
