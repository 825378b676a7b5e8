"""Asks a real Label Studio for predictions of our backend: URL KEY BACKEND IMAGE.png, by plain requests."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import requests

root, key, backend, image = sys.argv[1:]
CONFIG = """<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">
<Label value="liver"/><Label value="K" predicted_values="kidney"/></BrushLabels></View>"""


def ask(method: str, path: str, status: int, **asked: Any) -> Any:
    answer = requests.request(method, f"{root}{path}", headers={"Authorization": f"Token {key}"}, timeout=300, **asked)
    assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:600]}"
    return answer.json() if answer.content else None


project = ask("POST", "/api/projects/", 201, json={"title": "made up", "label_config": CONFIG})["id"]
with Path(image).open("rb") as file:
    ask("POST", f"/api/projects/{project}/import", 201, files={"file": (Path(image).name, file, "image/png")})
(task,) = ask("GET", f"/api/tasks/?project={project}&fields=all", 200)["tasks"]
told = {"source": task["data"]["image"]}
told["wrong"] = requests.post(
    f"{root}/api/ml/", headers={"Authorization": f"Token {key}"}, timeout=300,
    json={"project": project, "url": f"{backend}-not-there", "title": "none"},
).status_code  # fmt: skip
ask("POST", "/api/ml/", 201, json={"project": project, "url": backend, "title": "medsam3", "is_interactive": True})
asked = {"ordering": [], "selectedItems": {"all": True, "excluded": []}, "filters": {"conjunction": "and", "items": []}}
ask("POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", 200, json=asked)
deadline = time.monotonic() + 300
while not (found := ask("GET", f"/api/predictions/?task={task['id']}", 200)) and time.monotonic() < deadline:
    time.sleep(1)
told["predictions"] = found
print(json.dumps(told))
