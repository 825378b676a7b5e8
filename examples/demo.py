"""Two real pictures, a phrase each: what `make demo` runs.

The pictures are those that scikit-image carries in its package: a fundus photograph (CC0) and a section of colonic
tissue stained for FHL2 (no known copyright restrictions). Results go to `demo_out`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import skimage.data

import medsam3
from medsam3.view.draw import overlay
from medsam3.view.view import view_of

OUT = Path("demo_out")
QUESTIONS = (("retina.jpg", "optic disc"), ("ihc.png", "nuclei"))
PANEL_PIXELS = 512


def main() -> int:
    """Segment, write the overlays, and show or name them."""
    OUT.mkdir(exist_ok=True)
    pictures = Path(skimage.data.data_dir)
    start = time.perf_counter()
    model = medsam3.load("mini")
    print(f"loaded {model.name} in {time.perf_counter() - start:.1f} s")
    panels = []
    for name, phrase in QUESTIONS:
        image = medsam3.read(pictures / name)
        start = time.perf_counter()
        [masks] = medsam3.segment(image, phrase, model)
        seconds = time.perf_counter() - start
        path = OUT / f"{Path(name).stem}_{phrase.replace(' ', '-')}_overlay.png"
        medsam3.write(masks, path, image)
        presence = "-" if masks.presence is None else f"{masks.presence:.2f}"
        print(f"{name}: {phrase!r} present {presence}, {len(masks)} objects, {seconds:.1f} s -> {path}")
        rgb = view_of(image).rgb(0)
        panels += [_panel(rgb), _panel(overlay(rgb, [masks]))]
    picture = OUT / "demo.png"
    PIL.Image.fromarray(np.hstack(panels)).save(picture)
    print(f"side by side: {picture}")
    _show(picture)
    return 0


def _panel(rgb: np.typing.NDArray[np.uint8]) -> np.typing.NDArray[np.uint8]:
    """A square picture of `PANEL_PIXELS`."""
    size = (PANEL_PIXELS, PANEL_PIXELS)
    return np.asarray(PIL.Image.fromarray(rgb).resize(size, PIL.Image.Resampling.LANCZOS))


def _show(picture: Path) -> None:
    """Open the picture where there is a screen."""
    has_screen = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    opener = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if has_screen and opener is not None:
        subprocess.run([opener, str(picture)], check=False)


if __name__ == "__main__":
    sys.exit(main())
