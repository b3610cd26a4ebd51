"""Protobuf's wire format, read through a window that slides over the file.

Whatever a length in the file claims, no more than the window is in memory: what is long is passed over unread. Nothing
is looked up in a message type, so a reader decides for itself which fields there may be.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WINDOW = 4096  # bytes
_FIXED_SIZES = {FIXED64: 8, FIXED32: 4}


class WireError(ValueError):
    """The bytes are not protobuf's. The message says where."""


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: of the field.
        kind: VARINT, FIXED64, BYTES or FIXED32.
        value: of a VARINT, as unsigned 64 bits; 0 for the other kinds.
        start: where the field begins in the file, its key included.
        begin: where what it holds begins.
        end: where that ends.
    """

    number: int
    kind: int
    value: int
    start: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of what the field holds."""
        return self.end - self.begin


class WireFile:
    """An open file that holds protobuf messages.

    Args:
        descriptor: of the open file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._window, self._window_begin = b"", 0

    def fields(self, begin: int, end: int) -> Iterator[Field]:
        """The fields of the message that lies between two offsets.

        Raises:
            WireError: they do not fill it.
        """
        position = begin
        while position < end:
            start = position
            key, position = self.varint(position, end)
            number, kind = key >> 3, key & 7
            value, first = 0, position
            if kind == VARINT:
                value, position = self.varint(position, end)
            elif kind == BYTES:
                size, first = self.varint(position, end)
                position = first + size
            elif kind in _FIXED_SIZES:
                position += _FIXED_SIZES[kind]
            if number == 0 or kind not in (VARINT, BYTES, *_FIXED_SIZES):
                raise WireError(f"byte {start} begins no field")
            if position > end:
                raise WireError(f"the field at byte {start} claims {position - first} bytes, {end - first} are there")
            yield Field(number, kind, value, start, first, position)

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """The number that begins at an offset, as unsigned 64 bits, and the offset after it.

        Raises:
            WireError: it has more than ten bytes, or does not end before `end`.
        """
        offset = position - self._window_begin
        if position < end and 0 <= offset < len(self._window) and self._window[offset] < 0x80:
            return self._window[offset], position + 1  # nearly all of them
        result = 0
        for index in range(min(10, end - position)):
            byte = self._byte(position + index)
            result |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return result & (2**64 - 1), position + index + 1
        raise WireError(f"the number at byte {position} does not end")

    def _byte(self, position: int) -> int:
        offset = position - self._window_begin
        if not 0 <= offset < len(self._window):
            self._window, self._window_begin = os.pread(self._descriptor, _WINDOW, position), position
            offset = 0
            if not self._window:
                raise WireError(f"the file ends before byte {position + 1}")
        return self._window[offset]

    def read(self, field: Field, limit: int) -> bytes:
        """What a field of at most `limit` bytes holds.

        Raises:
            WireError: it is longer, or the file ends in it.
        """
        if field.size > limit:
            raise WireError(f"the field at byte {field.start} has {field.size} bytes, at most {limit} are expected")
        return self.read_bytes(field.begin, field.end)

    def read_bytes(self, begin: int, end: int) -> bytes:
        """The bytes between two offsets, which the caller has limited.

        Raises:
            WireError: the file ends too early.
        """
        offset = begin - self._window_begin
        content = self._window[offset : offset + end - begin] if offset >= 0 else b""
        if len(content) < end - begin:
            content = os.pread(self._descriptor, end - begin, begin)
        if len(content) < end - begin:
            raise WireError(f"the file ends before byte {end}")
        return content


def encode_varint(number: int) -> bytes:
    """How a number from 0 to 2**64 - 1 is written."""
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*result, number])


def encode_bytes(number: int, content: bytes) -> bytes:
    """A field of bytes, whole."""
    return encode_length(number, len(content)) + content


def encode_length(number: int, size: int) -> bytes:
    """What stands before the `size` bytes of a field."""
    return encode_varint(number << 3 | BYTES) + encode_varint(size)
