"""A server with the fake model, as a process of its own: `python serve_fake.py PORT [TOKEN]`."""

from __future__ import annotations

import sys

from medsam3.server.app import serve
from medsam3.server.settings import Settings
from slow_segmenter import load_fake

if __name__ == "__main__":
    settings = Settings(port=int(sys.argv[1]), model="threshold", load=load_fake, tokens=tuple(sys.argv[2:]))
    serve(settings, when_ready=lambda address: print(address, flush=True))
