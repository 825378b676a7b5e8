"""Videos in, frame by frame, and out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.io import read
from medsam3.io.video import write_mp4

av = pytest.importorskip("av", reason="needs PyAV, of the extra video")

HEIGHT, WIDTH = 48, 64


def grey_frames(count: int) -> list[NDArray[np.uint8]]:
    """Frame k is 3 k + 20 everywhere, so that each is known by its value."""
    return [np.full((HEIGHT, WIDTH, 3), 3 * k + 20, dtype=np.uint8) for k in range(count)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_mp4(grey_frames(40), tmp_path / "clip.mp4", fps=12.5)
    return tmp_path / "clip.mp4"


def test_a_clip_has_its_frames_size_and_rate(clip: Path) -> None:
    stack = read(clip)
    assert (stack.kind, stack.shape, stack.channels, stack.fps) == ("video", (40, HEIGHT, WIDTH), 3, 12.5)


@pytest.mark.parametrize("order", [[0, 1, 2, 39], [30, 5, 6, 31, 0, 0], [39, 38, 37]])
def test_frames_are_found_in_any_order(order: list[int], clip: Path) -> None:
    stack = read(clip)
    values = [float(stack.pixels(n).mean()) for n in order]
    np.testing.assert_allclose(values, [3 * n + 20 for n in order], atol=1.0)


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    pictures = [PIL.Image.fromarray(frame) for frame in grey_frames(5)]
    pictures[0].save(tmp_path / "five.gif", save_all=True, append_images=pictures[1:], duration=100)
    stack = read(tmp_path / "five.gif")
    assert (stack.shape, stack.fps) == ((5, HEIGHT, WIDTH), 10.0)
    values = [float(stack.pixels(n).mean()) for n in (0, 3, 1, 4)]
    np.testing.assert_allclose(values, [20, 29, 23, 32], atol=1.0)


def test_read_takes_a_whole_clip_or_one_frame(clip: Path) -> None:
    assert read(clip).shape == (40, HEIGHT, WIDTH)
    assert read(clip, frame=10).array().mean() == pytest.approx(50, abs=1.0)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.avi"])
def test_a_clip_that_is_cut_short_is_refused(name: str, clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / f"cut_{name}"
    if name.endswith("avi"):
        as_avi(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cut short"):
        read(cut)


def as_avi(path: Path) -> None:
    import av  # noqa: PLC0415

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for rgb in grey_frames(40):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode())


def test_a_gif_without_frames_is_refused(tmp_path: Path) -> None:
    header = b"GIF89a" + (6).to_bytes(2, "little") + (5).to_bytes(2, "little") + b"\x00\x00\x00\x3b"
    (tmp_path / "none.gif").write_bytes(header)
    with pytest.raises(
        InputError, match=r"none.gif: the (video holds no frames|video cannot be decoded|file holds no)"
    ):
        read(tmp_path / "none.gif")


def test_odd_sides_are_written_with_a_black_line(tmp_path: Path) -> None:
    write_mp4([np.full((47, 63, 3), 200, dtype=np.uint8)] * 3, tmp_path / "odd.mp4", fps=None)
    stack = read(tmp_path / "odd.mp4")
    assert (stack.shape, stack.fps) == ((3, 48, 64), 25.0)


def test_a_video_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are no frames to write"):
        write_mp4([], tmp_path / "none.mp4", fps=None)
    assert list(tmp_path.iterdir()) == []


def moving(count: int) -> list[NDArray[np.uint8]]:
    """A bright square whose left edge lies at column 8 + k of frame k."""
    frames = np.full((count, HEIGHT, WIDTH, 3), 30, dtype=np.uint8)
    for k in range(count):
        frames[k, 8:24, 8 + k : 24 + k] = 220
    return list(frames)


def left_edges(path: Path, order: Iterable[int] | None = None) -> list[int]:
    stack = read(path)
    return [int(np.argmax(stack.pixels(n)[16, :, 0] > 120)) for n in order or range(stack.shape[0])]


def test_frames_of_avi_come_as_they_are_shown_each_once(tmp_path: Path) -> None:
    import av  # noqa: PLC0415

    with av.open(str(tmp_path / "clip.avi"), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"bf": "2"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for rgb in moving(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(stream.encode())
    assert left_edges(tmp_path / "clip.avi") == list(range(8, 18))
    assert left_edges(tmp_path / "clip.avi", (9, 2, 5, 0)) == [17, 10, 13, 8]


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    write_mp4(moving(5), tmp_path / "flat.mp4", fps=25)
    content = bytearray((tmp_path / "flat.mp4").read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # the display matrix of a track header of version 0
    quarter = np.array([0, -65536, 0, 65536, 0, 0], dtype=">i4")  # counter-clockwise
    content[at : at + 24] = quarter.tobytes()
    (tmp_path / "turned.mp4").write_bytes(content)
    turned, flat = read(tmp_path / "turned.mp4"), read(tmp_path / "flat.mp4")
    assert turned.shape == (5, WIDTH, HEIGHT)
    np.testing.assert_array_equal(turned.pixels(2), np.rot90(flat.pixels(2)))


@pytest.mark.parametrize(
    ("matrix", "expected"),  # a b u c d v, and what ffmpeg makes of it
    [
        ((0, 1, 0, -1, 0, 0), lambda flat: np.rot90(flat, -1)),
        ((-1, 0, 0, 0, -1, 0), lambda flat: np.rot90(flat, 2)),
        ((-1, 0, 0, 0, 1, 0), np.fliplr),  # as front cameras of phones write
        ((1, 0, 0, 0, -1, 0), np.flipud),
        ((0, 1, 0, 1, 0, 0), lambda flat: flat.swapaxes(0, 1)),
        ((0, -1, 0, -1, 0, 0), lambda flat: np.rot90(flat, 2).swapaxes(0, 1)),
    ],
)
def test_a_turned_or_mirrored_video_is_as_players_show_it(matrix: Any, expected: Any, tmp_path: Path) -> None:
    write_mp4(moving(3), tmp_path / "a.mp4", fps=25)
    flat = read(tmp_path / "a.mp4").pixels(1)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 24] = (np.array(matrix, dtype=">i4") * 65536).astype(">i4").tobytes()
    (tmp_path / "b.mp4").write_bytes(content)
    np.testing.assert_array_equal(read(tmp_path / "b.mp4").pixels(1), expected(flat))


def test_a_video_without_its_index_is_told_to_be_cut(tmp_path: Path) -> None:
    write_mp4(moving(5), tmp_path / "a.mp4", fps=25)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(content[: content.index(b"moov")])
    with pytest.raises(InputError, match="cut short"):
        read(tmp_path / "a.mp4")


def test_a_trimmed_video_begins_where_its_edit_list_says(tmp_path: Path) -> None:
    import av  # noqa: PLC0415

    write_mp4(moving(30), tmp_path / "whole.mp4", fps=25)
    content = bytearray((tmp_path / "whole.mp4").read_bytes())
    at = content.index(b"elst") + 4 + 8  # past version and count: duration, then the media's time, in 512 ticks a frame
    media_time = int.from_bytes(content[at + 4 : at + 8], "big") + 10 * 512
    content[at + 4 : at + 8] = media_time.to_bytes(4, "big")
    (tmp_path / "trimmed.mp4").write_bytes(content)
    with av.open(str(tmp_path / "trimmed.mp4")) as container:
        decoded = sum(1 for _ in container.decode(video=0))
    assert left_edges(tmp_path / "trimmed.mp4") == list(range(18, 38)) and decoded == 20


def test_avi_with_dropped_frames_is_whole(tmp_path: Path) -> None:
    as_avi(tmp_path / "clip.avi")
    content = bytearray((tmp_path / "clip.avi").read_bytes())
    at = content.index(b"strh") + 4 + 4 + 32  # the stream's length in frames, which counts those that were dropped
    content[at : at + 4] = (50).to_bytes(4, "little")
    (tmp_path / "clip.avi").write_bytes(content)
    assert read(tmp_path / "clip.avi").shape[0] == 40


def test_sequences_of_pictures_in_the_container_of_mp4_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "burst.mp4").write_bytes(b"\0\0\0\x18ftypavis" + bytes(400))
    with pytest.raises(InputError, match="a sequence of AVIF pictures, which is not read here"):
        read(tmp_path / "burst.mp4")


@pytest.mark.parametrize(
    ("ending", "codec"), [("ts", "libx264"), ("m2ts", "libx264"), ("mpg", "mpeg2video"), ("wmv", "wmv2")]
)
def test_other_containers_give_their_frames_in_the_order_of_ffmpeg(tmp_path: Path, ending: str, codec: str) -> None:
    path = tmp_path / "named.mp4"  # what the file holds decides
    forms = {"ts": "mpegts", "m2ts": "mpegts", "mpg": "mpeg", "wmv": "asf"}
    options = {"mpegts_m2ts_mode": "1"} if ending == "m2ts" else {}
    with av.open(str(path), "w", format=forms[ending], options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in grey_frames(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        shown = [float(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
    image = read(path)
    assert image.shape[0] == len(shown) >= 39
    for n in (0, 21, 7, len(shown) - 1):
        assert float(image.pixels(n).mean()) == pytest.approx(shown[n], abs=0.01)
