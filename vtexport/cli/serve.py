"""Answer OpenAI's chat completions from a bundle, on a port of this machine.

examples:
  vtexport serve mini
  vtexport serve llava-64 --plan prunesid-64 --port 8080 --served-name llava
  VTEXPORT_API_KEY=... vtexport serve llava-64 --host 0.0.0.0 --allow-files /data/images
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from vtexport.cli.console import tell
from vtexport.errors import InputError, MissingDependencyError, UsageError, quoted

KEY = "VTEXPORT_API_KEY"
_MiB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--plan", action="append", metavar="NAME", help="a plan to serve; again for more; default: all")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 for a free one; default: %(default)s")
    parser.add_argument("--served-name", metavar="NAME", help="name of the model; default: the manifest's")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help=f"a file with the key that clients have to show; or set {KEY}"
    )
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one operator; default: all cores")
    parser.add_argument(
        "--loaded", type=int, default=1, metavar="N", help="plans in memory at the same time; default: %(default)s"
    )
    parser.add_argument(
        "--frames", type=int, default=16, metavar="N", help="frames that are kept encoded; default: %(default)s"
    )
    parser.add_argument(
        "--prompts",
        type=int,
        default=1,
        metavar="N",
        help="prompts whose keys and values are kept for a further question; default: %(default)s",
    )
    images = parser.add_argument_group("images")
    images.add_argument("--allow-files", metavar="DIR", help="folder that image_url may name files of; default: none")
    images.add_argument(
        "--allow-hosts",
        action="append",
        metavar="HOST",
        help="a host or address that image_url may name although it is private; again for more",
    )
    bounds = parser.add_argument_group("bounds")
    bounds.add_argument("--queue", type=int, default=32, metavar="N", help="requests that wait; default: %(default)s")
    bounds.add_argument("--max-tokens", type=int, default=4096, metavar="N", help="of an answer; default: %(default)s")
    bounds.add_argument("--max-images", type=int, default=16, metavar="N", help="of a request; default: %(default)s")
    bounds.add_argument("--max-pixels", type=int, default=25_000_000, metavar="N", help="default: %(default)s")
    bounds.add_argument("--max-body-mib", type=int, default=32, metavar="N", help="default: %(default)s")
    bounds.add_argument("--max-image-mib", type=int, default=20, metavar="N", help="default: %(default)s")
    for name, seconds, what in (
        ("body", 30.0, "for a request to come in"),
        ("fetch", 10.0, "for an image to be fetched"),
        ("answer", 300.0, "from a request's arrival to its answer's end"),
        ("grace", 30.0, "for running answers after SIGTERM or Ctrl-C"),
    ):
        text = f"{what}; default: %(default)g"
        bounds.add_argument(f"--{name}-seconds", type=float, default=seconds, metavar="S", help=text)


def run(args: argparse.Namespace) -> int:
    """Serves until it is asked to stop."""
    try:
        from vtexport.serve.server import Server
        from vtexport.serve.settings import Settings
    except ModuleNotFoundError as error:
        if str(error.name).startswith("vtexport"):
            raise
        raise MissingDependencyError(
            f"the Python package {error.name} is not installed; run pip install 'vtexport[serve]'"
        ) from error

    settings = Settings(
        host=args.host,
        port=args.port,
        served_name=args.served_name,
        plans=args.plan or (),
        loaded=args.loaded,
        device=args.device,
        threads=args.threads,
        frames=args.frames,
        prompts=args.prompts,
        api_key=_key(args.api_key_file),
        allow_files=Path(args.allow_files) if args.allow_files is not None else None,
        allow_hosts=args.allow_hosts or (),
        queue=args.queue,
        max_body=args.max_body_mib * _MiB,
        max_image=args.max_image_mib * _MiB,
        max_pixels=args.max_pixels,
        max_images=args.max_images,
        max_tokens=args.max_tokens,
        body_seconds=args.body_seconds,
        fetch_seconds=args.fetch_seconds,
        answer_seconds=args.answer_seconds,
        grace_seconds=args.grace_seconds,
    )
    server = Server(args.bundle, settings)
    for name in server.models.names:
        tell(f"model {name}")
    if not settings.only_here and settings.api_key is None:
        tell(f"warning: {settings.host} can be reached from other machines, and no API key is set ({KEY})")
    tell(f"listening on {server.url}; Ctrl-C ends it")
    server.run(on_stop=lambda: tell("stopping: running answers end; Ctrl-C again ends them"))
    tell("stopped")
    return 0


def _key(file: str | None) -> str | None:
    """The API key of the file or the environment, None where there is none."""
    if file is None:
        return os.environ.get(KEY) or None
    try:
        text = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} (--api-key-file) cannot be read ({quoted(error, file)}); give a text file") from error
    if not text:
        raise UsageError(f"{file} (--api-key-file) is empty; write the key into it")
    return text
