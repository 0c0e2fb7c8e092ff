"""Writes what follows from ops.toml: `python plugins/schema/generate.py`, with --check only compares.

Exit codes: 0; 1 with --check where a file is not what it would be, or where ops.toml contradicts itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import c_header
import cpp_table
import pages
import python_structures
import schema

ROOT = Path(__file__).resolve().parents[2]


def texts(root: Path = ROOT, source: Path | None = None) -> dict[Path, str]:
    """The generated files of a repository, relative to its root, with what they should hold."""
    read = schema.read(source or root / "plugins" / "schema" / "ops.toml")
    found = {
        Path("plugins/include/vtx_structures.h"): c_header.write(read),
        Path("plugins/common/ops_table.h"): cpp_table.write(read),
        Path("vtexport/plugins/op_structures.py"): python_structures.write(read),
    }
    for name in sorted({op.page for op in read.ops}):
        page = Path("docs/ops", name)
        found[page] = pages.write(read, root / page)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a file is stale")
    is_check = parser.parse_args().check
    try:
        made = texts()
    except schema.SchemaError as error:
        print(f"{schema.FILE}: {error}", file=sys.stderr)
        return 1
    stale = [
        path for path, text in made.items()
        if not (ROOT / path).exists() or (ROOT / path).read_text(encoding="utf-8") != text
    ]  # fmt: skip
    for path in stale:
        if is_check:
            print(f"{path} is not what ops.toml makes of it; run python plugins/schema/generate.py", file=sys.stderr)
        else:
            (ROOT / path).write_text(made[path], encoding="utf-8")
            print(f"written: {path}")
    return int(is_check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
