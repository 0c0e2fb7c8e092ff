"""The page in headless Chromium: it loads nothing, fits a phone's width, and follows the reader's colours."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from vtexport.bundle.reader import open_bundle
from vtexport.report.collect import collect
from vtexport.report.page import page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")
# The page runs no script, so one around it looks into frames of several widths.
AROUND = """<!doctype html><meta charset="utf-8"><pre id="found"></pre>{frames}<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const inside = frame.contentDocument, root = inside.documentElement;
    const style = getComputedStyle(inside.body);
    return {{width: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight,
      background: style.backgroundColor, colour: style.color, sections: inside.querySelectorAll("section").length,
      broken: [...inside.images].filter(image => !image.naturalWidth).length, images: inside.images.length}};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}});
</script>"""


def seen(folder: Path, text: str, *options: str) -> list[dict[str, object]]:
    """What a browser says of the page in frames of a phone's, a tablet's and a desktop's width."""
    frames = "".join(
        f'<iframe width="{width}" height="800" style="border:0" srcdoc="{html.escape(text)}"></iframe>'
        for width in (360, 768, 1200)
    )
    file = folder / "around.html"
    file.write_text(AROUND.format(frames=frames), encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,1200",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=10000", *options, "--dump-dom",
               file.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=True)
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stderr[-2000:]
    return json.loads(html.unescape(match[1]))


def brightness(colour: object) -> int:
    return sum(int(each) for each in re.findall(r"\d+", str(colour))[:3])


def test_the_page_fits_every_width_in_light_and_dark(full: Path, tmp_path: Path) -> None:
    text = page(collect(open_bundle(full))).decode()
    light = seen(tmp_path, text, "--blink-settings=preferredColorScheme=1")
    dark = seen(tmp_path, text, "--blink-settings=preferredColorScheme=0")
    for found in (*light, *dark):
        assert found["needed"] == found["width"]  # nothing hangs over, so the page does not scroll sideways
        assert found["images"]
        assert not found["broken"]
        assert found["sections"] == text.count("<section")
    assert all(brightness(found["background"]) > brightness(found["colour"]) for found in light)
    assert all(brightness(found["background"]) < brightness(found["colour"]) for found in dark)
