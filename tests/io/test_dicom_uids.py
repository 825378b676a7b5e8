"""Identifiers of results: the same for the same, others for all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from made_dicom import series
from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.io import read, write
from medsam3.io.dicom_uids import heading_of, result_uid


def test_an_identifier_is_made_of_what_the_result_is_made_of() -> None:
    first = result_uid("seg instance", ["1.2", "1.3"], "liver")
    assert result_uid("seg instance", ["1.3", "1.2"], "liver") == first
    others = {
        result_uid("seg series", ["1.2", "1.3"], "liver"),
        result_uid("seg instance", ["1.2"], "liver"),
        result_uid("seg instance", ["1.2", "1.3", "1.4"], "liver"),
        result_uid("seg instance", ["1.2", "1.3"], "kidney"),
        result_uid("seg instance", ["1.2", "1.3"], None),
        result_uid("seg instance", ["1.2", "1.3"], None),
    }
    assert len(others | {first}) == 7
    assert all(len(uid) <= 64 and set(uid) <= set("0123456789.") for uid in others)


@pytest.mark.parametrize("form", ["seg", "rtstruct"])
def test_a_result_that_is_written_again_has_the_same_identifiers(form: str, tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    dense = np.zeros((1, *image.shape), dtype=np.bool_)
    dense[0, 1:3, 2:4, 1:5] = True
    masks = Masks.from_dense(dense, [0.5], concept="liver")
    for name, identity in (("a", "liver"), ("b", "liver"), ("c", "kidney"), ("d", None)):
        write(masks, tmp_path / f"{name}.dcm", image, format=form, identity=identity)
    uids = []
    for name in "abcd":
        dataset = pydicom.dcmread(tmp_path / f"{name}.dcm")
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        uids.append((dataset.SOPInstanceUID, dataset.SeriesInstanceUID))
    assert uids[0] == uids[1]
    assert len({one for pair in uids for one in pair}) == 6  # two each of a, c and d
    instances = [heading_of(path).instance for path in image.source]
    assert uids[0][0] == result_uid(f"{form} instance", instances, "liver")


def test_a_heading_tells_where_a_file_belongs(tmp_path: Path) -> None:
    [path, *_] = sorted(series(tmp_path / "ct").iterdir())
    dataset, heading = pydicom.dcmread(path), heading_of(path)
    assert (heading.study, heading.series, heading.instance) == (
        "1.2.3.5",
        dataset.SeriesInstanceUID,
        dataset.SOPInstanceUID,
    )
    assert (heading.modality, heading.body_part, heading.description) == ("CT", "", "")
    (tmp_path / "no.dcm").write_text("no DICOM", encoding="utf-8")
    with pytest.raises(InputError):
        heading_of(tmp_path / "no.dcm")
