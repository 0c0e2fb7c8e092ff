"""Questions to a server as the `openai` client asks them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from openai import OpenAI
from PIL import Image
from running_server import PATIENCE

from vtexport.serve.server import Server


def client_of(server: Server, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE)


def png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def image_part(source: np.ndarray | str) -> dict[str, Any]:
    url = source if isinstance(source, str) else f"data:image/png;base64,{base64.b64encode(png(source)).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def about(text: str, *images: np.ndarray | str) -> list[Any]:
    """One user message with images before the text."""
    return [{"role": "user", "content": [*map(image_part, images), {"type": "text", "text": text}]}]
