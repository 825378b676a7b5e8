"""Slices of volumes as training samples: which ones, what they show, and where their masks lie."""

import os
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsam3.data.samples import is_sided
from medsam3.data.volumes import SlicePlan, chosen_slices, samples_from_volumes
from medsam3.errors import InputError
from medsam3.io import read
from medsam3.view.view import view_of

SHAPE = (7, 9, 12)  # (i, j, k) of the file
DATA = os.environ.get("MEDSAM3_DATA", "")
HEAD = "dataset,image,mask,concept,label_value,split,group,present\n"


def data_folder(folder: Path, *, mask_affine: np.ndarray | None = None, mask_shape: tuple[int, ...] = SHAPE) -> Path:
    """One RAS volume whose voxel values tell where they are; label 1 in slices 4..8, label 2 in slices 6..8."""
    i, j, k = np.indices(SHAPE)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image((100 * k + 10 * j + i).astype(np.int16), affine), folder / "v.nii.gz")
    labels = np.zeros(mask_shape, np.uint8)
    labels[1:3, 2:6, 4:9] = 1
    labels[4:6, 2:6, 6:9] = 2
    nibabel.save(nibabel.Nifti1Image(labels, affine if mask_affine is None else mask_affine), folder / "m.nii.gz")
    rows = [("whole", "1|2"), ("front", "1"), ("back", "2")]
    text = "".join(f"brain,v.nii.gz,m.nii.gz,{concept},{value},train,v,1\n" for concept, value in rows)
    (folder / "index.csv").write_text(HEAD + text)
    return folder


def test_every_kth_slice_across_the_organ_and_a_share_without_it_are_taken() -> None:
    has = np.zeros(12, dtype=np.bool_)
    has[4:9] = True
    # 4, 6, 8 have it; a share of one third of 3 is 1 of the empty 0, 1, 2, 3, 9, 10, 11: the middle one, 3.
    assert chosen_slices(has, SlicePlan(every=2, empty_share=1 / 3)) == [3, 4, 6, 8]
    assert chosen_slices(has, SlicePlan(every=2, empty_share=0)) == [4, 6, 8]
    assert chosen_slices(has, SlicePlan(every=1, empty_share=9)) == list(range(12))
    assert chosen_slices(np.zeros(5, dtype=np.bool_), SlicePlan(every=2)) == [0, 2, 4]


def test_a_slice_is_a_sample_with_its_own_truth(tmp_path: Path) -> None:
    samples = samples_from_volumes(data_folder(tmp_path), SlicePlan(every=1, empty_share=0.2))
    assert [sample.name for sample in samples] == [f"v.nii.gz#{n}" for n in (3, 4, 5, 6, 7, 8)]
    assert {sample.group for sample in samples} == {"v"}
    present = [[target.is_present for target in sample.targets] for sample in samples]
    assert present == [[False] * 3, *[[True, True, False]] * 2, *[[True] * 3] * 3]
    whole = samples[-1].targets[0].load()
    # Axial: rows run to the back, so that j 2..5 of 9 are rows 3..6; columns to the left, so that i 1..2 of 7 are 4..5.
    assert np.argwhere(whole == whole[4, 4]).min(axis=0).tolist() == [3, 4]
    assert int(whole.max()) == 2
    assert int((whole > 0).sum()) == 2 * 2 * 4
    assert not samples[0].targets[0].load().any()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_slice_looks_as_it_does_when_a_volume_is_segmented(tmp_path: Path, plane: str) -> None:
    folder = data_folder(tmp_path)
    view = view_of(read(folder / "v.nii.gz"), plane)  # type: ignore[arg-type]
    samples = samples_from_volumes(folder, SlicePlan(every=1, planes=(plane,)))  # type: ignore[arg-type]
    assert samples
    for sample in samples:
        number = int(sample.name.removeprefix(f"v.nii.gz#{plane}-"))
        assert np.array_equal(sample.load_rgb(), view.rgb(number))
        assert sample.targets[0].load().shape == view.size


def test_a_sagittal_slice_is_never_mirrored(tmp_path: Path) -> None:
    plan = SlicePlan(planes=("axial", "coronal", "sagittal"))
    sided = {
        sample.name.split("#")[1].split("-")[0]: is_sided(sample)
        for sample in samples_from_volumes(data_folder(tmp_path), plan)
    }
    assert sided == {"axial": False, "coronal": False, "sagittal": True}


def test_slices_of_one_volume_have_features_of_their_own_in_the_cache(tmp_path: Path) -> None:
    first, second, *_ = samples_from_volumes(data_folder(tmp_path))
    assert first.picture_digest() != second.picture_digest()
    assert first.targets[0].digest() != second.targets[0].digest()


def test_a_mask_of_another_size_or_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m\.nii\.gz: the label map covers other voxels than the image"):
        samples_from_volumes(data_folder(tmp_path, mask_shape=(8, 9, 12)))
    with pytest.raises(InputError, match="lies on another grid than the image"):
        samples_from_volumes(data_folder(tmp_path, mask_affine=np.diag([1.0, 2.0, 1.0, 1.0])))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"every": 0}, "allowed is 1"), ({"empty_share": -1.0}, "allowed is 0"), ({"planes": ("up",)}, "planes are up")],
)
def test_a_plan_out_of_range_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SlicePlan(), **change)  # type: ignore[arg-type]


@pytest.mark.skipif(not DATA, reason="MEDSAM3_DATA is not set")
def test_the_hippocampus_volumes_give_slices_with_and_without_it() -> None:
    folder = Path(DATA)
    samples = [sample for sample in samples_from_volumes(folder) if sample.dataset == "msd_hippocampus"]
    assert len({sample.group for sample in samples}) == 88
    presence = [sample.targets[0].is_present for sample in samples]
    assert 0.15 < 1 - np.mean(presence) < 0.3
    assert len({sample.name for sample in samples}) == len(samples)
