"""What is in a compressed file, up to where it breaks off."""

import io
import zlib
from typing import Any, BinaryIO

import pyarrow as pa

# Compressed bytes that are taken at a time, and decompressed ones.
INPUT, OUTPUT = 64 << 10, 1 << 20

TRUNCATED = "Truncated compressed stream"


class _Stream(io.RawIOBase):
    """Reads a file that it closes; OSError where that is damaged, after all that comes before."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        given = self._some(len(buffer))
        buffer[: len(given)] = given
        return len(given)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._some(OUTPUT), b""))

    def close(self) -> None:
        self._file.close()
        super().close()

    def _some(self, most: int) -> bytes:
        raise NotImplementedError


class GzipStream(_Stream):
    """A gzip file as `gzip -d` gives it: its members end to end, zeros after the last left out."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._rest = b""

    def _some(self, most: int) -> bytes:
        while not self._member.eof or self._begin_next():
            block = self._rest or self._file.read(INPUT)
            try:
                given = self._member.decompress(block, most)
            except zlib.error as error:
                raise OSError(str(error)) from None
            self._rest = self._member.unused_data or self._member.unconsumed_tail
            if given:
                return given
            if not block:
                raise OSError(TRUNCATED)
        return b""

    def _begin_next(self) -> bool:
        """Open the next member; False where there is none."""
        while block := self._rest or self._file.read(INPUT):
            # Archives are padded to whole blocks of a tape or disk.
            self._rest = block.lstrip(b"\0")
            if self._rest:
                self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
                return True
        return False


class ZstdStream(_Stream):
    """A zstd file, decompressed by Arrow."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        # All of them: one that is no longer needed closes the file.
        self._streams = [self._opened()]
        self._at = 0
        self._last: io.BytesIO | None = None
        self._error: Exception = OSError(TRUNCATED)

    def _opened(self) -> pa.NativeFile:
        return pa.input_stream(self._file, compression="zstd")

    def _some(self, most: int) -> bytes:
        if self._last is None:
            try:
                given = self._streams[-1].read(most)
            except (OSError, pa.ArrowException) as error:
                self._error, self._last = error, self._before_the_break()
            else:
                self._at += len(given)
                return given
        given = self._last.read(most)
        if not given:
            raise self._error
        return given

    def _before_the_break(self) -> io.BytesIO:
        """What Arrow decompressed and did not give, since it could not give as much as asked."""
        self._file.seek(0)
        stream = self._opened()
        self._streams.append(stream)
        left = self._at
        while left:
            left -= len(stream.read(min(left, OUTPUT)))
        last = bytearray()
        try:
            while byte := stream.read(1):
                last += byte
        except (OSError, pa.ArrowException):
            pass
        return io.BytesIO(last)
