"""One real picture and four phrases: what `make demo` runs. Three are found, the fourth is not there.

The picture is one that scikit-image carries in its package: a fundus photograph (CC0). Results go to `demo_out`.
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
PICTURE = "retina.jpg"
PHRASES = ("optic disc", "optic cup", "retinal blood vessel", "polyp")
PANEL_PIXELS = 512


def main() -> int:
    """Segment, write the overlays, and show or name them."""
    OUT.mkdir(exist_ok=True)
    pictures = Path(skimage.data.data_dir)
    start = time.perf_counter()
    model = medsam3.load("mini")
    print(f"loaded {model.name} in {time.perf_counter() - start:.1f} s")
    image = medsam3.read(pictures / PICTURE)
    rgb = view_of(image).rgb(0)
    panels = [_panel(rgb)]
    start = time.perf_counter()
    for masks in medsam3.segment(image, PHRASES, model):
        path = OUT / f"{Path(PICTURE).stem}_{masks.concept.replace(' ', '-')}_overlay.png"
        medsam3.write(masks, path, image)
        verdict = "yes" if masks.says_present else "no"
        print(f"{PICTURE}: {masks.concept!r} present {masks.presence:.2f} {verdict}, {len(masks)} objects -> {path}")
        if masks.says_present:
            panels.append(_panel(overlay(rgb, [masks])))
    print(f"{len(PHRASES)} phrases in {time.perf_counter() - start:.1f} s")
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
