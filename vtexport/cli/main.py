"""The command line: `vtexport VERB`. Each verb has a file that declares its arguments and runs it."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType

from vtexport.bundle.unfinished import discard_unfinished
from vtexport.cli.console import prepare_streams, say, silence, tell
from vtexport.cli.explain import INTERRUPTED, explain
from vtexport.errors import UsageError
from vtexport.eval.workers import end_workers
from vtexport.version import __version__

VERBS = (
    *("build", "export", "compile", "adapt", "run", "watch", "serve", "show", "prove", "validate", "eval", "sweep"),
    *("bench", "report", "inspect", "list", "plugins", "doctor"),
)
FORMER_VERBS = {"calibrate": "adapt"}  # to what they are called now

_DESCRIPTION = """\
Prune a vision-language model's visual tokens to an exact budget, as ONNX graphs in a bundle that runs on the device.

  vtexport build --model mini --method prunesid --keep 64
  vtexport run mini --image photo.jpg --prompt "What is on the table?"
"""
_EPILOG = """\
exit codes: 0 done; 1 a file cannot be used or a check failed; 2 a wrong argument; 3 a package or device is missing;
4 a damaged or incompatible bundle; 130 interrupted
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser with every verb."""
    parser = argparse.ArgumentParser(
        prog="vtexport", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"vtexport {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    add_common_arguments(common)
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        module = importlib.import_module(f"vtexport.cli.{verb}")
        summary = (module.__doc__ or "").strip().splitlines()[0]
        sub = verbs.add_parser(
            verb,
            help=summary[0].lower() + summary[1:].rstrip("."),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every verb has."""
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb as `main` does, in a process that is there for it alone: the entry point of the script `vtexport`.

    SIGINT and SIGTERM end the process at once (`interrupt`).
    """
    end_on_signals()
    code = main(arguments)
    if "torch" in sys.modules:
        gc.freeze()  # or the ending process looks through all of PyTorch's modules for garbage, for a second
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns its exit code; errors are one sentence on stderr.

    A program may call it: handlers of signals stay as they are.
    """
    prepare_streams()

    def parse_and_run() -> int:
        given = sys.argv[1:] if arguments is None else arguments
        if given and given[0] in FORMER_VERBS:
            now = FORMER_VERBS[given[0]]
            raise UsageError(f"`vtexport {given[0]}` is called `vtexport {now}` now; give that the same arguments")
        try:
            args = make_parser().parse_args(arguments)
        finally:
            say(end="")  # what --help printed goes out now: at the end of the process it is too late for a sentence
        return guarded(lambda: args.run(args), debug=args.debug)

    return guarded(parse_and_run)


def guarded(work: Callable[[], int | None], debug: bool = False) -> int:
    """Runs `work` and returns its exit code; an error is one sentence on stderr, with `debug` a trace before it."""
    try:
        return int(work() or 0)
    except BrokenPipeError:
        # The reader of our output has gone, as with `| head`: that is not an error of ours.
        silence(sys.stdout)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = explain(error)
        tell(f"vtexport: {message}")
        return code
    finally:
        tell(end="")  # and what others have put there, or Python's own attempt would change the exit code


def end_on_signals() -> None:
    """Lets SIGINT and SIGTERM end this process at once (`interrupt`)."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Ctrl-C and a polite kill: end the workers, remove what is half-written and end at once.

    Not by an exception: one that is raised while a C++ library calls back into Python can crash the process (seen with
    PyTorch's import and exporter), and then nothing would be removed.
    """
    end_workers()
    removed = discard_unfinished()
    # not print(): the signal may have come while it was printing
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, b"\nvtexport: interrupted" + (b"; what was half-written is removed\n" if removed else b"\n"))
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(run_command())
