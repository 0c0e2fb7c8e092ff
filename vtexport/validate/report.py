"""The schema of a validation's report, `reports/validate.json` of a bundle, and its reader.

docs/proof.md says what is compared and by which bounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from vtexport.bundle.small_files import UnreadableError, decode_json, read_bounded
from vtexport.errors import InputError, quoted

SCHEMA_VERSION = 1
KIND = "vtexport validation"
FOLDER, NAME = "reports", "validate.json"  # inside a bundle, and not in its manifest
MAX_BYTES = 64 * 2**20

# "differs": not as in PyTorch, by no more than rounding explains. "skipped": not compared, and `note` says why.
Verdict = Literal["pass", "differs", "fail", "skipped"]
Stage = Literal["input", "op", "pipeline"]


class Check(msgspec.Struct, kw_only=True):
    """One comparison with what PyTorch answered.

    `measured` and `bound` have one unit, which `what` follows from: a deviation in units of the tensor's root mean
    square, a share of kept tokens, a number of tokens, or levels of 8 bits.
    """

    stage: Stage
    what: str  # such as "features" or "kept, layer 2"
    case: str  # such as "image 1", "prompt 2" or "case 1"
    verdict: Verdict
    measured: float | None = None
    bound: float | None = None
    note: str = ""


class PlanChecks(msgspec.Struct, kw_only=True):
    """The comparisons of one plan."""

    plan: str
    graphs: list[str]  # that ran
    checks: list[Check]


class Report(msgspec.Struct, kw_only=True):
    """The whole of validate.json."""

    schema_version: int
    kind: str
    created_at: str  # UTC, ISO 8601
    command: str
    bundle: str  # the folder as it was given
    bundle_name: str
    manifest_sha256: str
    proof_sha256: str  # of proof.json
    precision: str
    device: str
    backend: str  # with its version
    pruning_ops: str  # which form of them ran
    threads: int | None
    machine: dict[str, Any]
    versions: dict[str, str]
    proof_versions: dict[str, dict[str, str]]  # of what made the proof, by plan
    prompts: list[str]
    images: list[str]
    cases: list[str]  # "image 1, prompt 1"
    notes: list[str]
    inputs: list[Check]  # that all plans share
    plans: list[PlanChecks]
    without_proof: dict[str, str]  # plans that were not compared, and why

    @property
    def checks(self) -> list[tuple[str, Check]]:
        """Every comparison with its plan's name, "" for the inputs."""
        of_plans = [(plan.plan, check) for plan in self.plans for check in plan.checks]
        return [("", check) for check in self.inputs] + of_plans

    @property
    def failed(self) -> list[tuple[str, Check]]:
        """Those that failed."""
        return [(plan, check) for plan, check in self.checks if check.verdict == "fail"]


def encode(report: Report) -> bytes:
    """UTF-8 JSON with sorted keys."""
    return msgspec.json.format(msgspec.json.encode(report, order="sorted"), indent=2) + b"\n"


def read_report(path: Path) -> Report:
    """The report in a file.

    Raises:
        InputError: it cannot be read, or is of another version.
    """
    try:
        report = decode_json(read_bounded(path, MAX_BYTES), Report)
    except UnreadableError as error:
        raise InputError(
            f"{path} is no report of a validation ({quoted(error, path)}); run `vtexport validate` again"
        ) from error
    if (report.kind, report.schema_version) != (KIND, SCHEMA_VERSION):
        raise InputError(
            f"{path} is a {quoted(report.kind)} of schema_version {report.schema_version}, not a {KIND} of "
            f"{SCHEMA_VERSION}; run `vtexport validate` again"
        )
    return report
