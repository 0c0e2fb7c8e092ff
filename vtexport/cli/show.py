"""Draw the tokens a bundle keeps on the image it was given.

Kept patches stay bright with a frame, dropped ones are dimmed; what lies outside the model's crop is darkest. Where
the model sees a border around the image, so does the picture. A CLS token stands for no patch and is not drawn.

examples:
  vtexport show mini --image photo.jpg -o kept.png
  vtexport show llava-cdpruner --image photo.jpg --prompt "Where is the cup?"
"""

from __future__ import annotations

import argparse
import dataclasses

from vtexport.cli.console import say, say_json, typed_text
from vtexport.cli.run import add_pipeline_arguments, open_pipeline, tell_warnings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    add_pipeline_arguments(parser)
    parser.add_argument(
        "--prompt", type=typed_text, metavar="TEXT", help="the question, for plans that pick visual tokens by it"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="a .png or .jpg file; default: IMAGE.kept.png, here")


def run(args: argparse.Namespace) -> int:
    """Encodes the image and writes the picture."""
    from pathlib import Path

    from vtexport.runtime.images import read_image
    from vtexport.runtime.kept_tokens import draw_kept_tokens, save_picture

    output = Path(args.output) if args.output else Path(Path(args.image).stem + ".kept.png")
    loaded = read_image(args.image)
    pipeline = open_pipeline(args)
    visual = pipeline.encode(loaded.image, args.prompt)
    border = pipeline.bundle.manifest.image.pad_to_square
    save_picture(draw_kept_tokens(loaded.image, visual, border or (0, 0, 0)), output)
    warnings = [*loaded.warnings, *visual.warnings]
    kept = [int(index) for index in visual.keep_indices]
    patches = sum(index >= 0 for index in kept)
    if args.json:
        route = dataclasses.asdict(visual.route) if visual.route else None
        shown = {"picture": str(output), "plan": visual.plan, "visual_tokens": len(kept), "keep_indices": kept}
        say_json(shown | {"route": route, "reports": visual.reports, "warnings": warnings})
    else:
        rows, columns = visual.grid
        cls = ", and CLS" if patches < len(kept) else ""
        say(f"{output}: {patches} of {rows * columns} patches kept{cls} ({visual.plan})")
    tell_warnings(warnings)
    return 0
