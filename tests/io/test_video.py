"""Videos in, frame by frame, and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.io import read
from medsam3.io.video import write_mp4

pytest.importorskip("av", reason="needs PyAV, of the extra video")

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
