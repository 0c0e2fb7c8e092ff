"""Command `optimum-cli export vtexport`: what `vtexport export` does, in optimum's command line.

    optimum-cli export vtexport -m mini --method prunesid --keep 64 mini-64

optimum 2 finds it by a file in its namespace folder `optimum/commands/register`, which comes with vtexport's wheel.
Arguments, sentences of errors and exit codes are those of `vtexport export`; only the output is an argument by
position, as with optimum's other exporters.
"""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from vtexport.backends.targets import DEFAULT_TARGET, find_target
from vtexport.cli.build import add_export_options, export_bundle
from vtexport.cli.console import prepare_streams
from vtexport.cli.main import add_common_arguments, end_on_signals, guarded

PROGRAM = "optimum-cli"


class VtexportExportCommand(BaseOptimumCLICommand):
    """Subcommand of `optimum-cli export` that writes a bundle."""

    COMMAND = CommandInfo(name="vtexport", help="Export a vision-language model with pruned visual tokens as a bundle.")

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Declares the arguments: those of `vtexport export`, with the output by position."""
        parser.description = __doc__
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        add_common_arguments(parser)
        add_export_options(parser)
        parser.add_argument("output", metavar="OUTPUT", help="the bundle's folder")

    def run(self) -> None:
        """Exports and ends the process with `vtexport export`'s exit code if that is not 0."""
        prepare_streams()
        end_on_signals()
        args = self.args
        args.precision = args.precision or find_target(DEFAULT_TARGET).default_precision
        # optimum-cli leaves the exit code to exceptions
        if code := guarded(lambda: export_bundle(args, program=PROGRAM), debug=args.debug):
            sys.exit(code)
