"""Asks a server by napari-voxtell's client, in its environment: ADDRESS TOKEN IMAGE.nii.gz OUT.npz OUT.nii.gz."""

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

found = importlib.util.find_spec("napari_voxtell")
assert found is not None and found.origin is not None
package = types.ModuleType("napari_voxtell")  # without its window, which wants napari
package.__path__ = [str(Path(found.origin).parent)]
sys.modules["napari_voxtell"] = package

from napari_voxtell.remote.client import VoxTellRemoteClient  # noqa: E402

address, token, image, out, exported = sys.argv[1:]


def refused(call: Callable[[], object]) -> list[Any]:
    try:
        call()
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, error.response.json()["detail"]]
    return [200, ""]


client = VoxTellRemoteClient(f"{address}/voxtell", api_key=token)
told: dict[str, Any] = {
    "health": client.healthz(),
    "capabilities": client.capabilities(),
    "no token": refused(VoxTellRemoteClient(f"{address}/voxtell").capabilities),
}
name, array, spacing, shape = client.upload_image(Path(image).read_bytes())
told["spacing"], told["shape"] = spacing, shape
assert client.upload_image(Path(image).read_bytes(), include_image=False)[1] is None
job = client.start_job(name, ["liver", "kidney", "absent"])
told["events"] = list(client.stream_events(job))
masks = client.get_result(job)
largest = client.start_job(name, ["liver"], keep_largest=True)
list(client.stream_events(largest))
np.savez(out, image=array, masks=masks, largest=client.get_result(largest))
Path(exported).write_bytes(client.export(name, masks[0] + masks[1]))
slow = client.start_job(name, ["slow"] * 1 + [f"slow {k}" for k in range(30)])
client.cancel(slow)
told["cancelled"] = list(client.stream_events(slow))[-1]
killed = client.start_job(name, ["kill"])
told["killed"] = list(client.stream_events(killed))[-1]
told["refused"] = {
    "no image": refused(lambda: client.start_job("not there", ["liver"])),
    "no phrase": refused(lambda: client.start_job(name, [" "])),
    "no volume": refused(lambda: client.upload_image(b"no image")),
    "other size": refused(lambda: client.export(name, masks[0][1:])),
    "killed": refused(lambda: client.get_result(killed)),
    "cancelled": refused(lambda: client.get_result(slow)),
}
print(json.dumps(told))
