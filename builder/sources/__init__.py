"""Pictures in, prepared sources out."""

from builder.sources.licenses import conflicts, terms
from builder.sources.prepare import (
    Kind,
    PreparedFolder,
    Source,
    SourceBank,
    demo_folders,
    duplicates,
    licence_counts,
    prepare,
    scan,
    uncredited,
)
from builder.sources.stored import read_sources, write_sources

__all__ = [
    "Kind",
    "PreparedFolder",
    "Source",
    "SourceBank",
    "conflicts",
    "demo_folders",
    "duplicates",
    "licence_counts",
    "prepare",
    "read_sources",
    "scan",
    "terms",
    "uncredited",
    "write_sources",
]
