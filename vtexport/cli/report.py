"""Make one page of what was measured, compared and asked of a bundle: figures, tables, and what was not checked.

The page is a single HTML file that loads nothing and runs no script; it says what is absent with the command that makes
it. --markdown prints a short table for a pull request instead.

examples:
  vtexport report mini
  vtexport report mini --eval mini-eval/eval.json -o mini.html
  vtexport report mini --markdown
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vtexport.bundle.hub_cache import refuse_to_write
from vtexport.bundle.reader import open_bundle
from vtexport.cli.console import say, say_json, tell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--eval",
        metavar="FILE",
        dest="evaluation",
        help="the eval.json or sweep.json of an evaluation; default: reports/eval.json in the bundle",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the page; default: reports/report.html in the bundle")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--markdown", action="store_true", help="print a short table; the page is written where -o names it"
    )
    shown.add_argument("--json", action="store_true", help="print the state of every source as JSON")


def run(args: argparse.Namespace) -> int:
    """Writes the page and says what was not checked."""
    import msgspec

    from vtexport.measure.files import write_whole
    from vtexport.measure.record import FOLDER
    from vtexport.report.collect import PAGE_NAME, collect
    from vtexport.report.markdown import markdown
    from vtexport.report.page import page
    from vtexport.report.states import states

    bundle = open_bundle(args.bundle)
    path = Path(args.output) if args.output else None
    if path is None and not args.markdown:
        path = bundle.folder / FOLDER / PAGE_NAME
    if path is not None:
        refuse_to_write(path)
    sources = collect(bundle, Path(args.evaluation) if args.evaluation else None)
    if path is not None:
        write_whole(path, page(sources))
    found = states(sources)
    if args.markdown:
        say(markdown(sources))
    elif args.json:
        say_json({"sources": msgspec.to_builtins(found), "report": str(path)})
    else:
        for state in found:
            say(f"{state.source}: {state.state}, {state.detail}")
        say(str(path))
    for state in found:
        if state.state == "not checked" and not args.json:
            tell(f"note: {state.source} is not checked; {state.command}")
    return 0
