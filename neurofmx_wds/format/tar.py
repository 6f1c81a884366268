"""The members of a tar: every format that Python's tarfile reads, parsed without believing any size.

tarfile itself is not used: it stops without a word where a header is damaged or a second tar follows, reads extended
headers of any size, and took exponential time over some (CVE-2024-6232). Knows nothing of samples.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import ShardError

BLOCK = 512
FILES = (b"0", b"\0", b"7")
LINK, SYMLINK, DIRECTORY, SPARSE = b"1", b"2", b"5", b"S"
_WITHOUT_DATA = (LINK, SYMLINK, b"3", b"4", DIRECTORY, b"6")
_LONG_NAME, _LONG_LINK = b"L", b"K"
_GLOBAL = b"g"
_EXTENDED = (b"x", b"X", _GLOBAL, _LONG_NAME, _LONG_LINK)
_MAX_HEADER = 1 << 20  # bytes of an extended header: a name, or records
_ZEROS = bytes(BLOCK)
_STEP = 1 << 20

Piece = tuple[int, int, int]  # place in the file, place in the tar, bytes


class Member(NamedTuple):
    """One member of a tar.

    Attributes:
        name: its path.
        kind: its type flag; `FILES`, `SPARSE` and links stand for data.
        offset: where its payload begins in the tar.
        size: bytes of the file that it stands for.
        link: what a link points to; kept when the link has been followed.
        pieces: of a sparse file, what is stored of it; the rest is zeros.
    """

    name: str
    kind: bytes
    offset: int
    size: int
    link: str = ""
    pieces: tuple[Piece, ...] | None = None


def read_members(tar: mmap.mmap | bytes) -> Iterator[Member]:
    """Yield the members of a tar in order, also of further tars that were appended to it.

    Args:
        tar: its bytes, unpacked.

    Raises:
        ShardError: not a tar, cut short, or with bytes behind its end that are no tar.

    Example:
        >>> import io, tarfile
        >>> stream = io.BytesIO()
        >>> with tarfile.open(fileobj=stream, mode="w") as tar:
        ...     tar.addfile(tarfile.TarInfo("trial7.label.cls"))
        >>> [(member.name, member.offset, member.size) for member in read_members(stream.getvalue())]
        [('trial7.label.cls', 512, 0)]
    """
    place = 0
    ended = pending = False  # whether an end mark stands before this place, or an extended header
    shared: dict[str, str] = {}  # what global headers say of all members behind them
    extended: dict[str, str] = {}  # what extended headers say of the next member
    while place < len(tar):
        header = tar[place : place + BLOCK]
        if header == _ZEROS and not pending:
            place, ended = _after_end(tar, place), True
            continue
        _check_header(header, place)
        kind, size, start = header[156:157], _number(header[124:136]), place + BLOCK
        if kind in _EXTENDED:
            records = _extended_header(kind, _extended_payload(tar, start, size))
            if kind == _GLOBAL:
                shared |= records
            else:
                extended, pending = records | extended, True  # of several, the first counts
            place = start + size + -size % BLOCK
            continue
        member, place = _member(tar, header, start, shared | extended if shared else extended)
        extended, ended, pending = {}, False, False
        yield member
    if pending or not ended:
        raise ShardError("the tar has no end mark, so samples may be missing: it is cut short")


def header_stands_at(before: bytes, name: str | None, size: int) -> bool:
    """Whether the bytes before a payload end with the header of a member of this name and size.

    Args:
        before: as many bytes as there are, up to some kilobytes.
        name: the member's name; None if it may be another.
        size: the payload's size.
    """
    header = before[-BLOCK:]
    try:
        _check_header(header, 0)
        plain = _name(header)
        fits = size >= 8**11 or _number(header[124:136]) == size
    except ShardError:
        return False
    if name is None:
        return fits
    wanted = name.encode("utf-8", "surrogateescape").lower()
    told = b"path=" + wanted + b"\n", wanted + b"\0"  # in an extended header in front of it
    return fits and (plain.lower() == name.lower() or any(each in before[:-BLOCK].lower() for each in told))


def _check_header(header: bytes, place: int) -> None:
    """Compare a header with its checksum, of unsigned bytes or, in old tars, of signed ones."""
    if len(header) == BLOCK and header != _ZEROS:
        total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        with contextlib.suppress(ShardError):  # there is no number
            if _number(header[148:156]) in (total, signed):
                return
    if place == 0:
        raise ShardError("not a readable tar: it does not begin with the header of a member")
    raise ShardError(f"at byte {place} stands neither a tar member nor the end mark, so samples may be missing")


def _after_end(tar: mmap.mmap | bytes, place: int) -> int:
    """Return where the next tar begins behind an end mark, or where the file ends."""
    for start in range(place, len(tar), _STEP):
        rest = tar[start : start + _STEP].lstrip(b"\0")
        if rest:
            found = min(start + _STEP, len(tar)) - len(rest)
            found -= found % BLOCK
            try:
                _check_header(tar[found : found + BLOCK], found)
            except ShardError as error:
                problem = f"bytes follow the end mark, from byte {found} on, that are no tar, so samples may be missing"
                raise ShardError(problem) from error
            return found
    return len(tar)


def _member(tar: mmap.mmap | bytes, header: bytes, start: int, records: dict[str, str]) -> tuple[Member, int]:
    """Return the member of a header, and where the next header stands."""
    kind = header[156:157]
    name = records.get("path", "").rstrip("/") or _name(header)
    if kind == b"\0" and name.endswith("/"):
        kind = DIRECTORY  # as tars before POSIX told it
    if kind in _WITHOUT_DATA:
        link = records.get("linkpath") or _text(header[157:257])
        return Member(name.rstrip("/") if kind == DIRECTORY else name, kind, start, 0, link), start
    stored = _decimal(records["size"]) if "size" in records else _number(header[124:136])
    size, end, pieces = stored, start + stored, None
    if kind == SPARSE:
        pieces, size, start = _old_sparse(tar, header, start)
        end = start + stored
    elif kind in FILES and any(record.startswith("GNU.sparse.") for record in records):
        name = records.get("GNU.sparse.name", name)
        pieces, size, start = _pax_sparse(tar, start, records)
    if end > len(tar) or start > end:
        raise ShardError(f"the tar is cut short inside {name[:200]!r}")
    placed = None if pieces is None else _placed(pieces, start, end, size)
    if placed is not None and sum(n for *_, n in placed) == size:  # without holes
        placed = None
    return Member(name, kind, start, size, "", placed), min(end + -end % BLOCK, len(tar))


def _name(header: bytes) -> str:
    """Return the name in a header, with the prefix that a longer one has."""
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[156:157] != SPARSE else ""
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """Return the number in a header's field: octal digits, or, behind a marked first byte, binary."""
    if field[0] in (0o200, 0o377):
        value = int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0o377 else 0)
    else:
        try:
            value = int(field.partition(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            value = -1
    if value < 0:
        raise ShardError("a tar header claims a negative size or none")
    return value


def _decimal(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ShardError("an extended tar header claims an impossible size")
    return int(text)


def _extended_payload(tar: mmap.mmap | bytes, start: int, size: int) -> bytes:
    if size > _MAX_HEADER:
        raise ShardError(f"a tar member has an extended header of {size} bytes, more than {_MAX_HEADER}")
    if start + size > len(tar):
        raise ShardError("the tar is cut short inside the headers of a member")
    return bytes(tar[start : start + size])


def _extended_header(kind: bytes, payload: bytes) -> dict[str, str]:
    """Return what an extended header says: a long name, or PAX records."""
    if kind in (_LONG_NAME, _LONG_LINK):
        return {"path" if kind == _LONG_NAME else "linkpath": _text(payload)}
    records: dict[str, str] = {}
    place = 0
    while place < len(payload) and payload[place]:
        digits, found, _ = payload[place : place + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = payload[place : place + length]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not (found and equals and record.endswith(b"\n") and len(record) == length):
            raise ShardError("a tar member has a damaged PAX header")
        _add_record(records, keyword, value.decode("utf-8", "surrogateescape"))
        place += length
    return records


def _add_record(records: dict[str, str], keyword: bytes, value: str) -> None:
    """Keep a record if it is needed; those of sparse format 0.0 come once for each piece."""
    if keyword in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
        pieces = records.get("GNU.sparse.map")
        records["GNU.sparse.map"] = value if pieces is None else f"{pieces},{value}"
    elif keyword in (b"path", b"linkpath", b"size") or keyword.startswith(b"GNU.sparse."):
        records[keyword.decode("utf-8", "surrogateescape")] = value


def _old_sparse(tar: mmap.mmap | bytes, header: bytes, start: int) -> tuple[list[tuple[int, int]], int, int]:
    """Return pieces, real size and start of the data of a sparse file in GNU's old format."""
    pieces = _sparse_entries(header, 386, 4)
    more = header[482]
    while more:
        block = tar[start : start + BLOCK]
        if len(block) < BLOCK:
            raise ShardError("the tar is cut short inside the headers of a member")
        pieces += _sparse_entries(block, 0, 21)
        more, start = block[504], start + BLOCK
    return pieces, _number(header[483:495]), start


def _sparse_entries(block: bytes, place: int, count: int) -> list[tuple[int, int]]:
    fields = [block[place + 12 * i : place + 12 * i + 12] for i in range(2 * count)]
    numbers = [_number(field) for field in fields]
    return [(at, n) for at, n in zip(numbers[::2], numbers[1::2], strict=True) if n]


def _pax_sparse(tar: mmap.mmap | bytes, start: int, records: dict[str, str]) -> tuple[list[tuple[int, int]], int, int]:
    """Return the same of a sparse file in one of the formats that PAX headers tell."""
    size = records.get("GNU.sparse.realsize") or records.get("GNU.sparse.size") or ""
    if records.get("GNU.sparse.major") == "1":
        numbers, start = _sparse_map(tar, start)
    else:
        text = records.get("GNU.sparse.map", "")
        numbers = [_decimal(number) for number in text.split(",")] if text else []
    if len(numbers) % 2:
        raise ShardError("a sparse tar member has a damaged map")
    return list(zip(numbers[::2], numbers[1::2], strict=True)), _decimal(size), start


def _sparse_map(tar: mmap.mmap | bytes, start: int) -> tuple[list[int], int]:
    """Return the numbers that stand, a line each, in front of the data, and where the data begin."""
    text = b""
    lines: list[bytes] = []
    while not lines or len(lines) <= 2 * _decimal(lines[0].decode("ascii", "replace")):
        block = tar[start : start + BLOCK]
        start += BLOCK
        if len(block) < BLOCK or len(lines) > _MAX_HEADER:
            raise ShardError("a sparse tar member has a damaged map")
        *whole, text = (text + block).split(b"\n")
        lines += whole
    count = 2 * int(lines[0])
    return [_decimal(line.decode("ascii", "replace")) for line in lines[1 : count + 1]], start


def _placed(pieces: list[tuple[int, int]], start: int, end: int, size: int) -> tuple[Piece, ...]:
    """Return where each piece lies; they must follow each other, in the file and in the tar."""
    placed: list[Piece] = []
    last = 0
    for at, n in pieces:
        if at < last or at + n > size or start + n > end:
            raise ShardError("a sparse tar member has a damaged map")
        placed.append((at, start, n))
        last, start = at + n, start + n
    return tuple(placed)
