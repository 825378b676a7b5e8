"""Who may ask, and what is refused before it is opened."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from made_server import begun, opened, png, started, step, upload
from medsam3.errors import InputError
from medsam3.server.reader import stored_name
from medsam3.server.settings import Limits, Settings, in_brackets, read_tokens

ONE, OTHER = "a" * 32, "b" * 32


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def test_the_http_layer_is_imported_without_torch_or_any_reader() -> None:
    heavy = {"torch", "transformers", "scipy", "pydicom", "nibabel", "SimpleITK", "highdicom", "av"}
    code = f"import sys, medsam3.server.app; print(*sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_another_host_without_a_token_does_not_start(host: str) -> None:
    with pytest.raises(InputError, match="--token-file"):
        Settings(host=host)
    assert Settings(host=host, tokens=(ONE,)).allowed_hosts


def test_tokens_are_read_from_a_file_that_only_its_owner_may_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text(f"# of the lab\n{ONE}\n\n{OTHER}\n")
    path.chmod(0o600)
    assert read_tokens(path) == (ONE, OTHER)
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        read_tokens(path)
    path.chmod(0o600)
    path.write_text("short\n")
    with pytest.raises(InputError, match="too short"):
        read_tokens(path)
    path.write_text("# none\n")
    with pytest.raises(InputError, match="holds no token"):
        read_tokens(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_tokens(tmp_path / "none.txt")


def test_a_wrong_token_is_refused_and_ids_belong_to_theirs() -> None:
    with started(tokens=(ONE, OTHER)) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/").status_code == 200
        for headers in ({}, bearer("c" * 32), bearer(ONE[:-1]), bearer(""), {"Authorization": ONE}):
            refused = client.get("/v1/models", headers=headers)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.headers["content-type"] == "application/problem+json"
        assert client.get("/metrics").status_code == 401
        image = upload(client, ("block.png", png()), headers=bearer(ONE)).json()["id"]
        place = f"/v1/images/{image}"
        assert client.get(place, headers=bearer(ONE)).status_code == 200
        session = client.post(f"{place}/sessions", json={}, headers=bearer(ONE)).json()["id"]
        result = client.post(f"{place}/sessions/{session}/results", headers=bearer(ONE)).json()["id"]
        job = client.post("/v1/jobs", json={"image": image, "phrases": ["x"]}, headers=bearer(ONE)).json()["id"]
        for mine in (place, f"{place}/sessions/{session}", f"/v1/results/{result}", f"/v1/jobs/{job}"):
            assert client.get(mine, headers=bearer(ONE)).status_code == 200
            assert client.get(mine, headers=bearer(OTHER)).status_code == 404
        assert client.delete(place, headers=bearer(OTHER)).status_code == 404
        assert client.get(place, headers=bearer(ONE)).status_code == 200


def test_ids_are_long_and_never_the_same(client: TestClient) -> None:
    ids = {opened(client)["id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(len(name) == 32 for name in ids)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_a_host_that_is_not_served_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 421


def test_pages_of_other_sites_may_not_ask(client: TestClient) -> None:
    assert client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_a_site_on_the_list_may_ask_with_a_token_and_no_other() -> None:
    mine, other = {"Origin": "https://lab.example"}, {"Origin": "https://evil.example"}
    with started(tokens=(ONE,), origins=("https://lab.example",)) as client:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = client.options("/v1/images", headers=mine | asked)
        assert before.status_code == 204
        assert before.headers["access-control-allow-origin"] == "https://lab.example"
        assert "Authorization" in before.headers["access-control-allow-headers"]
        answer = client.get("/v1/models", headers=mine | bearer(ONE))
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://lab.example")
        assert client.get("/v1/models", headers=mine).status_code == 401
        for refused in (client.options("/v1/images", headers=other | asked), client.get("/healthz", headers=other)):
            assert refused.status_code == 403 and "access-control-allow-origin" not in refused.headers
    for wrong in ("*", "lab.example", "https://lab.example/page"):
        with pytest.raises(InputError, match="origin is"):
            Settings(origins=(wrong,))


def test_the_documentation_of_the_api_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs/")
    assert page.status_code == 200 and client.get("/docs").status_code == 200
    assert "http" not in page.text and "<style" not in page.text and "style=" not in page.text
    for name in ("swagger/swagger-ui.css", "swagger/swagger-ui-bundle.js", "start.js"):
        assert f'"/docs/{name}"' in page.text and client.get(f"/docs/{name}").status_code == 200
    routes = client.get("/openapi.json").json()["paths"]
    assert {"/v1/images", "/v1/jobs", "/v1/agent/preview", "/healthz"} <= set(routes)


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/page/app.js", "/v1/models", "/v1/images/none"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert ("no-store" in headers.get("cache-control", "")) == path.startswith("/v1/")


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for name in ("index.html", "app.js", "api.js", "study.js", "viewer.js", "style.css"):
        text = client.get(f"/page/{name}").text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert " style=" not in text


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/%2e%2e/store.py",
        "/page//etc/passwd",
    ],
)
def test_nothing_beside_the_page_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_the_data_folder_is_not_left(tmp_path: Path) -> None:
    data, outside = tmp_path / "data", tmp_path / "secret.png"
    (data / "below").mkdir(parents=True)
    (data / "below" / "block.png").write_bytes(png())
    outside.write_bytes(png())
    (data / "link.png").symlink_to(outside)
    with started(data=data) as client:
        names = [one["name"] for one in client.get("/v1/data").json()]
        assert names == ["below"]
        assert client.post("/v1/data", json={"path": "below/block.png"}).json()["width"] == 60
        for path in ("../secret.png", "link.png", str(outside), "below/../../secret.png", "a\0b", "none.png"):
            assert client.post("/v1/data", json={"path": path}).status_code == 404, path
        assert client.get("/v1/data", params={"path": ".."}).status_code == 404


def test_uploads_are_stored_under_numbers() -> None:
    assert stored_name(3, "../../etc/passwd") == "000003"
    assert stored_name(3, "..\\..\\boot.ini") == "000003.ini"
    assert stored_name(3, "/root/DOE^JOHN.dcm") == "000003.dcm"
    assert stored_name(0, "a.nii.gz") == "000000.nii.gz"
    assert stored_name(0, "x/brain.mhd") == "brain.mhd"
    assert stored_name(0, "a.b c") == "000000"


def test_names_that_lead_elsewhere_are_opened_in_their_folder(client: TestClient) -> None:
    image = opened(client, ("../../../../tmp/medsam3-evil.png", png()))
    assert image["name"] == "medsam3-evil.png"
    assert not Path("/tmp/medsam3-evil.png").exists()
    packed = opened(client, ("study.zip", zipped({"../../medsam3-evil.png": png()})))
    assert (packed["width"], packed["height"]) == (60, 40)
    assert not Path("/tmp/medsam3-evil.png").exists()


def test_a_zip_bomb_is_refused_by_what_its_list_says(client: TestClient) -> None:
    bomb = zipped({"zeros.png": bytes(40 * 2**20)})
    assert len(bomb) < 2**20
    with started(limits=Limits(upload_bytes=2**20)) as small:
        refused = upload(small, ("bomb.zip", bomb))
        assert refused.status_code == 400
        assert "unpacks to more than 1048576 bytes" in refused.json()["detail"]
        many = zipped({f"{n}.png": b"x" for n in range(50)})
        assert upload(small, ("many.zip", many)).status_code == 400


def test_a_zip_that_lies_about_its_sizes_is_refused(client: TestClient) -> None:
    data = bytearray(zipped({"zeros.png": bytes(8 * 2**20)}))
    for magic, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(magic) + offset
        data[at : at + 4] = struct.pack("<I", 1000)
    assert upload(client, ("liar.zip", bytes(data))).status_code == 400


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
        b"PK\3\4" + b"\xff" * 60,
        png()[:60],
        bytes(132) + b"DICM" + b"\xff" * 99,
    ],
    ids=["empty", "text", "png head", "zip head", "cut png", "dicom head"],
)
def test_garbage_is_a_problem_document_and_the_server_lives_on(client: TestClient, data: bytes) -> None:
    refused = upload(client, ("what.png", data))
    assert refused.status_code == 400
    problem = refused.json()
    assert (problem["status"], problem["title"], problem["type"]) == (400, "Bad Request", "about:blank")
    assert "\n" not in problem["detail"]
    assert "/tmp" not in problem["detail"]
    assert client.get("/healthz").status_code == 200


def test_an_upload_that_is_too_large_is_refused_while_it_comes_in() -> None:
    with started(limits=Limits(upload_bytes=100_000)) as client:
        declared = upload(client, ("big.png", os.urandom(200_000)))
        assert declared.status_code == 413

        def pieces() -> object:
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
            for _ in range(20):
                yield os.urandom(10_000)
            yield b"\r\n--x--\r\n"

        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        undeclared = client.post("/v1/images", content=pieces(), headers=headers)  # type: ignore[arg-type]
        assert undeclared.status_code == 413
        folder = client.app.state.service.holdings.folder  # type: ignore[attr-defined]
        assert list(folder.iterdir()) == []


def test_large_frames_and_long_stacks_are_refused_by_their_header() -> None:
    with started(limits=Limits(frame_pixels=1000)) as client:
        refused = upload(client, ("block.png", png()))
        assert refused.status_code == 400
        assert "60 x 40 pixels" in refused.json()["detail"]


def test_the_number_of_images_is_bounded() -> None:
    with started(limits=Limits(images=1)) as client:
        opened(client)
        refused = upload(client, ("block.png", png()))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "60"


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"do": "nothing"},
        {"do": "click", "x": 1},
        {"do": "segment", "phrase": ""},
        {"do": "click", "x": "a", "y": 0},
        {"do": "undo", "more": 1},
        {"do": "box", "box": [1, 2, 3]},
        [],
        "x",
        {"do": "click", "x": 1e999, "y": 0},
    ],
)
def test_a_step_of_another_form_is_refused_in_one_line(client: TestClient, asked: object) -> None:
    session = begun(client, opened(client)["id"])
    refused = client.post(f"{session}/steps", content=_json(asked), headers={"Content-Type": "application/json"})
    assert refused.status_code == 422
    assert "\n" not in refused.json()["detail"]


def _json(asked: object) -> bytes:
    import json  # noqa: PLC0415

    return json.dumps(asked).encode()


def test_the_log_and_the_metrics_hold_no_names_and_no_ids(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "medsam3"):
        image = opened(client, ("DOE^JOHN.png", png()))["id"]
        session = begun(client, image)
        step(client, session, do="segment", phrase="secret phrase")
        upload(client, ("DOE^JOHN.png", b"garbage"))
    logged = caplog.text
    assert "POST /v1/images 201" in logged
    counted = client.get("/metrics").text
    assert 'medsam3_requests_total{method="POST",route="/v1/images",status="201"}' in counted
    for secret in ("DOE", image, session.rsplit("/", 1)[-1], "secret phrase"):
        assert secret not in logged
        assert secret not in counted


def test_two_clients_hold_their_own_images(client: TestClient) -> None:
    first, second = opened(client)["id"], opened(client)["id"]
    mine = begun(client, first)
    foreign = f"/v1/images/{second}/sessions/{mine.rsplit('/', 1)[-1]}"
    assert client.get(mine).status_code == 200
    assert client.get(foreign).status_code == 404
    assert client.get("/v1/images").status_code == 405


def test_an_address_of_ipv6_is_put_in_brackets_once() -> None:
    assert [in_brackets(host) for host in ("::1", "[::1]", "localhost")] == ["[::1]", "[::1]", "localhost"]
