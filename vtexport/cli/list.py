"""List models, pruning methods or targets.

examples:
  vtexport list methods
  vtexport list models --json
"""

from __future__ import annotations

import argparse
import contextlib
from typing import TYPE_CHECKING, Any

from vtexport.cli.console import say, say_json, table
from vtexport.errors import UsageError

if TYPE_CHECKING:
    from vtexport.backends.targets import Target
    from vtexport.pruning import Method, Schedule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("what", choices=("models", "methods", "targets"), help="what to list")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the list."""
    rows = {"models": _models, "methods": _methods, "targets": _targets}[args.what]()
    if args.json:
        say_json(rows)
    elif args.what == "methods":
        _say_methods(rows)
    else:
        header = tuple(rows[0])
        say(table([tuple(_cell(row[column]) for column in header) for row in rows], header))
        if args.what == "models":
            say("\nalso: any hub id (owner/name) or folder of the LLaVA-1.5 family, model_type llava")
    return 0


def _models() -> list[dict[str, Any]]:
    from vtexport.checkpoint.aliases import ALIASES

    return [
        {"alias": alias.name, "source": alias.hub_id or "in the package", "about": alias.description}
        for alias in ALIASES.values()
    ]


def _methods() -> list[dict[str, Any]]:
    from vtexport.pruning import list_methods
    from vtexport.pruning.signals import SIGNALS

    return [
        {
            "name": method.name,
            "paper": f"{method.title} (arXiv {method.arxiv})" if method.arxiv else None,
            "acts": method.acts,
            "needs": {name: SIGNALS[name].about for name in schedule.signals},
            "positions": schedule.first.positions,
            "budget": method.budget,
            "parameters": [
                {"name": each.name, "default": each.default, "allowed": each.allowed, "about": each.about}
                for each in method.options
            ],
        }
        for method, schedule in ((method, _example(method)) for method in list_methods())
    ]


def _example(method: Method) -> Schedule:
    """A plan of the method with its defaults on LLaVA-1.5-7B, at 192 of 576 tokens or the next budget that it gives."""
    from vtexport.pruning import ModelShape, make_options

    shape = ModelShape((24, 24), layers=32)
    for keep in range(192, shape.tokens):
        with contextlib.suppress(UsageError):
            return method.plan(make_options(method, {}), shape, keep)
    return method.plan(make_options(method, {}), shape, None)


def _say_methods(rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        if number:
            say()
        say(row["name"])
        say(f"  paper      {row['paper'] or '-'}")
        say(f"  acts       {row['acts']}")
        needs = [f"{name} ({about})" for name, about in row["needs"].items()]
        say(f"  needs      {', '.join(needs) or 'nothing but the features'}")
        say(f"  positions  {row['positions']}")
        say(f"  budget     {row['budget']}")
        for parameter in row["parameters"]:
            default = "derived" if parameter["default"] is None else str(parameter["default"]).lower()
            say(f"  --set {parameter['name']}={default}  ({parameter['allowed']}): {parameter['about']}")


def _targets() -> list[dict[str, Any]]:
    from vtexport.backends.targets import list_targets

    return [
        {
            "target": target.name,
            "builds": "yes" if target.buildable else "not yet",
            "runtime": _runtime(target),
            "opset": target.opset,
            "precisions": target.precisions,
            "compute_capabilities": target.compute_capabilities,
            "devices": [device.name for device in target.devices],
            "about": target.title,
        }
        for target in list_targets()
    ]


def _runtime(target: Target) -> str:
    """`tensorrt 10.3, CUDA 12.6`, or the runtime alone where the recipe names no version."""
    version = f" {target.tensorrt}" if target.tensorrt else ""
    return f"{target.runtime}{version}" + (f", CUDA {target.cuda}" if target.cuda else "")


def _cell(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
