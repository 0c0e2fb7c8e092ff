"""Renders a scene that no training has seen, and prints its questions with the true answers.

python tools/render_scene.py build/demo/scene.png [number]
"""

from __future__ import annotations

import sys
from pathlib import Path

from vtexport.eval.scenes import HELD_OUT_SEED, render_scene


def main(path: Path, number: int = 2) -> None:
    """Writes the held-out scene of that number (from 0) to an image file."""
    scene = render_scene(HELD_OUT_SEED + number)
    path.parent.mkdir(parents=True, exist_ok=True)
    scene.image.save(path)
    print(f"{path}: held-out scene {number}")
    for question in scene.questions:
        print(f"  {question.question} {question.answer}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
