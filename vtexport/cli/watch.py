"""Ask a bundle about the newest frame of a camera, a stream, a video or a folder, again and again.

Each answer is a line of JSON on stdout, with the frame's time, its age, and the times of the stages. A frame that a
newer one replaced while another was answered is never asked about; the lines count such frames.

examples:
  vtexport watch llava-64 --source /dev/video0 --prompt "Is the way free?" --every 500ms --deadline 800ms
  vtexport watch llava-64 --source "v4l2src ! videoconvert ! appsink drop=true max-buffers=1" --prompt "Who is there?"
  vtexport watch mini --source drive.mp4 --prompt "What is ahead?" --on-change --offline
  vtexport watch mini --source frames --follow --prompt "What is on the table?"
"""

from __future__ import annotations

import argparse
from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from vtexport.cli.console import counted, say_json, tell, typed_text
from vtexport.cli.quantities import duration, share
from vtexport.cli.run import add_logits_processors_argument, tell_warnings
from vtexport.cli.stopping import asked_to_stop
from vtexport.errors import UsageError

if TYPE_CHECKING:
    from vtexport.watch import Observation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument(
        "--source",
        required=True,
        metavar="SOURCE",
        help="a camera (0, /dev/video0), a GStreamer pipeline with an appsink, an rtsp:// URL, a video file, or a "
        "folder of images; all but a folder take pip install 'vtexport[camera]'",
    )
    parser.add_argument("--prompt", type=typed_text, required=True, metavar="TEXT", help="the question")
    parser.add_argument(
        "--every", type=duration, default=0.0, metavar="TIME", help="from one question to the next; default: at once"
    )
    parser.add_argument(
        "--on-change",
        type=share,
        nargs="?",
        const=share("5%"),
        metavar="SHARE",
        help="ask only about a frame of which a cell of 16 x 16 differs in brightness by more than this from the frame "
        "asked about last; 5%% where no share is given",
    )
    parser.add_argument(
        "--deadline",
        type=duration,
        metavar="TIME",
        help="from a frame's capture to the end of its answer, which is cut",
    )
    parser.add_argument(
        "--fps", type=float, metavar="N", help="frames a second of a recording; default: 10 of a folder"
    )
    parser.add_argument(
        "--offline", action="store_true", help="a recording waits while it is answered: no frame is dropped"
    )
    parser.add_argument("--follow", action="store_true", help="the frames are the files that come into the folder")
    parser.add_argument("--limit", type=int, metavar="N", help="end after this many answers")
    parser.add_argument("--plan", metavar="NAME", help="which plan, of several (`vtexport inspect`)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="default: cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for one operator; default: all cores")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="default: 128")
    add_logits_processors_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Watches until the source ends, enough was answered, or a signal comes."""
    from vtexport.runtime.pipeline import Pipeline
    from vtexport.runtime.reuse import Reuse
    from vtexport.watch import Watcher, open_source
    from vtexport.watch.time import RealTime, RecordedTime

    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit is {args.limit}; give a whole number from 1")
    if args.offline and args.deadline is not None:
        raise UsageError("--deadline is of no effect with --offline, whose time stands still; leave one out")
    passing = RecordedTime() if args.offline else RealTime()
    totals = {"answers": 0, "errors": 0, "late": 0, "dropped": 0, "unchanged": 0, "missed": 0}
    loaded = False
    with (
        # The source first: a wrong name should not cost the loading of a model
        closing(open_source(args.source, fps=args.fps, follow=args.follow, time=passing)) as source,
        asked_to_stop(lambda: loaded) as asked,
        Pipeline.open(
            args.bundle, args.plan, device=args.device, threads=args.threads, reuse=Reuse(frames=1, prompts=1)
        ) as pipeline,
    ):
        for note in pipeline.notes:
            tell(f"note: {note}")
        options: dict[str, Any] = {
            "max_new_tokens": args.max_new_tokens,
            "logits_processors": args.logits_processors,
        }
        with Watcher(
            pipeline,
            source,
            args.prompt,
            every=args.every,
            on_change=args.on_change,
            deadline=args.deadline,
            time=passing,
            should_stop=asked,
            **options,
        ) as watcher:
            loaded = True  # from here on a signal leaves whole lines
            for seen in watcher:
                say_json(line(seen, offline=args.offline), indent=None)
                if seen.answer is not None:
                    tell_warnings(seen.answer.warnings)
                for name, value in _counts(seen).items():
                    totals[name] += value
                if totals["answers"] == args.limit:
                    break
    rest = ", ".join(f"{name} {value}" for name, value in list(totals.items())[1:] if value)
    tell(f"{counted(totals['answers'], 'answer')}{f' ({rest})' if rest else ''}{'; stopped' if asked() else ''}")
    return 0


def _counts(seen: Observation) -> dict[str, int]:
    return {
        "answers": int(seen.answer is not None),
        "errors": int(seen.error is not None),
        "late": int(seen.late),
        "dropped": seen.dropped,
        "unchanged": seen.unchanged,
        "missed": seen.missed,
    }


def line(seen: Observation, *, offline: bool = False) -> dict[str, Any]:
    """One observation as it is printed; ages are left out where the time of the recording stands still."""
    frame, answer = seen.frame, seen.answer
    at = datetime.fromtimestamp(frame.wall, timezone.utc).isoformat(timespec="milliseconds")
    found: dict[str, Any] = {"frame": frame.number, "time": at.replace("+00:00", "Z"), "question": seen.question}
    found |= {} if frame.name is None else {"file": frame.name}
    found |= {} if frame.position is None else {"position_s": round(frame.position, 3)}
    found |= {} if offline else {"start_age_ms": _ms(seen.start_age), "age_ms": _ms(seen.age)}
    found |= {} if seen.change is None else {"change": round(seen.change, 4)}
    found |= {"dropped": seen.dropped, "unchanged": seen.unchanged, "missed": seen.missed, "late": seen.late}
    if answer is None:
        return found | {"error": seen.error}
    return found | {
        "answer": answer.text,
        "finish_reason": "deadline" if seen.cut else answer.finish_reason,
        "new_tokens": len(answer.token_ids),
        "visual_tokens": answer.visual_tokens,
        "plan": answer.plan,
        "timings_ms": {name: round(value, 3) for name, value in answer.timings_ms.items()},
    }


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 1)
