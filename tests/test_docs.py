"""Pages against the code: what they name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("plugins/*.md"), *ROOT.glob("engines/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_op_of_a_page_exists(page: Path) -> None:
    """An op of the package, or one that the page itself shows how to write."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "vtexport" / "pruning").rglob("*.py"))
    text = page.read_text(encoding="utf-8")
    defined = {name for source in (*sources, text) for name in re.findall(r'op_type = "(Vtx\w+)"', source)}
    assert set(re.findall(r"\bVtx\w+", text)) <= defined
