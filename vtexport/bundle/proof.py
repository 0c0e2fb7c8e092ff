"""A bundle's folder `proof/`: what PyTorch answered with the checkpoint, for a device to replay without PyTorch.

`proof.json` is a file of its own, because the manifest never changes; the arrays stand beside it, the images' and
prompts' in `inputs.npz` and a plan's in one file each. docs/proof.md says what is in them.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from vtexport.bundle.hashing import hash_file
from vtexport.bundle.hub_cache import leads_out
from vtexport.bundle.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, File, Manifest, Plan, Sha256
from vtexport.bundle.publish import staged
from vtexport.bundle.references import is_inside
from vtexport.bundle.small_files import UnreadableError, decode_json, read_bounded
from vtexport.bundle.views import Count, Positive
from vtexport.dtypes import WeightType
from vtexport.errors import BundleError, quoted

SCHEMA_VERSION = 1
FOLDER, PROOF_NAME, INPUTS_NAME = "proof", "proof.json", "inputs.npz"
MAX_ARRAY_BYTES = 64 * 2**20  # of one file of arrays; ours have 2 MB at the most
_UNFINISHED = ".vtx-unfinished-proof"  # as a build in the checkpoint's folder names what it removes after a crash
_NOT_OF_A_PLAN = ("command", "created_at", "graphs", "paper", "reports")  # that its answers do not follow from


class Noise(msgspec.Struct, kw_only=True):
    """Deviation that rounding alone causes, in units of the tensor's own root mean square.

    It was measured on PyTorch's model, with every module's output changed at random by up to a unit in the last place
    of the bundle's precision.
    """

    rms: float
    largest: float


class ProofImage(msgspec.Struct, kw_only=True):
    """One picture, stored as PNG, and the pixels that transformers' image processor makes of it.

    `levels.NUMBER` in inputs.npz has these before rescaling and normalisation, [H, W, 3] uint8.
    """

    file: str
    origin: str  # "generated: ..." or the file's name as it was given
    width: Positive
    height: Positive
    pixels_sha256: Sha256  # of `pixel_values` [1, 3, H, W], its float32 bytes in C order


class Case(msgspec.Struct, kw_only=True):
    """One question about one image, by number."""

    image: Count
    prompt: Count


class CaseAnswer(msgspec.Struct, kw_only=True):
    """Facts about one case's answer; its arrays are in the plan's file.

    `margins` are the method's own: by how much the score of what was kept is ahead of what was not, by the op's name of
    that margin, "layer 2: margin" for a step inside the language model. `no_margin` says why there is none.
    """

    visual_tokens: Positive
    margins: dict[str, float]
    no_margin: str | None = None


class PlanProof(msgspec.Struct, kw_only=True):
    """Answers of one plan."""

    file: str
    plan_sha256: Sha256  # of what they follow from, see `plan_digest`
    created_at: str
    command: str
    versions: dict[str, str]
    answers: list[CaseAnswer]  # by case
    strides: dict[str, Positive]  # of the rows that are stored of a tensor
    noise: dict[str, Noise]  # by tensor; the largest of the runs under rounding and of the cases
    overlap: dict[str, float]  # the least share of kept tokens that were kept under rounding, too; by place
    op_margins: dict[str, float] = {}  # of what is kept of the stored inputs of the prune graph
    op_inputs: str | None = None  # why the inputs of the prune graph are not stored; None where they are


class Proof(msgspec.Struct, kw_only=True):
    """The whole of proof.json."""

    schema_version: int
    manifest_sha256: Sha256  # of the manifest.json that it stands beside
    precision: WeightType  # that `noise` is of
    new_tokens: Positive  # of every answer; end tokens do not end it
    images: Annotated[list[ProofImage], msgspec.Meta(min_length=1)]
    prompts: Annotated[list[str], msgspec.Meta(min_length=1)]
    cases: Annotated[list[Case], msgspec.Meta(min_length=1)]
    plans: dict[str, PlanProof]
    without_proof: dict[str, str] = {}  # plans that none could be made of, and why
    files: dict[str, File]


class _Version(msgspec.Struct):
    schema_version: int


@dataclass(frozen=True)
class FoundProof:
    """A proof that was read and whose files have the SHA-256 that it states."""

    folder: Path
    proof: Proof

    def arrays(self, name: str) -> Arrays:
        """The arrays of `inputs.npz` or of a plan's file.

        Raises:
            BundleError: the file is not one of arrays, or not the one that was hashed.
        """
        path = self.folder / name
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self.proof.files[name].sha256:
                raise _damaged(path, "it does not have the SHA-256 that proof.json states")
            with np.load(io.BytesIO(data), allow_pickle=False) as opened:
                return Arrays(path, {each: opened[each] for each in opened.files})
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise _damaged(path, quoted(error, path)) from error


class Arrays:
    """Arrays by name; one that is missing is damage."""

    def __init__(self, path: Path, values: Mapping[str, np.ndarray]):
        self._path, self._values = path, values

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._values:
            raise _damaged(self._path, f"it has no array {name!r}")
        return self._values[name]

    def get(self, name: str) -> np.ndarray | None:
        """The array, or None."""
        return self._values.get(name)

    def under(self, prefix: str) -> list[str]:
        """Names that begin so, without the beginning, in order."""
        return sorted(name.removeprefix(prefix) for name in self._values if name.startswith(prefix))


def plan_digest(manifest: Manifest, plan: Plan) -> str:
    """SHA-256 of what a plan's answers follow from: method, parameters, steps, and the checkpoint's files."""
    described = {key: value for key, value in msgspec.to_builtins(plan).items() if key not in _NOT_OF_A_PLAN}
    parts = [described, sorted(manifest.source.files.values())]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def encode(proof: Proof) -> bytes:
    """UTF-8 JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(proof, order="sorted"), indent=2) + b"\n"


