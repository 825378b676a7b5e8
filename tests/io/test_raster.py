import json
import resource
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import pytest

from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io import read, write
from medsam3.io.files import natural_key
from medsam3.io.raster import frame_files, open_picture
from medsam3.io.read_masks import read_masks

RED, GREY_16 = (255, 0, 0), np.array([[0, 256, 65535], [1, 2, 40000]], dtype=np.uint16)


def saved(picture: PIL.Image.Image, path: Path, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_grey_and_rgb_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    rgb = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    for pixels in (grey, rgb):
        image = read(saved(PIL.Image.fromarray(pixels), tmp_path / f"a{suffix}"))
        assert (image.kind, image.affine, image.source) == ("picture", None, (tmp_path / f"a{suffix}",))
        assert image.array().dtype == np.uint8 and np.array_equal(image.array()[0], pixels.reshape(3, 4, -1))


def test_jpeg_is_close(tmp_path: Path) -> None:
    image = read(saved(PIL.Image.new("RGB", (40, 20), (200, 100, 50)), tmp_path / "a.jpg", quality=95))
    assert image.shape == (1, 20, 40)
    assert np.abs(image.array().astype(int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bit_grey_keeps_its_depth(tmp_path: Path, suffix: str) -> None:
    image = read(saved(PIL.Image.fromarray(GREY_16), tmp_path / f"a{suffix}"))
    assert image.array().dtype == np.uint16 and np.array_equal(image.array()[0, ..., 0], GREY_16)


def test_big_endian_sixteen_bit_tiff_keeps_its_values(tmp_path: Path) -> None:
    picture = PIL.Image.frombytes("I;16B", (3, 2), GREY_16.astype(">u2").tobytes())
    assert np.array_equal(read(saved(picture, tmp_path / "a.tif")).array()[0, ..., 0], GREY_16)


def test_real_and_wide_integer_tiffs_keep_their_values(tmp_path: Path) -> None:
    real = np.array([[-1.5, 0.25], [3.0, 1e6]], dtype=np.float32)
    assert np.array_equal(read(saved(PIL.Image.fromarray(real), tmp_path / "f.tif")).array()[0, ..., 0], real)
    wide = np.array([[-7, 70_000]], dtype=np.int32)
    image = read(saved(PIL.Image.fromarray(wide), tmp_path / "i.tif"))
    assert image.array().dtype == np.int32 and np.array_equal(image.array()[0, ..., 0], wide)
    with pytest.raises(InputError, match="NaN or infinity"):
        read(saved(PIL.Image.fromarray(real * np.float32(np.nan)), tmp_path / "n.tif"))


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    bits = np.array([[True, False, True]])
    for suffix in (".png", ".tif", ".bmp"):
        image = read(saved(PIL.Image.fromarray(bits), tmp_path / f"a{suffix}"))
        assert image.array()[0, 0, :, 0].tolist() == [255, 0, 255] and image.metadata["bits_stored"] == "1"


def test_palettes_become_rgb(tmp_path: Path) -> None:
    picture = PIL.Image.new("P", (2, 1), 1)
    picture.putpalette([0, 0, 0, *RED])
    assert read(saved(picture, tmp_path / "a.png")).array()[0, 0].tolist() == [list(RED), list(RED)]


def test_transparent_pixels_lie_over_black(tmp_path: Path) -> None:
    rgba = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], dtype=np.uint8)
    image = read(saved(PIL.Image.fromarray(rgba), tmp_path / "rgba.png"))
    # 200 x 128 / 255 = 100.4, 100 x .502 = 50.2, 50 x .502 = 25.1
    assert image.array()[0, 0].tolist() == [[200, 100, 50], [0, 0, 0], [100, 50, 25]]
    grey = read(saved(PIL.Image.fromarray(rgba[..., [0, 3]], mode="LA"), tmp_path / "la.png"))
    assert grey.array()[0, 0].tolist() == [[200], [0], [100]]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_orientation_is_applied(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[:, :8] = 255  # white at the left
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: the left edge comes to the top
    image = read(saved(PIL.Image.fromarray(pixels), tmp_path / f"a{suffix}", exif=exif))
    assert image.shape == (1, 32, 16)
    assert image.array()[0, :7].min() > 240 and image.array()[0, 9:].max() < 15


def test_pages_of_one_size_are_a_volume_and_others_need_a_choice(tmp_path: Path) -> None:
    pages = [PIL.Image.new("L", (4, 3), value) for value in (10, 20, 30)]
    path = saved(pages[0], tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    image = read(path)
    assert (image.kind, image.shape, image.affine) == ("volume", (3, 3, 4), None)
    assert image.array()[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert read(path, frame=2).array().max() == 30 and read(path, frame=2).kind == "picture"
    with pytest.raises(InputError, match="frame 3 was asked for, allowed is 0 to 2"):
        read(path, frame=3)
    mixed = saved(pages[0], tmp_path / "b.tif", save_all=True, append_images=[PIL.Image.new("L", (2, 2))])
    with pytest.raises(InputError, match=r"page 1 is .* choose one page with frame="):
        read(mixed)
    assert read(mixed, frame=1).shape == (1, 2, 2)


def huge_png(side: int) -> bytes:
    """A valid PNG of side x side grey pixels whose data unpack to far more than the file's size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [60_000, 12_000])  # Pillow itself refuses the first only
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(huge_png(side))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(InputError, match="134,217,728") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - start < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_cut_empty_and_false_pictures_are_refused_in_one_line(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    whole = saved(PIL.Image.fromarray(noise), tmp_path / f"whole{suffix}").read_bytes()
    cases = {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"this is a text file\n" * 9, "head": whole[:12]}
    for name, content in cases.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def found(shape: tuple[int, int, int], boxes: list[tuple[int, int, int, int]], concept: str = "polyp") -> Masks:
    """Filled rectangles row0:row1, col0:col1 in the first frame, scores .9, .8, ..."""
    dense = np.zeros((len(boxes), *shape), dtype=bool)
    for k, (row0, row1, col0, col1) in enumerate(boxes):
        dense[k, 0, row0:row1, col0:col1] = True
    return Masks.from_dense(dense, [0.9 - 0.1 * k for k in range(len(boxes))], concept=concept)


def test_a_label_map_has_the_images_size_and_its_legend(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 6, 9, 3), dtype=np.uint8))
    disc, cup = found(image.shape, [(0, 6, 0, 6)], "optic disc"), found(image.shape, [(1, 3, 1, 3)], "optic cup")
    for order, value in (([disc, cup], 2), ([cup, disc], 1)):  # the smaller concept is on top in any order
        write(order, tmp_path / "mask.png", image)
        with PIL.Image.open(tmp_path / "mask.png") as picture:
            labels = np.asarray(picture)
            legend = json.loads(picture.info["medsam3"])
        expected = np.zeros((6, 9), dtype=np.uint8)
        expected[:, :6], expected[1:3, 1:3] = 3 - value, value
        assert labels.dtype == np.uint8 and np.array_equal(labels, expected)
        assert legend[value - 1] == {"value": value, "concept": "optic cup", "score": 0.9}


def test_of_overlapping_objects_the_better_score_is_kept(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 4, 4, 1), dtype=np.uint8))
    write(found(image.shape, [(0, 3, 0, 3), (1, 4, 1, 4)]), tmp_path / "mask.png", image)
    with PIL.Image.open(tmp_path / "mask.png") as picture:
        assert np.asarray(picture).tolist() == [[1, 1, 1, 0], [1, 1, 1, 2], [1, 1, 1, 2], [0, 2, 2, 2]]


def test_more_than_255_objects_need_16_bits(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 20, 20, 1), dtype=np.uint8))
    pixel = np.ones((1, 1, 1), dtype=bool)
    objects = tuple(ObjectMask((0, k // 20, k % 20), pixel, 1 - k / 1000) for k in range(300))
    write(Masks(image.shape, objects), tmp_path / "mask.png", image)
    with PIL.Image.open(tmp_path / "mask.png") as picture:
        assert np.asarray(picture).max() == 300
    assert read(tmp_path / "mask.png").array().dtype == np.uint16


def test_nothing_found_is_a_black_label_map(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 3, 5, 1), dtype=np.uint8))
    write(Masks(image.shape, concept="polyp"), tmp_path / "mask.png", image)
    assert not read(tmp_path / "mask.png").array().any()


def test_a_label_map_png_of_a_volume_is_refused(tmp_path: Path) -> None:
    image = Image(np.zeros((2, 3, 5, 1), dtype=np.uint8), kind="volume")
    with pytest.raises(InputError, match="one frame, this image has 2: use the format nifti"):
        write(Masks(image.shape), tmp_path / "mask.png", image)


def test_an_overlay_has_the_images_size_and_shows_the_fullest_frame(tmp_path: Path) -> None:
    image = Image(np.full((3, 80, 100, 1), 50, dtype=np.uint8), kind="volume")
    dense = np.zeros((1, 3, 80, 100), dtype=bool)
    dense[0, 1, 70:74, 70:74], dense[0, 2, 30:60, 30:60] = True, True
    write(Masks.from_dense(dense, [0.9], concept="liver"), tmp_path / "a_overlay.png", image)
    shown = read(tmp_path / "a_overlay.png").array()[0]
    assert shown.shape == (80, 100, 3)
    assert (shown[40, 40] != 50).all() and (shown[72, 72] == 50).all()  # frame 2 has the larger part


def test_only_the_formats_that_are_read_here_are_opened_whatever_the_name(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with (
        pytest.raises(InputError, match="the file is of no known form, a picture is wanted: save it as PNG"),
        open_picture(tmp_path / "a.jpg"),
    ):
        pass
    with pytest.raises(InputError, match="the content is not what the name says"):
        read(tmp_path / "a.jpg")


def test_a_tiff_of_samples_that_are_not_read_is_told_as_such(tmp_path: Path) -> None:
    values = np.arange(6 * 5, dtype="<f8").reshape(6, 5)
    tags = [(256, 4, 1, 5), (257, 4, 1, 6), (258, 3, 1, 64), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 3, 1, 1), (278, 4, 1, 6), (279, 4, 1, values.nbytes), (339, 3, 1, 3)]
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    header = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
    (tmp_path / "a.tif").write_bytes(header + values.tobytes() + struct.pack("<H", len(tags)) + body + bytes(4))
    with pytest.raises(InputError, match="the TIFF holds 1 64-bit real samples a pixel, which is not read here: save"):
        read(tmp_path / "a.tif")


def test_a_palettes_numbers_are_labels_and_a_jpeg_holds_none(tmp_path: Path) -> None:
    labels = np.zeros((6, 5), dtype=np.uint8)
    labels[1:3, 2:4] = 2
    picture = PIL.Image.fromarray(labels)
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(tmp_path / "a.png")
    (found,), _ = read_masks(tmp_path / "a.png")
    assert found.concept == "label 2"
    np.testing.assert_array_equal(found.union()[0], labels > 0)
    for name, options in (("a.jpg", {}), ("a.tif", {"compression": "jpeg"})):
        PIL.Image.fromarray(labels * 100).save(tmp_path / name, **options)
        with pytest.raises(InputError, match="as it is packed here cannot hold labels"):
            read_masks(tmp_path / name)


def test_labels_that_were_saved_as_colours_are_taken_where_all_channels_are_one(tmp_path: Path) -> None:
    labels = np.zeros((6, 5), dtype=np.uint8)
    labels[1:3, 2:4] = 255
    for mode in ("RGB", "RGBA", "LA", "1"):
        PIL.Image.fromarray(labels).convert(mode).save(tmp_path / "a.png")
        (found,), _ = read_masks(tmp_path / "a.png")
        np.testing.assert_array_equal(found.union()[0], labels > 0, err_msg=mode)
    PIL.Image.fromarray(np.stack([labels, 0 * labels, labels], axis=-1)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="this file has colours"):
        read_masks(tmp_path / "a.png")


@pytest.mark.skipif(not PIL.features.check("avif"), reason="needs a Pillow with AVIF")
def test_an_avif_picture_is_read_upright(tmp_path: Path) -> None:
    wide = np.zeros((20, 32, 3), dtype=np.uint8)
    wide[:, :16] = 255  # the left half is white
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what was left is above
    PIL.Image.fromarray(wide).save(tmp_path / "a.avif", exif=exif)
    found = read(tmp_path / "a.avif")
    assert (found.kind, found.shape, found.metadata["format"]) == ("picture", (1, 32, 20), "AVIF")
    assert found.array()[0, 4].min() > 200 and found.array()[0, 28].max() < 50


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_damaged_heic_picture_is_one_line(tmp_path: Path, brand: bytes) -> None:
    pytest.importorskip("pi_heif", reason="needs pi-heif, of the extra heic")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(400))
    with pytest.raises(InputError, match="the picture cannot be decoded"):
        read(tmp_path / "a.heic")


def test_heic_without_its_reader_says_which_extra_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(400))
    with pytest.raises(InputError, match=r"pip install 'medsam3\[heic\]'"):
        read(tmp_path / "a.heic")


def test_digits_of_names_that_are_no_numbers_sort_as_text(tmp_path: Path) -> None:
    for name in ("a10.png", "a9.png", "a².png"):
        PIL.Image.new("L", (4, 3)).save(tmp_path / name)
    assert [path.name for path in frame_files(tmp_path)] == ["a9.png", "a10.png", "a².png"]


def test_natural_order_takes_numbers_of_any_length() -> None:
    assert sorted(["s10.png", "s9.png", "S1.png", "a2/s1", "3", "9" * 5000], key=natural_key) == [
        *("3", "9" * 5000, "a2/s1", "S1.png", "s9.png", "s10.png")
    ]
