"""An image in memory as two plain files, `frames.npy` and `about.json`, that give the same image in another process.

For programs that hand images to each other; it is no format for people, and `medsam3.read` does not take it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from medsam3.errors import InputError
from medsam3.image import Image, LazyFrames, Window
from medsam3.io.files import check_size

FRAMES, ABOUT = "frames.npy", "about.json"


def is_handed(folder: Path) -> bool:
    """Tell whether a folder holds an image of `write_handed`."""
    return (folder / FRAMES).is_file() and (folder / ABOUT).is_file()


def write_handed(image: Image, folder: Path) -> tuple[Path, Path]:
    """Write an image's pixels and all that is known of it but its files, and name the two."""
    first = image.pixels(0)
    paths = folder / FRAMES, folder / ABOUT
    shape = tuple(int(size) for size in image.frames.shape)
    with paths[0].open("wb") as stream:
        dtype = np.lib.format.dtype_to_descr(first.dtype)
        np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
        for n in range(shape[0]):
            pixels = image.pixels(n)
            if pixels.dtype != first.dtype:
                raise InputError(f"frame {n} is {pixels.dtype}, frame 0 {first.dtype}: give one type for all frames")
            stream.write(np.ascontiguousarray(pixels).tobytes())
    about = {
        "kind": image.kind,
        "affine": None if image.affine is None else image.affine.tolist(),
        "fps": image.fps,
        "window": None if image.window is None else [image.window.low, image.window.high],
        "padding": image.padding,
        "metadata": dict(image.metadata),
    }
    paths[1].write_text(json.dumps(about), encoding="utf-8")
    return paths


def open_handed(folder: Path) -> Image:
    """Open what `write_handed` wrote; frames are read when they are asked for.

    Raises:
        InputError: It is of another form, or too large.
    """
    try:
        frames = np.load(folder / FRAMES, mmap_mode="r", allow_pickle=False)
        about = json.loads((folder / ABOUT).read_bytes())
        if frames.ndim != 4 or frames.dtype.kind not in "buif":
            raise InputError(f"the frames are {frames.dtype} of shape {frames.shape}, allowed are numbers (N, H, W, C)")
        check_size(*frames.shape[:3])
        return Image(
            LazyFrames(frames.shape, lambda n: np.array(frames[n])),
            about["kind"],
            None if about["affine"] is None else np.array(about["affine"], dtype=np.float64),
            None if about["fps"] is None else float(about["fps"]),
            None if about["window"] is None else Window(*(float(edge) for edge in about["window"])),
            None if about["padding"] is None else (float(about["padding"][0]), float(about["padding"][1])),
            metadata={str(name): str(value) for name, value in about["metadata"].items()},
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError) as error:
        raise InputError(
            f"the image in memory was not handed over whole ({type(error).__name__}): send it again"
        ) from error
