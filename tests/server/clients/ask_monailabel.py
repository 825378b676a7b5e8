"""Asks a server by the client of the monailabel wheel, in that client's environment: ADDRESS IMAGE TOKEN FOLDER."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.client.client import MONAILabelClient, MONAILabelClientException

address, image, token, folder = sys.argv[1:]


def fresh() -> MONAILabelClient:
    """A client with a token; each call gets its own, as one keeps the headers of the call before."""
    client = MONAILabelClient(f"{address}/monailabel", tmpdir=folder, client_id="tests")
    if token:
        client.update_auth({"token_type": "Bearer", "access_token": token})
    return client


def refused(call: Callable[[], object]) -> list[Any]:
    try:
        call()
    except MONAILabelClientException as error:
        return [error.status_code, error.msg]
    return [200, ""]


def kept(path: str, name: str) -> str:
    return str(Path(path).rename(Path(folder) / name))


told: dict[str, Any] = {"auth": fresh().auth_enabled()}
if token:
    told["token"] = fresh().auth_token("anyone", token)
    told["wrong_token"] = refused(lambda: fresh().auth_token("anyone", "wrong"))
    told["valid"] = [fresh().auth_valid_token(), MONAILabelClient(f"{address}/monailabel").auth_valid_token()]
    told["no_token"] = refused(MONAILabelClient(f"{address}/monailabel").info)
told["info"] = fresh().info()
told["upload"] = fresh().upload_image(image, "scan")
phrases = {"text": "liver, kidney, absent", "result_extension": ".nrrd", "result_dtype": "uint8"}
file, told["phrase"] = fresh().infer("phrase", "scan", phrases)
told["phrase_file"] = kept(file, "phrase.nrrd")
file, told["family"] = fresh().infer("abdominal_ct_and_mri", "scan", {"result_extension": ".nii.gz"})
told["family_file"] = kept(file, "family.nii.gz")
session = told["session"] = fresh().create_session(image)
told["about_session"] = fresh().get_session(session["session_id"])
clicks = {"foreground": [[4, 5, 2]], "background": [], "label": "thing", "result_extension": ".nrrd"}
file, told["clicks"] = fresh().infer("clicks", "", clicks, session_id=session["session_id"])
told["clicks_file"] = kept(file, "clicks.nrrd")
clicks["background"] = [[2, 3, 2]]
file, _ = fresh().infer("clicks_on_slice", "", clicks, session_id=session["session_id"])
told["slice_file"] = kept(file, "slice.nrrd")
file, _ = fresh().infer("phrase", "", {"text": "liver"}, file=image)
told["sent_along"] = kept(file, "sent.nrrd")
names = [{"name": "my liver", "idx": 1}, {"name": "my kidney", "idx": 2}]
told["saved"] = fresh().save_label("scan", told["family_file"], params={"label_info": names})
told["datastore"] = fresh().datastore()
told["label_back"] = fresh().download_label("scan", "final")
told["next"] = fresh().next_sample("first", {})
told["train"] = fresh().train_status(check_if_running=True)
told["removed"] = fresh().remove_session(session["session_id"])
told["refused"] = {
    "no image": refused(lambda: fresh().infer("phrase", "not there", {"text": "liver"})),
    "no phrase": refused(lambda: fresh().infer("phrase", "scan", {"text": " "})),
    "no model": refused(lambda: fresh().infer("nothing", "scan", {})),
    "no session": refused(lambda: fresh().infer("clicks", "", clicks, session_id=session["session_id"])),
    "outside": refused(lambda: fresh().infer("clicks", "scan", {"foreground": [[40, 5, 2]]})),
    "no slice": refused(lambda: fresh().infer("clicks", "scan", {"foreground": [[4, 5, 20]]})),
    "image as label": refused(lambda: fresh().save_label("scan", sys.argv[0])),
    "train": refused(lambda: fresh().train_start("phrase", {})),
    "a path": refused(lambda: fresh().save_label("../scan", told["family_file"])),
}
print(json.dumps(told))
