"""Set a bundle's adaptive plans by a folder of images, so that the budgets come to the wanted mean on them.

An adaptive plan (`vtexport build --keep 32,64,128 --dynamic`) gives every image one of its budgets. The vision tower
runs once on every file of the folder and of the folders in it; the result goes to the bundle's adaptive.json, and
nothing else in the bundle changes.

examples:
  vtexport adapt mini --images photos
  vtexport adapt mini --images photos --json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from vtexport.bundle.adaptive import Adaptation
from vtexport.bundle.reader import open_bundle
from vtexport.cli.console import Progress, say, say_json

_WIDTH = 40  # characters of the longest bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="images like those that will be asked about")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one operator; default: all cores")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(args: argparse.Namespace) -> int:
    """Sets the plans, and says what the images got."""
    from vtexport.runtime.adapt import adapt

    progress = Progress(args.quiet)
    bundle = open_bundle(args.bundle)
    steps = 20

    def done(count: int, total: int) -> None:
        if count * steps // total != (count - 1) * steps // total:
            progress.stage(f"{count} of {total} images")

    found = adapt(
        bundle, Path(args.images), device=args.device, threads=args.threads, progress=done, note=progress.note
    )
    if args.json:
        adapted = {name: msgspec.to_builtins(each) for name, each in found.adaptations.items()}
        result = {"bundle": str(bundle.folder), "adaptive_plans": adapted}
        say_json(result | {"redundancies": found.redundancies, "unreadable": found.unreadable})
        return 0
    for name, each in found.adaptations.items():
        say(f"adaptive plan {name}")
        say_adaptation(each)
    if found.unreadable:
        say(f"{len(found.unreadable)} of {len(found.unreadable) + len(found.redundancies)} files were not counted")
    return 0


def say_adaptation(adaptation: Adaptation) -> None:
    """Prints how many images got each budget, and the mean next to what was asked for."""
    most = max(1, *adaptation.images_by_budget.values())
    for budget in adaptation.budgets:
        count = adaptation.images_by_budget.get(str(budget), 0)
        say(f"  {budget:>5} tokens  {count:>6} images  {'#' * -(-_WIDTH * count // most)}".rstrip())
    say(
        f"  mean {adaptation.mean_budget:.1f} tokens over {adaptation.images} images, asked for {adaptation.mean}, "
        f"with the normaliser {adaptation.normaliser:.4f}; with their mean 1 - rho as the normaliser it would be "
        f"{adaptation.plain_mean_budget:.1f}"
    )
