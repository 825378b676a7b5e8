"""`medsam3 demo`: one real picture and four phrases. Three are found, the fourth is not there.

The picture is one that scikit-image carries in its package: a fundus photograph (CC0).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from medsam3.cli.job import Help
from medsam3.cli.terminal import say
from medsam3.errors import require

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PICTURE = "retina.jpg"
PHRASES = ("optic disc", "optic cup", "retinal blood vessel", "polyp")
PANEL_PIXELS = 512


@dataclass(frozen=True)
class Demo:
    """Arguments of `medsam3 demo`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 demo
  medsam3 demo --out pictures --open

Needs the encoders' weights (medsam3 weights fetch) and scikit-image, which brings the picture (medsam3[demo])."""

    _: KW_ONLY
    out: Annotated[Path, Help("folder of the pictures, default: demo_out")] = Path("demo_out")
    open: Annotated[bool, Help("show the pictures side by side, where there is a screen")] = False

    def run(self) -> int:
        """Segment, write the overlays, and name them."""
        import medsam3  # noqa: PLC0415  numpy, not for --help
        from medsam3.cli.outputs import check_can_hold  # noqa: PLC0415
        from medsam3.view.draw import overlay  # noqa: PLC0415
        from medsam3.view.view import view_of  # noqa: PLC0415

        found = require("skimage", extra="demo")
        path = Path(str(found.__file__)).parent / "data" / PICTURE
        check_can_hold(self.out)
        start = time.perf_counter()
        model = medsam3.load("mini")
        say(f"loaded {model.name} in {time.perf_counter() - start:.1f} s")
        self.out.mkdir(parents=True, exist_ok=True)
        image = medsam3.read(path)
        rgb = view_of(image).rgb(0)
        panels = [rgb]
        start = time.perf_counter()
        for masks in medsam3.segment(image, PHRASES, model):
            target = self.out / f"{path.stem}_{masks.concept.replace(' ', '-')}_overlay.png"
            medsam3.write(masks, target, image)
            presence = f"present {masks.presence:.2f} {masks.verdict}"
            say(f"{PICTURE}: {masks.concept!r} {presence}, {len(masks)} objects -> {target}")
            if masks.is_present:
                panels.append(overlay(rgb, [masks]))
        say(f"{len(PHRASES)} phrases in {time.perf_counter() - start:.1f} s")
        picture = self.out / "demo.png"
        _write_side_by_side(panels, picture)
        say(f"side by side: {picture}")
        if self.open:
            _show(picture)
        return 0


def _write_side_by_side(panels: list[NDArray[np.uint8]], path: Path) -> None:
    """Write pictures as squares of `PANEL_PIXELS` in a row."""
    import numpy as np  # noqa: PLC0415
    import PIL.Image  # noqa: PLC0415

    from medsam3.store import replacing  # noqa: PLC0415

    size = (PANEL_PIXELS, PANEL_PIXELS)
    squares = [np.asarray(PIL.Image.fromarray(one).resize(size, PIL.Image.Resampling.LANCZOS)) for one in panels]
    with replacing(path, path.suffix) as temporary:
        PIL.Image.fromarray(np.hstack(squares)).save(temporary)


def _show(picture: Path) -> None:
    """Open the picture where there is a screen."""
    has_screen = sys.platform == "darwin" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    opener = shutil.which("open" if sys.platform == "darwin" else "xdg-open")
    if has_screen and opener is not None:
        subprocess.run([opener, str(picture)], check=False)
