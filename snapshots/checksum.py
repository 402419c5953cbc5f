"""The checksum of everything stored here."""

from hashlib import sha256

__all__ = ["CHECKSUM_BYTES", "checksum"]

CHECKSUM_BYTES = 16  # no damage goes unseen; not meant against forgery


def checksum(*parts: bytes | memoryview) -> bytes:
    """The first half of the SHA-256 of the parts in a row.

    Measured on 100 MB: 1.6 GB/s with SHA instructions, where blake2b has 0.85 and md5 0.68.
    """
    state = sha256()
    for part in parts:
        state.update(part)
    return state.digest()[:CHECKSUM_BYTES]
