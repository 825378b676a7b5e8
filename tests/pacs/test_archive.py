"""`medsam3 segment dicomweb:...` against a real Orthanc: what comes in, what goes back, and what is done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass

from made_archive import PASSWORD, USER, Orthanc, errors_of
from made_dicom import world
from made_study import Study, made_study
from medsam3.cli.main import main
from medsam3.io import read
from medsam3.io.dicom_seg import read_seg
from medsam3.io.dicom_uids import heading_of
from threshold_segmenter import ThresholdSegmenter

MODEL = ("--model", "threshold")


@pytest.fixture
def study(
    tmp_path: Path, orthanc: Orthanc, threshold_model: ThresholdSegmenter, monkeypatch: pytest.MonkeyPatch
) -> Study:
    """A study that lies in the archive; the working folder is empty."""
    del threshold_model
    made = made_study(tmp_path / "scans")
    orthanc.send(made.folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return made


def _address(orthanc: Orthanc, study: Study) -> str:
    return f"{orthanc.root}/studies/{study.study}/series/{study.series}"


def _from_archive(orthanc: Orthanc, study: Study, modality: str) -> Any:
    """The one instance of a modality, fetched by another library."""
    session = create_session_from_user_pass(USER, PASSWORD)
    client = DICOMwebClient(f"{orthanc.origin}/dicom-web", session=session)
    [found] = client.search_for_instances(study.study, search_filters={"Modality": modality})
    place = [found[tag]["Value"][0] for tag in ("0020000E", "00080018")]
    return client.retrieve_instance(study.study, *place)


def test_the_mask_in_the_archive_lies_where_that_of_the_command_line_lies(
    orthanc: Orthanc, study: Study, tmp_path: Path
) -> None:
    assert main(["segment", _address(orthanc, study), "--text", "polyp", "--store", *MODEL]) == 0
    dataset = _from_archive(orthanc, study, "SEG")
    volume = highdicom.seg.Segmentation.from_dataset(dataset).get_volume(combine_segments=True)
    found = {tuple(np.round(volume.affine @ [*index, 1], 2)[:3]) for index in np.argwhere(volume.array)}

    assert main(["segment", str(study.folder), "--text", "polyp", "--format", "seg", "--out", "local", *MODEL]) == 0
    [own] = Path("local").glob("*_seg.dcm")
    image = read(study.folder)
    mask = read_seg(own, image)[0].union()
    assert found == {tuple(np.round(world(*index), 2)) for index in np.argwhere(mask)}
    assert mask[study.bright].all()
    assert mask.sum() <= 2 * 7 * 3  # the bright block, and half a pixel of the square ones that the model is shown
    dataset.save_as(tmp_path / "back.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_seg(tmp_path / "back.dcm", image)[0].union(), mask)
    assert heading_of(own).instance == dataset.SOPInstanceUID  # the same images, phrase and weights


def test_results_refer_to_their_images_and_keep_the_standard(orthanc: Orthanc, study: Study, tmp_path: Path) -> None:
    formats = ("--format", "seg,rtstruct")
    assert main(["segment", _address(orthanc, study), "--text", "liver", "--store", *formats, *MODEL]) == 0
    seg, structures = (_from_archive(orthanc, study, modality) for modality in ("SEG", "RTSTRUCT"))
    for number, dataset in enumerate((seg, structures)):
        assert dataset.StudyInstanceUID == study.study
        assert dataset.PatientID == "secret-id"
        dataset.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        assert errors_of(tmp_path / f"{number}.dcm") == []
    [series] = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == study.series
    assert sorted(one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence) == sorted(study.instances)
    [frame] = structures.ReferencedFrameOfReferenceSequence
    [drawn_on] = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert drawn_on.SeriesInstanceUID == study.series


def test_a_result_that_is_empty_is_stored_too_and_keeps_the_standard(
    orthanc: Orthanc, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = ("--format", "seg,rtstruct")
    assert main(["segment", _address(orthanc, study), "--text", "absent", "--store", *formats, *MODEL]) == 0
    assert "no absent was found: there is no RT structure set" in capsys.readouterr().err
    _from_archive(orthanc, study, "SEG").save_as(tmp_path / "empty.dcm", enforce_file_format=True)
    assert errors_of(tmp_path / "empty.dcm") == []
    assert orthanc.count(study.study, "RTSTRUCT") == 0


def test_nothing_is_done_twice_here_or_elsewhere(
    orthanc: Orthanc, study: Study, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segment", _address(orthanc, study), "--text", "polyp", "--store", *MODEL]
    assert main(command) == 0
    encoded = threshold_model.encoded
    assert main(command) == 0
    assert "skipped 1 file done before" in capsys.readouterr().out
    assert main([*command, "--out", "as-on-another-machine"]) == 0
    assert "the archive had 1 of the results already" in capsys.readouterr().out
    assert threshold_model.encoded == encoded
    assert orthanc.count(study.study, "SEG") == 1
    assert main([*command, "--text", "liver"]) == 0  # another phrase is other work
    assert orthanc.count(study.study, "SEG") == 2
    assert not Path("as-on-another-machine").exists()


def test_what_was_segmented_without_storing_is_stored_later_without_segmenting(
    orthanc: Orthanc, study: Study, threshold_model: ThresholdSegmenter
) -> None:
    command = ["segment", _address(orthanc, study), "--text", "polyp", "--format", "seg", *MODEL]
    assert main(command) == 0
    encoded = threshold_model.encoded
    assert orthanc.count(study.study, "SEG") == 0
    assert main([*command, "--store"]) == 0
    assert orthanc.count(study.study, "SEG") == 1
    assert threshold_model.encoded == encoded


def test_no_image_of_a_patient_is_left_behind(orthanc: Orthanc, study: Study) -> None:
    assert main(["segment", _address(orthanc, study), "--text", "polyp", "--store", *MODEL]) == 0
    assert sorted(path.name for path in Path("medsam3_out").rglob("*")) == [
        f"{study.series}_polyp_seg.dcm",
        "results.jsonl",
    ]


def test_a_study_and_a_patient_stand_for_all_their_series_with_images(
    orthanc: Orthanc, tmp_path: Path, threshold_model: ThresholdSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    del threshold_model
    monkeypatch.chdir(tmp_path)
    first = made_study(tmp_path / "a", PatientID="patient-of-two")
    second = made_study(tmp_path / "b", PatientID="patient-of-two", StudyInstanceUID=first.study)
    for made in (first, second):
        orthanc.send(made.folder)
    assert main(["segment", f"{orthanc.root}/studies/{first.study}", "--text", "polyp", "--store", *MODEL]) == 0
    assert orthanc.count(first.study, "SEG") == 2
    # The segmentations are now series of the study too, and are no images.
    patient = f"{orthanc.root}/studies?PatientID=patient-of-two"
    assert main(["segment", patient, "--text", "liver", "--store", "--json", *MODEL]) == 0
    assert orthanc.count(first.study, "SEG") == 4


def test_files_and_series_of_an_archive_go_together(
    orthanc: Orthanc, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segment", str(study.folder), _address(orthanc, study), "--text", "polyp", "--format", "csv", "--json"]
    assert main([*command, *MODEL]) == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert len(rows) == 2
    assert rows[0]["area_px"] == rows[1]["area_px"] > 0


BAD = [
    ("nobody:nothing", "is no address", "dicomweb:nobody"),
    ("the whole archive", "is a whole archive", "{root}"),
    ("a study that is not there", "has no series with images at this address", "{root}/studies/1.2.999"),
    (
        "a series that is not there",
        "has no series with images at this address",
        "{root}/studies/{study}/series/1.2.999",
    ),
    ("a service that is not there", "has no such study, series or service", "{origin}/nowhere/studies/1.2"),
    ("what is no identifier", "is no DICOM identifier", "{root}/studies/..%2f..%2fetc"),
    ("a password in the address", "would be logged", "dicomweb:http://a:b@127.0.0.1/studies/1.2"),
]


@pytest.mark.parametrize(("message", "address"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_address_is_one_line(
    message: str, address: str, orthanc: Orthanc, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    named = address.format(root=orthanc.root, study=study.study, origin=f"dicomweb:{orthanc.origin}")
    assert main(["segment", named, "--text", "polyp", "--store", *MODEL]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert not Path("medsam3_out").exists()


@pytest.mark.parametrize("token", [None, "wrong-token"])
def test_who_is_not_known_is_told_so_in_one_line(
    token: str | None,
    orthanc: Orthanc,
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MEDSAM3_DICOMWEB_PASSWORD", "not-it")
    more = () if token is None else ("--token", token)
    assert main(["segment", _address(orthanc, study), "--text", "polyp", *more, *MODEL]) == 2
    said = capsys.readouterr().err.strip()
    assert "does not know who asks" in said
    assert len(said.splitlines()) == 1


def test_store_without_an_archive_is_refused(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(study.folder), "--text", "polyp", "--store", *MODEL]) == 2
    assert "--store puts results back where a series came from" in capsys.readouterr().err
