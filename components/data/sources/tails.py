"""Detects compressed image data that ends too early: decoders silently fill in lost pixels.

JPEG has no checksum, but exactly one length: a decoder needs every byte up to the end marker and none after it. The
file is therefore passed to the decoder in steps around its end. How far it was read shows what is wrong: too little if
zeros, text or other bytes replace pixels, too much if an end marker comes too early.
PNG has a checksum for every chunk of pixels, which Pillow's decoder does not check.
BMP, WebP and TIFF without compression contain nothing that would contradict a filled tail.
"""

import io
import re
import zlib
from typing import IO

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SLACK = 16  # bytes: decoders read up to 8 ahead; some encoders pad
PADDING = 64  # zeros inserted before the end marker, by which reading too far is detected
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither a stuffed 255 nor a restart marker
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
ZEROS = 32  # zero bytes in a row; encoders write at most 4, also for flat, dotted and tiled pictures
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2  # kinds of frame with Huffman codes
LONE = (0x01, *range(0xD0, 0xDA))  # markers without a length
EARLY, LATE = "pixels that end before their data do", "data that end before their pixels do"
GAP = "pixels with a gap"


class Jpeg(io.BytesIO):
    """A JPEG that Pillow reads; afterwards `find_loss` says what the reading showed."""

    def __init__(self, content: bytes) -> None:
        self.loss, start, end = _parse(content)
        self.end, self.cut = end, max(start, end - SLACK)
        if not end:
            super().__init__(content)
        else:
            closing = b"\0" * PADDING + b"\xff\xd9" if content[end : end + 1] else b""
            super().__init__(content[:end] + closing)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most to the next step around the end of the pixels."""
        at = self.tell()
        size = -1 if size is None else size
        for stop in (self.cut, self.end + SLACK) if self.end else ():
            if at < stop and (size < 0 or at + size > stop):
                return super().read(stop - at)
        return super().read(size)

    def find_loss(self) -> str | None:
        """What is wrong with the pixels, or None; to be called after they were decoded."""
        if not self.end or self.loss:
            return self.loss
        read = self.tell()
        return EARLY if read <= self.cut else LATE if read > self.end + SLACK else None


def find_bad_checksum(source: IO[bytes]) -> str | None:
    """What is wrong with the first chunk of a PNG's pixels whose bytes do not fit its checksum; None if all fit."""
    if source.read(len(PNG)) != PNG:
        return None
    while len(head := source.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind in (b"IDAT", b"fdAT"):
            checksum = zlib.crc32(kind)
            while size > 0 and (piece := source.read(min(size, 1 << 20))):
                checksum, size = zlib.crc32(piece, checksum), size - len(piece)
            if size or checksum.to_bytes(4, "big") != source.read(4):
                return "pixels that do not fit their checksum"
        elif kind == b"IEND":
            return None
        else:
            source.seek(size + 4, io.SEEK_CUR)
    return None


def _parse(content: bytes) -> tuple[str | None, int, int]:
    """What the file's structure shows to be lost, and where the pixels of the only scan begin and end.

    Both are 0 if following the reading would show nothing: decoders read a file with several scans to its last byte.
    """
    frame, at, components, scans = 0, 2, b"", list[tuple[bytes, ...]]()
    while at + 4 <= len(content) and content[at] == 0xFF:
        kind = content[at + 1]
        if kind == 0xFF or kind in LONE:
            if kind == 0xD9:
                break
            at += 1 if kind == 0xFF else 2
            continue
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        segment, at = content[at + 4 : at + 2 + length], at + 2 + length
        if kind in (*SEQUENTIAL, PROGRESSIVE):
            frame, components = kind, segment[6::3]
        elif kind == 0xDA and not frame:
            return None, 0, 0  # arithmetic or lossless coding, which decoders cannot read in steps
        elif kind == 0xDA:
            found, start = MARKER.search(content, at), at
            at = found.start() if found else len(content)
            scans.append(_describe_scan(segment))
            if _has_gap(content[start:at], scans[-1]):
                return GAP, 0, 0
            if frame != PROGRESSIVE and len(scans[0][0]) == len(components):
                return None, start, at
    return (LATE if frame and scans and not _are_complete(frame, components, scans) else None), 0, 0


def _has_gap(data: bytes, scan: tuple[bytes, ...]) -> bool:
    """Whether a scan lost data: restart markers out of order, or zeros in a progressive scan, where no code is 0."""
    _, facts = scan
    restarts = RESTART.findall(data)
    counted = all(found[1] == 0xD0 + number % 8 for number, found in enumerate(restarts))
    return not counted or (facts[:1] > b"\0" and b"\0" * ZEROS in data)


def _describe_scan(segment: bytes) -> tuple[bytes, ...]:
    """The components of a scan's header, and its first and last coefficient with the bits that are still to come."""
    count = segment[0] if segment else 0
    return segment[1 : 1 + 2 * count : 2], segment[1 + 2 * count : 4 + 2 * count]


def _are_complete(frame: int, components: bytes, scans: list[tuple[bytes, ...]]) -> bool:
    """Whether the scans together bring the last bit of every coefficient of every component."""
    missing = {(component, place) for component in components for place in range(64 if frame == PROGRESSIVE else 1)}
    for names, facts in scans:
        if len(facts) == 3 and facts[2] & 15 == 0:
            last = facts[1] if frame == PROGRESSIVE else 0
            missing -= {(name, place) for name in names for place in range(facts[0], last + 1)}
    return not missing
