"""Event files as TensorBoard reads them."""

from __future__ import annotations

import struct

from limner.formats.event_file import crc32c, record


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, appendix B.4


def test_a_record_is_framed() -> None:
    framed = record(b"abc")
    assert len(framed) == 8 + 4 + 3 + 4
    assert struct.unpack("<Q", framed[:8]) == (3,) and framed[12:15] == b"abc"