def command_for(folder: Path, manifest: Manifest) -> str:
    """The command that makes a proof of a bundle."""
    return f"vtexport prove {shlex.quote(str(folder))} --checkpoint {shlex.quote(manifest.source.requested)}"


def read_proof(folder: Path, manifest: Manifest) -> FoundProof | None:
    """The proof of the bundle in `folder`, every file of it hashed; None where there is none.

    Raises:
        BundleError: it is damaged, of another version or of another manifest.
    """
    found = _read(folder)
    if found is None:
        return None
    proof, where = found.proof, found.folder / PROOF_NAME
    if proof.manifest_sha256 != hash_file(folder / MANIFEST_NAME):
        raise BundleError(f"{where} is of another manifest than the bundle's; run `{command_for(folder, manifest)}`")
    if proof.precision != manifest.precision:
        raise _damaged(where, f"it is of a bundle in {proof.precision}")
    return found


def _read(folder: Path) -> FoundProof | None:
    """The proof in a bundle's folder, of whichever manifest."""
    inside = folder / FOLDER
    path = inside / PROOF_NAME
    if not path.is_symlink() and not path.exists():
        return None
    if leads_out(path, folder):
        raise _damaged(path, "it leads out of the bundle")
    try:
        data = read_bounded(path, MAX_MANIFEST_BYTES)
        version = decode_json(data, _Version).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{path} has schema_version {version} and this vtexport reads {SCHEMA_VERSION}; run `vtexport prove` "
                "again"
            )
        proof = decode_json(data, Proof)
    except UnreadableError as error:
        raise _damaged(path, quoted(error, path)) from error
    _check(proof, path, folder)
    return FoundProof(inside, proof)


def _check(proof: Proof, path: Path, bundle: Path) -> None:
    """References, and every file's place, size and hash."""
    named = {INPUTS_NAME, *(each.file for each in proof.images), *(each.file for each in proof.plans.values())}
    if missing := sorted(named - set(proof.files)):
        raise _damaged(path, f"it names {missing[0]!r} without a hash")
    for case in proof.cases:
        if case.image >= len(proof.images) or case.prompt >= len(proof.prompts):
            raise _damaged(path, f"a case has image {case.image} and prompt {case.prompt}")
    if wrong := next((name for name, each in proof.plans.items() if len(each.answers) != len(proof.cases)), None):
        raise _damaged(path, f"{wrong} has not one answer a case")
    for name, recorded in proof.files.items():
        file = path.parent / name
        try:
            status = file.stat() if is_inside(name) else None
        except OSError:
            status = None
        if status is None or not stat.S_ISREG(status.st_mode) or leads_out(file, bundle):
            raise _damaged(path, f"it names {name!r}, which is not there")
        if recorded.bytes > MAX_ARRAY_BYTES or status.st_size != recorded.bytes:
            raise _damaged(file, f"it has {status.st_size} bytes, proof.json says {recorded.bytes}")
        if hash_file(file) != recorded.sha256:
            raise _damaged(file, "it does not have the SHA-256 that proof.json states")


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(f"{path} is damaged: {why}; copy the bundle again, or run `vtexport prove`")


def write_proof(bundle: Path, proof: Proof, fill: Callable[[Path], None]) -> None:
    """Puts `proof/` in place whole: `fill` writes its files into the folder that it gets, all but proof.json.

    `manifest_sha256` and `files` are filled in here.

    Raises:
        UsageError: the bundle lies in the hub's cache, or something else has the folder's name.
        InputError: it cannot be written.
    """
    with staged(bundle / FOLDER, marker=PROOF_NAME) as folder:
        _fill(folder, bundle, proof, fill)


def _fill(folder: Path, bundle: Path, proof: Proof, fill: Callable[[Path], None]) -> None:
    fill(folder)
    files = {path.name: File(bytes=path.stat().st_size, sha256=hash_file(path)) for path in sorted(folder.iterdir())}
    whole = msgspec.structs.replace(proof, files=files, manifest_sha256=hash_file(bundle / MANIFEST_NAME))
    (folder / PROOF_NAME).write_bytes(encode(whole))


def carry_proof(earlier: Path, folder: Path, manifest: Manifest, note: Callable[[str], object]) -> None:
    """Puts the proofs of the bundle in `earlier` into the one in `folder`, whose manifest is written, for plans that
    are as they were; tells of the others.

    A build calls it, which holds `folder` locked for itself, so this waits for nobody. Both may be the same folder.
    """
    try:
        found = _read(earlier)
    except BundleError as error:
        note(f"the proof is not taken over ({quoted(error)})")
        return
    if found is None:
        return
    before = found.proof
    digests = {plan.name: plan_digest(manifest, plan) for plan in manifest.plans}
    kept = {name: each for name, each in before.plans.items() if digests.get(name) == each.plan_sha256}
    for name in sorted(set(before.plans) - set(kept)):
        note(f"the plan {name} has changed, so its proof goes; run `vtexport prove` afterwards")
    without = {name: why for name, why in before.without_proof.items() if name in digests}
    proof = msgspec.structs.replace(before, plans=kept, without_proof=without)
    copied = {INPUTS_NAME, *(each.file for each in before.images), *(each.file for each in kept.values())}

    def fill(target: Path) -> None:
        for name in copied:
            shutil.copyfile(found.folder / name, target / name)

    fresh = folder / _UNFINISHED
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o755)
    _fill(fresh, folder, proof, fill)
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    fresh.rename(folder / FOLDER)
