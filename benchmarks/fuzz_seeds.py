"""Good files of every form that is read, for `fuzz.py` to damage, and how each is opened.

All are small and made here or by the package's own writers; pictures of the DICOM seeds are encoded by Pillow, CharLS
and GDCM, so that each transfer syntax is one that a native decoder reads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pydicom
import SimpleITK as sitk  # noqa: N813  as its own documentation has it
import torch
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the makers that tests share

import made_data
import made_dicom
import medsam3
from medsam3.data.coco import samples_from_coco
from medsam3.data.samples import Sample, samples_from_index
from medsam3.image import Image, Masks
from medsam3.io import facts, read, write
from medsam3.io.read_masks import read_masks
from medsam3.io.video import write_mp4
from medsam3.models.mini.card import read_card
from medsam3.models.sam3.checkpoints import read_adapter
from medsam3.models.sam3.lora import LoraSource
from medsam3.store import sha256_of
from medsam3.train.config import FitConfig
from medsam3.train.loop import RunFolder, resume
from medsam3.train.workers import OneProcess
from threshold_segmenter import ThresholdSegmenter

Opener = Callable[[Path], object]
_SYNTAX = "1.2.840.10008.1.2"


@dataclass(frozen=True)
class Seed:
    """A kind of file.

    Attributes:
        name: What it is called in reports, and the name of its folder.
        file: Name of the file that is damaged.
        make: Makes it, and what it needs beside it, in a folder.
        open: Reads all of it.
    """

    name: str
    file: str
    make: Callable[[Path], object]
    open: Opener


def open_image(path: Path) -> None:
    """Read every frame, by what the command line shows of a file."""
    facts(read(path))


def open_masks(path: Path) -> None:
    """Read masks over the series beside them."""
    read_masks(path, _series(path.parent / "ct"))


def open_label_map(path: Path) -> None:
    """Read masks that bring their own place."""
    read_masks(path)


def open_picture_masks(path: Path) -> None:
    """Read masks over a picture."""
    read_masks(path, Image(np.zeros((1, 20, 24, 1), dtype=np.uint8), source=(Path("a.png"),)))


def open_index(path: Path) -> None:
    """Read training data and one round of it."""
    _draw(samples_from_index(path.parent))


def open_coco_training(path: Path) -> None:
    """Read training data of COCO JSON."""
    _draw(samples_from_coco(path))


def open_session(path: Path) -> None:
    """Take up a saved session."""
    medsam3.Session.from_json(path.read_text(encoding="utf-8", errors="replace"), grey(), ThresholdSegmenter())


def open_adapter(path: Path) -> None:
    """Read an adapter of SAM 3."""
    read_adapter(LoraSource(path, alpha=2.0))


def open_card(path: Path) -> None:
    """Read the card beside weights."""
    read_card(path.with_suffix(".safetensors"))


def open_checkpoint(path: Path) -> None:
    """Resume a run, its folder as it was."""
    trainee = _Trainee()
    with RunFolder(path.parent, trainee.config, "data") as folder:
        resume(folder, trainee, OneProcess(torch.device("cpu")))


def _draw(samples: Sequence[Sample]) -> None:
    for sample in samples[:4]:
        sample.load_rgb()
        for target in sample.targets[:4]:
            target.load()


@cache
def _series(folder: Path) -> Image:
    return read(folder)


def grey() -> NDArray[np.uint8]:
    """Give a picture (20, 24) whose values differ along both axes."""
    row, col = np.mgrid[:20, :24]
    values: NDArray[np.uint8] = ((row * 9 + col * 5) % 256).astype(np.uint8)
    return values


def _colour() -> NDArray[np.uint8]:
    return np.stack([grey(), 255 - grey(), grey() // 2], axis=-1)


def _volume() -> NDArray[np.int16]:
    n, row, col = np.mgrid[:4, :20, :24]
    values: NDArray[np.int16] = (300 * n + 11 * row - 7 * col).astype(np.int16)
    return values


def _picture(file: str, pixels: NDArray[Any] | None = None, **options: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        PIL.Image.fromarray(_colour() if pixels is None else pixels).save(folder / file, **options)

    return make


def _pages(folder: Path) -> None:
    first, *others = (PIL.Image.fromarray(plane.astype(np.uint16)) for plane in np.abs(_volume()))
    first.save(folder / "a.tif", save_all=True, append_images=others, compression="tiff_lzw")


def _gif(folder: Path) -> None:
    first, *others = (PIL.Image.fromarray(np.roll(_colour(), k, axis=1)) for k in range(4))
    first.save(folder / "a.gif", save_all=True, append_images=others)


def _nifti(file: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        affine = np.array([[0.5, 0.1, 0, 3], [0, 0.7, 0, 4], [0, 0, 3, 5], [0, 0, 0, 1]])
        kind = nibabel.Nifti2Image if "2" in file else nibabel.Nifti1Image
        nibabel.save(kind(_volume().transpose(2, 1, 0), affine), folder / file)

    return make


def _itk(file: str, *, is_packed: bool) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        image = sitk.GetImageFromArray(_volume())
        image.SetSpacing((0.5, 0.7, 3.0))
        sitk.WriteImage(image, str(folder / file), useCompression=is_packed)

    return make


def _video(file: str, **options: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        frames = [np.roll(_colour().repeat(2, 0).repeat(2, 1), 2 * k, axis=1) for k in range(6)]
        if file == "a.mp4":
            write_mp4(frames, folder / file, fps=10)
            return
        av = medsam3.errors.require("av", extra="video")
        with av.open(str(folder / file), "w") as container:
            stream = container.add_stream(options["codec"], rate=10)
            stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], options["pix_fmt"]
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())

    return make


def _plain_dicom(end: str) -> Callable[[Path], object]:
    """Explicit, implicit, big endian, deflated, and RLE, which pydicom writes itself."""

    def make(folder: Path) -> None:
        made = made_dicom.placed(_volume()[1], 0.0)
        if end == ".5":
            made.compress(f"{_SYNTAX}{end}", encoding_plugin="pydicom")
        elif end == ".2":
            made.PixelData = _volume()[1].astype(">i2").tobytes()
        fresh = pydicom.Dataset()  # the made one may not change its encoding any more
        fresh.update(made)
        fresh.file_meta = made.file_meta
        fresh.file_meta.TransferSyntaxUID = f"{_SYNTAX}{end}"
        pydicom.dcmwrite(folder / "a.dcm", fresh, enforce_file_format=True)

    return make


def _encoded_dicom(end: str, encode: Callable[[], bytes], **attributes: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        made = made_dicom.dataset(_colour(), SamplesPerPixel=3)
        for name, value in attributes.items():
            setattr(made, name, value)
        made.file_meta.TransferSyntaxUID = f"{_SYNTAX}{end}"
        made.PixelData = encapsulate([encode()])
        made["PixelData"].VR = "OB"
        made["PixelData"].is_undefined_length = True
        made.save_as(folder / "a.dcm", enforce_file_format=True)

    return make


def _by_pillow(kind: str, **options: Any) -> Callable[[], bytes]:
    def encode() -> bytes:
        stream = BytesIO()
        PIL.Image.fromarray(_colour()).save(stream, kind, **options)
        return stream.getvalue()

    return encode


def _by_gdcm(syntax: str) -> Callable[[Path], object]:
    """16-bit grey, in a transfer syntax that only GDCM writes."""

    def make(folder: Path) -> None:
        gdcm = medsam3.errors.require("gdcm", extra="dicom")
        made_dicom.save(made_dicom.placed(_volume()[1], 0.0), folder / "plain.dcm")
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(folder / "plain.dcm"))
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        change.Change()
        writer.SetFileName(str(folder / "a.dcm"))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.Write()

    return make


def _enhanced(folder: Path) -> None:
    made_dicom.save(made_dicom.enhanced(_volume(), [0.0, 1.0, 2.0, 3.0]), folder / "a.dcm")


def _masks(file: str) -> Callable[[Path], object]:
    """Two concepts over the series `ct`, as the package writes them."""

    def make(folder: Path) -> None:
        made_dicom.write_oblique_series(folder / "ct", _volume(), "CT")
        image = read(folder / "ct")
        liver = np.zeros(image.shape, dtype=np.bool_)
        liver[1:3, 4:12, 5:15] = True
        found = [
            Masks.from_dense(mask[None], [score], concept=name)
            for mask, score, name in ((liver, 0.9, "liver"), (~liver, 0.5, "tumor left"))
        ]
        write(found, folder / file, image, format="rtstruct" if file == "rs.dcm" else None)

    return make


def _layers(folder: Path) -> None:
    """Write a segmentation of 3D Slicer, with two layers."""
    layers = np.zeros((4, 20, 24, 2), dtype=np.uint8)
    layers[1:3, 2:9, 3:11, 0], layers[0:2, 4:12, 5:15, 1] = 1, 1
    image = sitk.GetImageFromArray(layers, isVector=True)
    for k in range(2):
        for field, value in (("ID", f"s{k}"), ("Name", f"part {k}"), ("LabelValue", "1"), ("Layer", str(k))):
            image.SetMetaData(f"Segment{k}_{field}", value)
    sitk.WriteImage(image, str(folder / "a.seg.nrrd"))


_COCO: Mapping[str, Any] = MappingProxyType(
    {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 24}],
        "categories": [{"id": 1, "name": "polyp"}, {"id": 2, "name": "ulcer", "supercategory": "lesion"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2, 2, 9, 2, 9, 8.5, 2, 8]], "score": 0.5},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": {"size": [20, 24], "counts": [30, 50, 400]}},
            {"id": 3, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": []},
        ],
    }
)


def _coco(folder: Path) -> None:
    PIL.Image.fromarray(_colour()).save(folder / "a.png")
    (folder / "a.json").write_text(json.dumps(dict(_COCO)))


def _index(folder: Path) -> None:
    made_data.data_folder(folder / "data")
    for path in (folder / "data").iterdir():
        path.rename(folder / path.name)


def _session(folder: Path) -> None:
    session = medsam3.Session(grey(), ThresholdSegmenter())
    session.segment("polyp")
    session.box(2, 3, 12, 15)
    session.click(6, 8)
    (folder / "a.json").write_text(session.to_json())


def lora() -> dict[str, torch.Tensor]:
    """Give an adapter of one module, rank 2."""
    module = "backbone.vision_backbone.trunk.blocks.0.attn.proj"
    return {f"{module}.lora.lora_A": torch.ones(6, 2), f"{module}.lora.lora_B": torch.ones(2, 5)}


def _card(folder: Path) -> None:
    shipped = Path(medsam3.__file__).parent / "weights" / "mini.json"
    save_file({"a": torch.ones(3)}, folder / "a.safetensors")
    content = json.loads(shipped.read_text()) | {"sha256": sha256_of(folder / "a.safetensors")}
    (folder / "a.json").write_text(json.dumps(content))


class _Trainee:
    """One linear layer, which is all of a model that resuming a run looks at."""

    def __init__(self) -> None:
        self.config: Any = replace(FitConfig(), steps=4)
        self.module = torch.nn.Linear(3, 2)

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.module.parameters())

    def further_state(self) -> dict[str, Any]:
        return {}

    def put_further_state(self, state: dict[str, Any]) -> None:
        assert isinstance(state, dict)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _checkpoint(folder: Path) -> None:
    trainee = _Trainee()
    with RunFolder(folder, trainee.config, "data"):
        content = {"step": 2, "steps": 4, "model": trainee.module.state_dict(), "further": {}, "best": None}
        torch.save(content | {"optimizer": trainee.optimizer().state_dict()}, folder / "checkpoint.pt")


@cache
def seeds() -> tuple[Seed, ...]:
    """All kinds of images, masks, weights, and data to train on."""
    grey16 = np.abs(_volume()[1]).astype(np.uint16)
    images: dict[str, tuple[str, Callable[[Path], object]]] = {
        "png": ("a.png", _picture("a.png")),
        "png16": ("a.png", _picture("a.png", grey16)),
        "jpeg": ("a.jpg", _picture("a.jpg", exif=_turned())),
        "bmp": ("a.bmp", _picture("a.bmp")),
        "gif": ("a.gif", _gif),
        "tiff": ("a.tif", _picture("a.tif", compression="tiff_deflate")),
        "tiff-jpeg": ("a.tif", _picture("a.tif", compression="jpeg")),
        "tiff-pages": ("a.tif", _pages),
        "nifti": ("a.nii", _nifti("a.nii")),
        "nifti-packed": ("a.nii.gz", _nifti("a.nii.gz")),
        "nifti2": ("a2.nii", _nifti("a2.nii")),
        "nrrd": ("a.nrrd", _itk("a.nrrd", is_packed=False)),
        "nrrd-packed": ("a.nrrd", _itk("a.nrrd", is_packed=True)),
        "mha": ("a.mha", _itk("a.mha", is_packed=False)),
        "mha-packed": ("a.mha", _itk("a.mha", is_packed=True)),
        "mp4": ("a.mp4", _video("a.mp4")),
        "avi": ("a.avi", _video("a.avi", codec="mjpeg", pix_fmt="yuvj420p")),
        "mkv": ("a.mkv", _video("a.mkv", codec="ffv1", pix_fmt="yuv420p")),
        "dicom-explicit": ("a.dcm", _plain_dicom(".1")),
        "dicom-implicit": ("a.dcm", _plain_dicom("")),
        "dicom-big": ("a.dcm", _plain_dicom(".2")),
        "dicom-deflated": ("a.dcm", _plain_dicom(".1.99")),
        "dicom-rle": ("a.dcm", _plain_dicom(".5")),
        "dicom-jpeg": (
            "a.dcm",
            _encoded_dicom(".4.50", _by_pillow("JPEG"), PhotometricInterpretation="YBR_FULL_422"),
        ),
        "dicom-jpeg2000": (
            "a.dcm",
            _encoded_dicom(".4.90", _by_pillow("JPEG2000", no_jp2=True), PhotometricInterpretation="RGB"),
        ),
        "dicom-jpeg-lossless": ("a.dcm", _by_gdcm("JPEGLosslessProcess14_1")),
        "dicom-jpeg-ls": ("a.dcm", _by_gdcm("JPEGLSLossless")),
        "dicom-enhanced": ("a.dcm", _enhanced),
    }
    masks: dict[str, tuple[str, Callable[[Path], object], Opener]] = {
        "masks-seg": ("seg.dcm", _masks("seg.dcm"), open_masks),
        "masks-rtstruct": ("rs.dcm", _masks("rs.dcm"), open_masks),
        "masks-nifti": ("m.nii.gz", _masks("m.nii.gz"), open_masks),
        "masks-nrrd": ("m.nrrd", _masks("m.nrrd"), open_label_map),
        "masks-slicer": ("a.seg.nrrd", _layers, open_label_map),
        "masks-png": ("a.png", _picture("a.png", grey() // 64), open_picture_masks),
        "masks-coco": ("a.json", _coco, open_picture_masks),
        "train-coco": ("a.json", _coco, open_coco_training),
        "train-index": ("index.csv", _index, open_index),
        "session": ("a.json", _session, open_session),
        "safetensors": ("a.safetensors", lambda folder: save_file(lora(), folder / "a.safetensors"), open_adapter),
        "pickle": ("a.pt", lambda folder: torch.save(lora(), folder / "a.pt"), open_adapter),
        "card": ("a.json", _card, open_card),
        "checkpoint": ("checkpoint.pt", _checkpoint, open_checkpoint),
    }
    return (
        *(Seed(name, file, make, open_image) for name, (file, make) in images.items()),
        *(Seed(name, file, make, opened) for name, (file, make, opened) in masks.items()),
    )


def _turned() -> Any:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif
