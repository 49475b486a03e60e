"""A stream of bytes → frames. Pure.

Nothing is allocated on the word of the sender: bytes are kept as they come and joined once, when a frame is whole.
"""

from __future__ import annotations

from workers.messages import frame_length


class Frames:
    """`limit`: bytes of the longest frame, without its length field."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 4

    def feed(self, data: bytes) -> list[memoryview]:
        """The frames that are whole now, each without its first four bytes. Raises ValueError for one too long."""
        self._chunks.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        whole = data if len(self._chunks) == 1 else b"".join(self._chunks)
        view, at, frames = memoryview(whole), 0, []
        while (end := self._end(view, at)) is not None:
            frames.append(view[at + 4 : end])
            at = end
        self._chunks = [whole[at:]] if at < len(whole) else []
        self._have = len(whole) - at
        return frames

    def _end(self, view: memoryview, at: int) -> int | None:
        """Where the frame that begins at `at` ends; None when it is not all there yet."""
        left = len(view) - at
        self._need = 4
        if left < 4:
            return None
        length = frame_length(view[at : at + 4])
        if length > self._limit:
            raise ValueError(f"a frame of {length} bytes exceeds {self._limit}")
        self._need = 4 + length
        return at + self._need if left >= self._need else None
