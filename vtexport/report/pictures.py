"""A proof's images with the visual tokens that PyTorch kept, small enough to stand in a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

from PIL import Image

from vtexport.bundle.proof import FoundProof, PlanProof, ProofImage
from vtexport.bundle.reader import Bundle
from vtexport.bundle.views import FixedSize
from vtexport.errors import VtexportError, quoted
from vtexport.runtime.images import pixel_values, read_image
from vtexport.runtime.kept_tokens import draw_kept_patches

MOST = 12  # pictures in a page
_SIDE = 320  # pixels, twice what a phone shows of one
_COLOURS = 128  # of the palette: a third of the bytes


@dataclass(frozen=True)
class Picture:
    """One image under one plan."""

    plan: str
    image: int  # counted from 1
    origin: str
    prompt: str
    kept: int  # rows that enter the language model, CLS included
    patches: int
    places: int  # patches of the grid
    width: int
    height: int
    uri: str  # data:image/png


@dataclass
class Pictures:
    """Those that fit a page; `left_out` says of every other one why it is not there."""

    shown: list[Picture] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def draw_pictures(bundle: Bundle, found: FoundProof) -> Pictures:
    """A picture of each image under each plan, the first prompt about it, image by image; `MOST` at the most."""
    vision = bundle.manifest.vision
    if vision.resize != FixedSize() or len(vision.arrangements[0].views) > 1:
        return Pictures(left_out=["an image is several views here, and pictures are drawn of one"])
    made = Pictures()
    first: dict[int, int] = {}
    for number, case in enumerate(found.proof.cases):
        first.setdefault(case.image, number)
    wanted = [(number, name, plan) for number in first.values() for name, plan in found.proof.plans.items()]
    for number, name, plan in wanted[:MOST]:
        try:
            made.shown.append(_picture(bundle, found, number, name, plan))
        except (VtexportError, OSError) as error:
            made.left_out.append(f"{name}, image {found.proof.cases[number].image + 1}: {quoted(error)}")
    if len(wanted) > MOST:
        rest = ", ".join(f"{name} on image {found.proof.cases[number].image + 1}" for number, name, _ in wanted[MOST:])
        made.left_out.append(f"a page shows {MOST} pictures; not shown: {rest}")
    return made


def _picture(bundle: Bundle, found: FoundProof, case: int, name: str, plan: PlanProof) -> Picture:
    view = bundle.manifest.vision.arrangements[0].views[0]
    grid = view.grid_height, view.grid_width
    asked = found.proof.cases[case]
    recorded: ProofImage = found.proof.images[asked.image]
    indices = [int(index) for index in found.arrays(plan.file)[f"{case}.kept.visual"].ravel()]
    patches = [index for index in indices if 0 <= index < grid[0] * grid[1]]
    if len(patches) != sum(index >= 0 for index in indices):
        raise VtexportError(f"an index is beyond the {grid[0]} x {grid[1]} patches")
    image = read_image(found.folder / recorded.file).image
    settings = bundle.manifest.image
    _, crop = pixel_values(image, settings)
    drawn = draw_kept_patches(image, crop, grid, patches, settings.pad_to_square or (0, 0, 0))
    drawn.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    drawn.quantize(_COLOURS).save(data, "PNG", optimize=True)
    return Picture(
        plan=name,
        image=asked.image + 1,
        origin=recorded.origin,
        prompt=found.proof.prompts[asked.prompt],
        kept=len(indices),
        patches=len(patches),
        places=grid[0] * grid[1],
        width=drawn.width,
        height=drawn.height,
        uri="data:image/png;base64," + base64.b64encode(data.getvalue()).decode(),
    )
