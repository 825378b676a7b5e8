"""Asks a server by nninteractive-client, in that client's environment: ADDRESS TOKEN IMAGE.npy OUT.npz."""

import json
import sys
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from nnInteractive.inference.remote import SessionExpiredError, nnInteractiveRemoteInferenceSession

address, token, given, out = sys.argv[1:]
place = f"{address}/nninteractive"
image = np.load(given)
masks: dict[str, Any] = {}
told: dict[str, Any] = {}


def refused(call: Callable[[], object]) -> list[Any]:
    try:
        call()
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, error.response.json()["detail"]]
    return [200, ""]


told["no token"] = refused(lambda: nnInteractiveRemoteInferenceSession(place))
session = nnInteractiveRemoteInferenceSession(place, api_key=token)
told["ping"] = session.ping()
told["supported"] = session.supported_interactions
told["no image"] = refused(lambda: session.add_point_interaction((2, 5, 4), True))
session.set_image(image[None], {"spacing": np.array([3.0, 1.3, 0.8])})
told["shape"] = session.original_image_shape
buffer = np.zeros(image.shape, dtype=np.uint8)
session.set_target_buffer(buffer)
told["box of the click"] = session.add_point_interaction((2, 5, 4), True)
masks["click"] = buffer.copy()
session.add_point_interaction((2, 3, 2), False)
masks["negative"] = buffer.copy()
told["undone"] = session.undo()
masks["undone"] = buffer.copy()
session.add_point_interaction((2, 3, 2), False, run_prediction=False)
masks["queued"] = buffer.copy()
session._predict()
masks["predicted"] = buffer.copy()
session.reset_interactions()
masks["reset"] = buffer.copy()
session.add_bbox_interaction([[2, 3], [2, 9], [1, 9]], True)
masks["box"] = buffer.copy()
session.reset_interactions()
scribble = np.zeros(image.shape, dtype=np.uint8)
scribble[2, 5:7, 3:7] = 1
session.add_scribble_interaction(scribble[2:3, 4:8], True, interaction_bbox=[[2, 3], [4, 8], [0, image.shape[2]]])
masks["scribble"] = buffer.copy()
session.reset_interactions()
lasso = np.zeros(image.shape, dtype=np.uint8)
lasso[2, 2:9, 1:9] = 1
lasso[2, 3:8, 2:8] = 0
session.add_lasso_interaction(lasso, True)
masks["lasso"] = buffer.copy()
session.reset_interactions()
told["refused"] = {
    "outside": refused(lambda: session.add_point_interaction((2, 5, 40), True)),
    "negative first": refused(lambda: session.add_point_interaction((2, 3, 2), False)),
    "3D box": refused(lambda: session.add_bbox_interaction([[0, 3], [2, 9], [1, 9]], True)),
    "other size": refused(lambda: session.add_scribble_interaction(scribble[1:], True)),
    "empty": refused(lambda: session.add_scribble_interaction(0 * scribble, True)),
    "initial": refused(lambda: session.add_initial_seg_interaction(scribble)),
    "two channels": refused(lambda: session.set_image(np.zeros((2, 3, 4, 5), np.float32))),
}
told["left"] = session.lease_status()["remaining_seconds"]
lease = session._lease_token
session.close()
late = nnInteractiveRemoteInferenceSession(place, api_key=token)
late._http.headers["X-Lease-Token"] = lease
try:
    late.undo()
except SessionExpiredError as error:
    told["late"] = str(error)
np.savez(out, **masks)
print(json.dumps(told))
