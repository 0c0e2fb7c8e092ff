"""A validation that runs whatever graphs it is told to: `python validate_unchecked.py BUNDLE PLAN DIALECT`.

What this version of ONNX Runtime is known to do wrong is forgotten first. It runs where little is installed: nothing of
the tests is imported.
"""

from __future__ import annotations

import json
import sys

import msgspec

from vtexport.bundle import onnxruntime
from vtexport.validate import validate

if __name__ == "__main__":
    onnxruntime._RIGHT_ATTENTION.clear()
    bundle, plan, dialect = sys.argv[1:]
    report = validate(bundle, plans=[plan], dialect=dialect, threads=1)
    said = {"backend": report.backend, "checks": [msgspec.to_builtins(check) for _, check in report.checks]}
    json.dump(said, sys.stdout)
