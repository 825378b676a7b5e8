"""`medsam3 info`, `medsam3 convert`, `medsam3 concepts`: what files hold, masks in another form, and what may be asked.

`info` tells technical facts only, never whose image it is.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from cyclopts import Parameter

from medsam3.cli.inputs import Input, frame_ranges, part, read_chosen
from medsam3.cli.job import FLAT, Help, SlideChoice
from medsam3.cli.terminal import print_table, say, say_json
from medsam3.errors import InputError


@dataclass(frozen=True)
class Info:
    """Arguments of `medsam3 info`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 info scan.dcm
  medsam3 info series_folder/ --json
  medsam3 info study_folder/ --series 3 --frame 10-20"""

    file: Annotated[Path, Parameter(name="FILE"), Help("an image file or a folder with a DICOM series")]
    _: KW_ONLY
    series: Annotated[str | None, Help("NUMBER or UID: of a folder with several DICOM series, this one")] = None
    frame: Annotated[
        str | None,
        Parameter(name=("--frame", "--slice")),
        Help("N or A-B: of these frames or slices alone, from 0; of a 4-D NIfTI, of the time point"),
    ] = None
    slide: Annotated[SlideChoice, FLAT] = field(default_factory=SlideChoice)
    json: Annotated[bool, Help("print JSON to stdout")] = False

    def run(self) -> int:
        """Print the facts."""
        from medsam3.io import facts  # noqa: PLC0415

        ranges = frame_ranges(None if self.frame is None else [self.frame])
        item = Input(self.file, self.series, self.slide.part())
        found = facts(part(read_chosen(item, ranges)))
        if self.json:
            say_json(found)
        else:
            print_table(("what", "value"), [(name, str(value)) for name, value in found.items()], title=item.label)
        return 0


@dataclass(frozen=True)
class Convert:
    """Arguments of `medsam3 convert`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 convert liver_mask.nii.gz liver.nrrd
  medsam3 convert liver_mask.nii.gz liver_seg.dcm --image study/ --series 3 --format seg
  medsam3 convert rtstruct.dcm structures.nii.gz --image study/
  medsam3 convert liver_seg.dcm liver.csv --image study/ --format csv
  medsam3 convert nuclei_mask.png nuclei.geojson --image slide.png

The image is needed for DICOM, COCO and GeoJSON, which do not tell all of it, and for formats that show it. It is not
changed.
Label maps of others have no names; each of their numbers becomes a concept `label 1`, `label 2` ..."""

    source: Annotated[Path, Parameter(name="MASKS"), Help("label map, DICOM SEG, RTSTRUCT, COCO JSON or GeoJSON")]
    target: Annotated[Path, Parameter(name="TARGET"), Help("file to write")]
    _: KW_ONLY
    image: Annotated[Path | None, Help("the image that the masks are over")] = None
    series: Annotated[str | None, Help("NUMBER or UID: of a folder with several DICOM series, this one")] = None
    slide: Annotated[SlideChoice, FLAT] = field(default_factory=SlideChoice)
    format: Annotated[str | None, Help("name of the format, default: by the ending of TARGET")] = None
    resample: Annotated[bool, Help("lay a label map of another grid over the image, by nearest")] = False
    overwrite: Annotated[bool, Help("replace TARGET if it exists")] = False

    def run(self) -> int:
        """Convert the masks."""
        from medsam3.cli.outputs import check_can_hold  # noqa: PLC0415
        from medsam3.io import NEEDS_PIXELS, read, write  # noqa: PLC0415
        from medsam3.io.read_masks import read_masks  # noqa: PLC0415

        if self.target.exists() and not self.overwrite:
            raise InputError(f"{self.target} exists: name another file, or replace it with --overwrite")
        check_can_hold(self.target.parent)
        if self.series is not None and self.image is None:
            raise InputError("--series chooses from the image's folder: give it with --image")
        needs_pixels = self.format in NEEDS_PIXELS or self.target.name.lower().endswith("_overlay.png")
        if needs_pixels and self.image is None:
            raise InputError("the format shows the image: give it with --image")
        image = None if self.image is None else read(self.image, series=self.series, part=self.slide.part())
        masks, over = read_masks(self.source, image, is_resampled=self.resample)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        write(masks, self.target, over, format=self.format)
        count = sum(len(found) for found in masks)
        say(f"{count} {'object' if count == 1 else 'objects'} of {len(masks)} concepts written to {self.target}")
        return 0


@dataclass(frozen=True)
class Concepts:
    """Arguments of `medsam3 concepts`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 concepts
  medsam3 concepts "optic cup"
  medsam3 concepts nucleus --json"""

    query: Annotated[str, Parameter(name="QUERY"), Help("A word or phrase to look for")] = ""
    _: KW_ONLY
    json: Annotated[bool, Help("print JSON to stdout")] = False

    def run(self) -> int:
        """Print the concepts that the query fits."""
        from medsam3.concepts import search  # noqa: PLC0415

        found = search(self.query)
        if self.json:
            say_json([asdict(concept) for concept in found])
        elif found:
            print_table(("concept", "synonyms"), [(concept.name, ", ".join(concept.synonyms)) for concept in found])
        else:
            say(f"no concept like {self.query!r} is listed; any phrase may still be asked for")
        return 0
