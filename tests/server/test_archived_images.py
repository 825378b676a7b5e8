"""Series that lie in an archive alone: named by a tool, fetched, segmented, their labels stored back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from starlette.testclient import TestClient

import medsam3
from made_archive import PASSWORD, USER, Orthanc
from made_clients import dialect_client
from made_study import made_study
from medsam3.cli.serve import Serve
from medsam3.errors import InputError
from medsam3.io.dicom_seg import read_seg
from medsam3.pacs.dicomweb import Access, fetch_series, store_result
from medsam3.server.settings import ArchiveAccess
from slow_segmenter import TaughtSegmenter

PHRASE = {"params": json.dumps({"text": "liver", "result_extension": ".nii.gz"})}


def served(archive: str) -> Any:
    """A server with that archive, set up as the command line does."""
    return dialect_client("monailabel", archive=Serve(archive=archive).settings().archive)


def served_impatiently(root: str) -> Any:
    """A server with an archive that is waited for one second."""
    access = Access(timeout_s=1.0, waits_s=())
    ways = ArchiveAccess(partial(fetch_series, root, access), partial(store_result, root, access))
    return dialect_client("monailabel", archive=ways)


def infer(client: TestClient, series: str, output: str = "image") -> Any:
    return client.post(f"/monailabel/infer/phrase?image={series}&output={output}", data=PHRASE)


def images(client: TestClient) -> float:
    return float(client.get("/metrics").text.partition("\nmedsam3_images ")[2].split()[0])


def test_who_asks_for_a_series_while_it_is_fetched_waits_for_it(orthanc: Orthanc, tmp_path: Path) -> None:
    study = made_study(tmp_path / "study")
    orthanc.send(study.folder)
    with served(orthanc.root) as client, ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: infer(client, study.series), range(4)))
        assert [answer.status_code for answer in answers] == [200] * 4
        assert images(client) == 1


def test_a_series_of_the_archive_is_segmented_and_its_label_stored_there(orthanc: Orthanc, tmp_path: Path) -> None:
    study = made_study(tmp_path / "study")
    orthanc.send(study.folder)
    image = medsam3.read(study.folder)
    wanted = medsam3.segment(image, "liver", TaughtSegmenter())[0].union()
    assert wanted[study.bright].all()
    with served(orthanc.root) as client:
        told = infer(client, study.series)
        assert told.status_code == 200, told.text
        path = tmp_path / "found.nii.gz"
        path.write_bytes(told.content)
        labels = np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(labels > 0, wanted)
        infer(client, study.series, "json")
        assert images(client) == 1  # it is fetched once
        sent = {"params": json.dumps({"label_info": [{"name": "my liver", "idx": 1}]})}
        place = f"/monailabel/datastore/label?image={study.series}"
        cut = client.put(place, files={"label": ("label.bin", labels.astype(np.uint8).tobytes()[:-1])}, data=sent)
        assert cut.status_code == 400
        assert orthanc.count(study.study, "SEG") == 0
        assert client.put(place, files={"label": ("found.nii.gz", told.content)}, data=sent).status_code == 200
        assert orthanc.count(study.study, "SEG") == 1
    archive = DICOMwebClient(f"{orthanc.origin}/dicom-web", session=create_session_from_user_pass(USER, PASSWORD))
    (found,) = archive.search_for_instances(study.study, search_filters={"Modality": "SEG"})
    stored = archive.retrieve_instance(study.study, *(found[tag]["Value"][0] for tag in ("0020000E", "00080018")))
    assert [one.SegmentLabel for one in stored.SegmentSequence] == ["my liver 1"]
    assert {one.ReferencedSOPInstanceUID for one in stored.ReferencedSeriesSequence[0].ReferencedInstanceSequence} <= {
        *study.instances
    }
    stored.save_as(tmp_path / "back.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_seg(tmp_path / "back.dcm", image)[0].union(), wanted)


def test_a_series_that_the_archive_lacks_is_not_found(orthanc: Orthanc) -> None:
    with served(orthanc.root) as client:
        answer = infer(client, "1.2.3.4.5")
        assert answer.status_code == 404
        assert "the archive has no series 1.2.3.4.5" in answer.json()["detail"]
        assert infer(client, "scan").status_code == 404
        assert images(client) == 0


class _Bad(BaseHTTPRequestHandler):
    """Answers 500, or not at all."""

    def do_GET(self) -> None:
        if "hangs" in self.path:
            time.sleep(4)
        self.send_error(500)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def bad() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bad)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize(("root", "message"), [("fails", "answers 500"), ("hangs", "does not answer within 1 s")])
def test_an_archive_that_fails_or_hangs_is_named_and_holds_up_nothing(root: str, message: str, bad: str) -> None:
    with served_impatiently(f"{bad}/{root}") as client:
        answer = infer(client, "1.2.3.4.5")
        assert answer.status_code == 502
        assert message in answer.json()["detail"]
        assert images(client) == 0
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        ("https://host/dicom-web", "is no address of an archive"),
        ("dicomweb:https://host/dicom-web/studies/1.2", "give its root, as dicomweb:https://host/dicom-web"),
    ],
)
def test_an_archive_is_named_by_its_root(archive: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Serve(archive=archive).settings()
