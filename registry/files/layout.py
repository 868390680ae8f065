"""Where the bytes of a file lie: parts of a file, chunks of a part, and their places once sealed. Pure arithmetic.

    file   = part 0 | part 1 | … | last part       every part but the last has `part_bytes` plain bytes
    part   = sealed chunk | sealed chunk | …        one object in the store; chunks are numbered through the whole file

An empty file has no parts.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.sealed_chunks import CHUNK_BYTES, OVERHEAD_BYTES, chunk_count, chunk_size

PART_BYTES = 8 * CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class Layout:
    size_bytes: int
    part_bytes: int = PART_BYTES
    """A multiple of CHUNK_BYTES."""

    @property
    def part_count(self) -> int:
        return -(-self.size_bytes // self.part_bytes)

    @property
    def chunk_count(self) -> int:
        return chunk_count(self.size_bytes)

    @property
    def chunks_per_part(self) -> int:
        return self.part_bytes // CHUNK_BYTES

    def part_size(self, number: int) -> int:
        """Plain bytes of this part."""
        return min(self.part_bytes, self.size_bytes - number * self.part_bytes)

    def sealed_part_size(self, number: int) -> int:
        """Bytes of this part as it is stored."""
        return self.part_size(number) + len(self.chunks_of(number)) * OVERHEAD_BYTES

    def chunks_of(self, number: int) -> range:
        """Indexes of this part's chunks."""
        first = number * self.chunks_per_part
        return range(first, min(first + self.chunks_per_part, self.chunk_count))

    def chunk_size(self, index: int) -> int:
        """Plain bytes of this chunk."""
        return chunk_size(self.size_bytes, index)

    def sealed_chunk_size(self, index: int) -> int:
        return self.chunk_size(index) + OVERHEAD_BYTES

    def part_of(self, chunk: int) -> int:
        """Number of the part that this chunk lies in."""
        return chunk // self.chunks_per_part

    def sealed_offset(self, chunk: int) -> int:
        """Where in its stored part this sealed chunk starts: all before it are of full size."""
        return (chunk % self.chunks_per_part) * (CHUNK_BYTES + OVERHEAD_BYTES)
