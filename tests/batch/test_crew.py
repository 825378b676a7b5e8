"""Ray's workers: dead ones are replaced, nothing is lost or doubled, and a file that kills them is set aside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from made_batch import manifest, picture, run, work_for
from medsam3.batch.crew import Cluster, Crew
from medsam3.batch.pieces import Piece, find_pieces
from medsam3.batch.target import OutputTarget
from medsam3.batch.worker import Report
from medsam3.cli.job import ModelChoice
from medsam3.errors import InputError
from medsam3.prompts import Prompt

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'medsam3[cluster]'")
pytestmark = pytest.mark.slow
COLUMNS = ("file", "concept", "object", "voxels", "score", "sha256")


@pytest.fixture(scope="module", autouse=True)
def importable() -> Iterator[None]:
    """Let Ray's workers find the modules of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        here = str(Path(__file__).parent.parent)
        patch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def one_machine() -> Iterator[None]:
    ray.init("local", num_cpus=2, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def run_on_ray(pieces: Iterator[Piece], out: Path, cluster: Cluster, *phrases: str) -> Report:
    target, total = OutputTarget(str(out)), Report()
    target.prepare()
    crew = Crew(work_for(*phrases), str(out), target.known(), cluster)
    try:
        for report in crew.run(pieces):
            total.add(report)
    finally:
        crew.close()
    return total


def kept(out: Path) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in COLUMNS) for row in manifest(out)]


def pictures(folder: Path, count: int) -> Path:
    for n in range(count):
        picture(folder / f"{n:04d}.png", (n % 20, 3, n % 20 + 5, 9), size=(40, 20 + n % 7))
    return folder


def test_two_workers_write_what_one_process_does(one_machine: None, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "scans", 30)
    report = run_on_ray(find_pieces([str(folder)]), tmp_path / "ray", Cluster(workers=2), "polyp")
    run([str(folder)], str(tmp_path / "plain"), "polyp")
    assert (report.done + report.copied, report.failed) == (30, 0)
    assert kept(tmp_path / "ray") == kept(tmp_path / "plain")


def test_a_file_that_kills_its_workers_is_set_aside_and_the_others_are_done(one_machine: None, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "scans", 6)
    listed = [Piece(str(file), prompts=(Prompt("polyp"),)) for file in sorted(folder.iterdir())]
    listed[3] = Piece(listed[3].url, prompts=(Prompt("kill"),))
    report = run_on_ray(iter(listed), tmp_path / "out", Cluster(workers=2))
    assert (report.done + report.copied, report.failed) == (5, 1)
    failed = [row for row in manifest(tmp_path / "out") if row["error"]]
    assert [(row["file"], row["is_ours"]) for row in failed] == [(listed[3].url, False)]
    assert "3 times" in failed[0]["error"]


def test_a_file_that_takes_too_long_is_set_aside(one_machine: None, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "scans", 2)
    pieces = [
        Piece(str(file), prompts=(Prompt(text),))
        for file, text in zip(sorted(folder.iterdir()), ("stuck", "polyp"), strict=True)
    ]
    report = run_on_ray(iter(pieces), tmp_path / "out", Cluster(workers=1, timeout_s=3))
    assert (report.done, report.failed) == (1, 1)
    stuck, done = manifest(tmp_path / "out")
    assert "it took longer than 3 s, 3 times" in stuck["error"]
    assert done["error"] is None


def test_a_file_that_needs_too_much_memory_fails_alone(one_machine: None, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "scans", 2)
    pieces = [
        Piece(str(file), prompts=(Prompt(text),))
        for file, text in zip(sorted(folder.iterdir()), ("greedy", "polyp"), strict=True)
    ]
    report = run_on_ray(iter(pieces), tmp_path / "out", Cluster(workers=1, memory_bytes=1200 << 20))
    assert (report.done, report.failed, report.ours) == (1, 1, 0)
    assert [row["error"] for row in manifest(tmp_path / "out")] == ["the memory is full", None]


def test_weights_that_are_not_there_end_the_run_in_one_line(one_machine: None, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "scans", 2)
    work = replace(work_for("polyp"), load=ModelChoice(weights=tmp_path / "gone.safetensors").load)
    crew = Crew(work, str(tmp_path / "out"), OutputTarget(str(tmp_path / "out")).known(), Cluster(workers=1))
    with pytest.raises(InputError, match=r"gone\.safetensors are not a file"):
        list(crew.run(find_pieces([str(folder)])))
    crew.close()


def test_a_node_that_is_killed_loses_and_doubles_nothing(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster as Nodes  # noqa: PLC0415

    ray.shutdown()
    folder = pictures(tmp_path / "scans", 500)
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
    second = nodes.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(nodes.address, log_to_driver=False)
    target, total = OutputTarget(str(tmp_path / "out")), Report()
    target.prepare()
    crew = Crew(work_for("polyp"), str(tmp_path / "out"), target.known(), Cluster(workers=2))
    is_killed = False
    try:
        for report in crew.run(find_pieces([str(folder)])):
            total.add(report)
            if not is_killed and total.pieces >= 60:
                nodes.remove_node(second, allow_graceful=False)
                is_killed = True
    finally:
        crew.close()
        ray.shutdown()
        nodes.shutdown()
    run([str(folder)], str(tmp_path / "plain"), "polyp")
    assert is_killed
    assert total.failed == 0
    assert kept(tmp_path / "out") == kept(tmp_path / "plain")
    assert len({row["file"] for row in manifest(tmp_path / "out")}) == 500


def test_an_object_store_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "x")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        system = s3fs.S3FileSystem(skip_instance_cache=True)
        system.mkdir("clinic")
        folder = pictures(tmp_path / "scans", 5)
        system.put(str(folder), "clinic/scans", recursive=True)
        report = run(["s3://clinic/scans"], "s3://clinic/out", "polyp")
        assert (report.done + report.copied, report.failed) == (5, 0)
        assert run(["s3://clinic/scans"], "s3://clinic/out", "polyp").skipped == 5
        system.invalidate_cache()
        system.get("clinic/out", str(tmp_path / "out"), recursive=True)
    finally:
        server.stop()
    run([str(folder)], str(tmp_path / "plain"), "polyp")
    assert [row[1:] for row in kept(tmp_path / "out")] == [row[1:] for row in kept(tmp_path / "plain")]
    assert all((tmp_path / "out" / name).is_file() for row in manifest(tmp_path / "out") for name in row["outputs"])
    json.loads((tmp_path / "out" / "medsam3-batch.json").read_text())
