"""Chat templates of many kinds, for parity with transformers: what public templates write, and Jinja's corners."""

from __future__ import annotations

import json
from pathlib import Path

_KINDS: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parents[1] / "data" / "chat_templates.json").read_text(encoding="utf-8")
)
WHOLE = _KINDS["whole"]  # templates as checkpoints have them; the others each show one thing
TEMPLATES = {f"{kind}: {name}": text for kind, templates in _KINDS.items() for name, text in templates.items()}
