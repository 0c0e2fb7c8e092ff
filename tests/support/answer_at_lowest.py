"""Answers of one environment as JSON: `python answer_at_lowest.py PHOTO QUESTION BUNDLE...`.

It runs where little is installed: nothing of the tests is imported.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any


def answers(bundle: str, photo: str, question: str) -> dict[str, Any]:
    """Tokens and kept indices of every plan, by the graphs of each dialect that may run here."""
    from vtexport.bundle.reader import open_bundle
    from vtexport.errors import UsageError
    from vtexport.runtime.pipeline import Pipeline

    manifest, said = open_bundle(bundle).manifest, {}
    for plan in manifest.plans:
        for dialect in ("modern", "classic"):
            try:
                pipeline = Pipeline.open(bundle, plan.name, dialect=dialect)
            except UsageError:
                continue
            answer = pipeline.generate(photo, question, max_new_tokens=8)
            said[f"{plan.name} {dialect}"] = {"keep": answer.keep_indices, "tokens": answer.token_ids}
    return said


if __name__ == "__main__":
    photo, question, *bundles = sys.argv[1:]
    versions = {found.metadata["Name"].lower(): found.version for found in importlib.metadata.distributions()}
    said = {"versions": versions, "answers": {bundle: answers(bundle, photo, question) for bundle in bundles}}
    json.dump(said, sys.stdout)
