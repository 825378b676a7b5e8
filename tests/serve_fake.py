"""A server with a fake model, as a process of its own: `python serve_fake.py PORT [--llm=ADDRESS] [TOKEN]`.

With an LLM its agent may ask it, pictures and all, and the model finds bright blocks one by one.
"""

from __future__ import annotations

import sys

from blocks_segmenter import load_blocks
from medsam3.server.app import serve
from medsam3.server.settings import Settings
from slow_segmenter import load_fake

if __name__ == "__main__":
    llm = next((word.removeprefix("--llm=") for word in sys.argv if word.startswith("--llm=")), None)
    settings = Settings(
        port=int(sys.argv[1]),
        model="threshold",
        load=load_fake if llm is None else load_blocks,
        tokens=tuple(word for word in sys.argv[2:] if not word.startswith("--")),
        llm=llm,
        sends_images=llm is not None,
    )
    serve(settings, when_ready=lambda address: print(address, flush=True))
