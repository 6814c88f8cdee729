"""Pictures in, prepared sources out."""

from builder.sources.credits import license_counts, uncredited
from builder.sources.decode import Kind
from builder.sources.licenses import conflicts, terms
from builder.sources.prepare import (
    PreparedFolder,
    Source,
    SourceBank,
    demo_folders,
    duplicates,
    prepare,
)
from builder.sources.scan import refuse_overlap, scan
from builder.sources.stored import read_sources, stored_columns, write_sources

__all__ = [
    "Kind",
    "PreparedFolder",
    "Source",
    "SourceBank",
    "conflicts",
    "demo_folders",
    "duplicates",
    "license_counts",
    "prepare",
    "read_sources",
    "refuse_overlap",
    "scan",
    "stored_columns",
    "terms",
    "uncredited",
    "write_sources",
]
