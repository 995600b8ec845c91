"""What goes into a dataset and comes out of it: sources, sinks, and the kinds of content."""

from labmesh.content.kinds import (
    FILE_KINDS,
    KINDS,
    Packed,
    array_dtype,
    kind_of_file,
    packed,
    suffix_of,
    unpacked,
    unpacked_file,
)
from labmesh.content.sinks import FileSink, MemorySink, Sink
from labmesh.content.sources import Content, Piece, Source, open_source

__all__ = [
    "FILE_KINDS",
    "KINDS",
    "Content",
    "FileSink",
    "MemorySink",
    "Packed",
    "Piece",
    "Sink",
    "Source",
    "array_dtype",
    "kind_of_file",
    "open_source",
    "packed",
    "suffix_of",
    "unpacked",
    "unpacked_file",
]
