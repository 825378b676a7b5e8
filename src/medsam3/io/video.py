"""MP4, MOV, AVI, MKV, GIF, MPEG streams and WMV in, frame by frame; MP4 out. The only module that uses PyAV.

Frames come as 8-bit RGB in the order in which they are shown. Reading forward decodes each frame once; going back
starts again at the key frame before.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, require
from medsam3.image import Image, LazyFrames, Pixels
from medsam3.io.files import check_size, first_line
from medsam3.store import replacing

RGB = NDArray[np.uint8]
DEFAULT_FPS = 25.0
"""Of a video that is written from frames without a time."""
_DISPLAY_MATRIX = "DISPLAYMATRIX"


def open_video(path: Path) -> Image:
    """Open a video; its packets are counted at once, its frames decoded when they are asked for.

    Raises:
        InputError: PyAV is missing, no video in the file, no frames, a file that is cut short.
    """
    reader = _Reader(path)
    count, height, width = len(reader.times), *reader.size
    check_size(count, height, width)
    return Image(
        LazyFrames((count, height, width, 3), reader.read),
        kind="video" if count > 1 else "picture",
        fps=reader.fps,
        source=(path,),
        metadata={"format": reader.container_name, "codec": reader.codec},
    )


def write_mp4(frames: Iterable[RGB], path: Path, *, fps: float | None) -> None:
    """Write frames (H, W, 3) uint8 of one size as H.264, as they come; odd sides get a black line.

    Raises:
        InputError: PyAV is missing, or the file cannot be written.
    """
    av = require("av", extra="video")
    rate = Fraction(fps if fps and fps > 0 else DEFAULT_FPS).limit_denominator(1000)
    with replacing(path, ".mp4") as temporary, _one_line(av), av.open(str(temporary), "w") as container:
        stream: Any = None
        for rgb in frames:
            even = np.pad(rgb, ((0, rgb.shape[0] % 2), (0, rgb.shape[1] % 2), (0, 0)))
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
                stream.height, stream.width = even.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.thread_count = 1
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        if stream is None:
            raise InputError("there are no frames to write a video of: give at least one")
        container.mux(stream.encode())


class _Reader:
    """An open video that remembers where it stands. Threads take turns."""

    def __init__(self, path: Path) -> None:
        self._av = require("av", extra="video")
        self._path = path
        self._lock = threading.Lock()
        self._next = 0
        self._decoded: Iterator[Any] | None = None
        with _one_line(self._av):
            self._stream, self._container = self._opened()
            stream = self._container.streams.video[0]
            self.container_name = self._container.format.name.split(",")[0].upper()
            self.codec = stream.codec_context.name
            rate = stream.average_rate or stream.guessed_rate
            self.fps = float(rate) if rate else None
            told, held, self.times = int(stream.frames or 0), 0, list[int]()
            for packet in self._container.demux(stream):
                held += packet.dts is not None or packet.pts is not None
                if packet.size and not packet.is_corrupt and not packet.is_discard:
                    self.times.append(packet.pts if packet.pts is not None else (packet.dts or len(self.times)))
            self.times.sort()
            # Others tell when frames are decoded, as AVI, cannot be sought in, as GIF, or only about, as MPEG streams.
            self._is_timed = self.container_name in ("MOV", "MATROSKA") and len(set(self.times)) == len(self.times)
            self._restart()
            first = next(self._decoded or iter(()), None) if self.times else None
        if first is None:
            raise InputError(
                "the video holds no frames, it may be cut short: copy it again, or give one with at least one"
            )
        self.size: tuple[int, ...] = self._upright(first).shape[:2]
        self._restart()
        self._check_whole(told, held)

    def __reduce__(self) -> tuple[type[_Reader], tuple[Path]]:
        """Open the file anew in another process."""
        return _Reader, (self._path,)

    def read(self, n: int) -> Pixels:
        """Frame n as (H, W, 3), in the order in which frames are shown."""
        with self._lock, _one_line(self._av):
            if self._decoded is None or n < self._next or (self._is_timed and n > self._next + 250):
                self._seek(n)
            assert self._decoded is not None
            for frame in self._decoded:
                place = self._next
                if self._is_timed and frame.pts is not None:
                    place = bisect.bisect_right(self.times, frame.pts) - 1
                self._next = max(place, 0) + 1
                if place >= n:
                    return self._upright(frame)
            self._decoded = None
        raise InputError(f"the video ends before frame {n} of {len(self.times)}, it is cut short: copy it again")

    def _opened(self) -> tuple[IO[bytes], Any]:
        """The file, opened here as PyAV takes UTF-8 names only, and the container over it."""
        stream = self._path.open("rb")
        container = self._av.open(stream)
        if not len(container.streams):
            raise InputError("the video holds no index of its frames, it is cut short: copy it again")
        if not container.streams.video:
            raise InputError("the file holds no video: give a video with pictures")
        return stream, container

    def _restart(self) -> None:
        """Open the file again, which every container allows, and begin with its first frame."""
        self._container.close()
        self._stream.close()
        self._stream, self._container = self._opened()
        self._decoded, self._next = self._container.decode(self._container.streams.video[0]), 0

    def _seek(self, n: int) -> None:
        if n == 0 or self._decoded is None or n < self._next:
            self._restart()
        if n > 0 and self._is_timed:
            stream = self._container.streams.video[0]
            self._container.seek(self.times[n], stream=stream, backward=True)
            self._decoded, self._next = self._container.decode(stream), 0

    def _upright(self, frame: Any) -> Pixels:
        """(H, W, 3), turned by quarters and mirrored as the file asks for: x' = ax + cy and y' = bx + dy."""
        rgb: Pixels = frame.to_ndarray(format="rgb24")
        asked = next((data for data in frame.side_data if data.type.name == _DISPLAY_MATRIX), None)
        if asked is None:
            return rgb
        a, b, _, c, d, *_ = np.frombuffer(asked, dtype=np.int32).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            rgb, a, d = rgb.swapaxes(0, 1), c, b
        return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])

    def _check_whole(self, told: int, held: int) -> None:
        """Compare what the header tells of with what is there; AVI counts frames that were dropped, so by bytes."""
        if self.container_name == "AVI":
            with self._path.open("rb") as stream:
                wanted = 8 + int.from_bytes(stream.read(8)[4:], "little")
                size = stream.seek(0, 2)
            if size < wanted:
                raise InputError(
                    f"the video is cut short: it holds {size:,} of the {wanted:,} bytes of its header; copy it again"
                )
        elif told > held:
            raise InputError(
                f"the video is cut short: its header tells of {told} frames, {held} are there; copy it again"
            )


@contextmanager
def _one_line(av: Any) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (av.error.FFmpegError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = first_line(Exception(getattr(error, "strerror", None) or "its header makes no sense"))
        raise InputError(f"the video cannot be decoded, it may be cut short ({reason}): copy it again") from error
