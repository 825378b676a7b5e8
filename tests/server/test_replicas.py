"""Two servers behind nginx as the documentation sets it up: clients stay where their images are, and one may die."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from made_archive import free_port
from made_server import png
from medsam3.client.client import Client
from medsam3.client.connection import ServerError

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
TESTS = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path(NGINX).exists(), reason="nginx is not installed: apt-get install nginx-light"),
]


@dataclass
class Replicas:
    """Two servers by their addresses, with what opens them, and the proxy before them."""

    proxy: str
    servers: dict[str, subprocess.Popen[str]]
    tokens: tuple[str, ...]

    def home_of(self, image: str, token: str) -> str:
        """Name the one server that has an image."""
        headers = {"Authorization": f"Bearer {token}"}
        [found] = [
            server
            for server in self.servers
            if httpx.get(f"{server}/v1/images/{image}", headers=headers, timeout=30).status_code == 200
        ]
        return found


def documented(ports: list[int], port: int, folder: Path) -> str:
    """The file of the documentation, with other ports, and with what a system sets around it."""
    page = (TESTS.parent / "docs" / "server.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    for old, new in (("8081", ports[0]), ("8082", ports[1]), ("8080", port)):
        assert f":{old}" in block
        block = block.replace(f":{old}", f":{new}")
    places = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    head = f"pid {folder}/pid; error_log {folder}/errors; daemon off; worker_processes 1; events {{}}"
    return f"{head}\nhttp {{ access_log off; {places}\n{block}}}\n"


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Replicas]:
    ports, port = [free_port(), free_port()], free_port()
    tokens = tuple(secrets.token_hex(16) for _ in range(8))
    with ExitStack() as stack:
        servers = {}
        for one in ports:
            command = [sys.executable, str(TESTS / "serve_fake.py"), str(one), *tokens]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.terminate)
            assert process.stdout is not None
            servers[process.stdout.readline().split()[-1].rstrip("/")] = process
        (tmp_path / "nginx.conf").write_text(documented(ports, port, tmp_path), encoding="utf-8")
        proxy = stack.enter_context(subprocess.Popen([NGINX, "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)]))
        stack.callback(proxy.terminate)
        made = Replicas(f"http://127.0.0.1:{port}", servers, tokens)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{made.proxy}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield made


def masks_of(client: Client, picture: Path) -> np.ndarray:
    """What several calls, each of which needs what the one before left on its server, come to."""
    with client.open(picture) as image, client.session(image) as session:
        session.segment("block")
        session.click(40, 15)
        return session.masks.union()


def test_clients_stay_on_the_server_that_has_their_images_and_one_that_dies_is_made_up_for(
    replicas: Replicas, tmp_path: Path
) -> None:
    (tmp_path / "block.png").write_bytes(png())
    found = [masks_of(Client(replicas.proxy, token), tmp_path / "block.png") for token in replicas.tokens]
    assert all(np.array_equal(one, found[0]) and one.any() for one in found)

    clients = {token: Client(replicas.proxy, token) for token in replicas.tokens}
    images = {token: client.open(tmp_path / "block.png") for token, client in clients.items()}
    home = {token: replicas.home_of(image.id, token) for token, image in images.items()}
    assert set(home.values()) == set(replicas.servers)  # eight tokens: both are used, but for one time in 128
    dead = home[replicas.tokens[0]]
    replicas.servers[dead].kill()
    replicas.servers[dead].wait()
    for token, client in clients.items():
        if home[token] == dead:
            with pytest.raises(ServerError, match="no such image"):
                client.session(images[token]).segment("block")
        else:
            session = client.session(images[token])
            session.segment("block")
            assert session.masks.union().any()
        assert np.array_equal(masks_of(client, tmp_path / "block.png"), found[0])
