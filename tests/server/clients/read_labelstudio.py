"""Reads by label-studio-sdk's own code, in its environment: brush RESULTS.json OUT.npz, or coco COCO.json OUT.npz."""

import json
import sys
from pathlib import Path

import numpy as np

kind, given, out = sys.argv[1:]
if kind == "brush":
    from label_studio_sdk.converter.brush import decode_rle

    arrays = {}
    for k, one in enumerate(json.loads(Path(given).read_text())):
        flat = decode_rle(one["value"]["rle"])
        arrays[str(k)] = flat.reshape(one["original_height"], one["original_width"], 4)
    np.savez(out, **arrays)
    print(json.dumps(sorted(arrays)))
else:
    from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

    convert_coco_to_ls(given, out, "", "/data/local-files/?d=", use_super_categories=False)
    print(json.dumps(json.loads(Path(out).read_text())))
