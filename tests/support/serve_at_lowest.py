"""An answer of a server, whole and as a stream, as JSON: `python serve_at_lowest.py BUNDLE MODEL PHOTO QUESTION`.

It runs where little is installed: no client is needed.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from running_server import ask, running

if __name__ == "__main__":
    bundle, model, photo, question = sys.argv[1:]
    url = "data:image/jpeg;base64," + base64.b64encode(Path(photo).read_bytes()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    with running(Path(bundle)) as server:
        status, whole, _ = ask(server, body)
        assert status == 200, whole
        _, events, _ = ask(server, {**body, "stream": True})
    lines = [line.removeprefix("data: ") for line in events.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    pieces = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines]
    said = {"text": whole["choices"][0]["message"]["content"], "visual_tokens": whole["usage"]["visual_tokens"]}
    json.dump({**said, "pieces": pieces}, sys.stdout)
