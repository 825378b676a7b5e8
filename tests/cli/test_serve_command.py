"""`medsam3 serve` refuses what is not safe or cannot work, in one line, before anything is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from medsam3.cli.main import main
from medsam3.cli.serve import Serve


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("medsam3: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_another_host_demands_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--token-file" in refused(capsys, "--host", "0.0.0.0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--port", "70000"), "0 to 65535"),
        (("--workers", "0"), "workers"),
        (("--model", "no-such"), "allowed are"),
        (("--data", "no/such/folder"), "no folder"),
        (("--max-upload", "much"), "2GiB"),
        (("--token-file", "no-such.txt"), "cannot be read"),
    ],
)
def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(capsys, *arguments)


def test_a_port_that_is_taken_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} cannot be listened on" in refused(capsys, "--port", str(port))


def test_a_token_file_lets_other_machines_in(tmp_path: Path) -> None:
    path = tmp_path / "tokens.txt"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    settings = Serve(host="0.0.0.0", token_file=path, allow_host=("Images.example.org",), max_upload="1MiB").settings()
    assert settings.tokens == ("0123456789abcdef",)
    assert "images.example.org" in settings.allowed_hosts
    assert settings.limits.upload_bytes == 2**20
