"""Validation: a bundle's proof, what PyTorch answered, beside what a device computes. No PyTorch is needed here."""

from __future__ import annotations

from vtexport.validate.report import Check, PlanChecks, Report, read_report
from vtexport.validate.validate import NoProofError, validate, write_report

__all__ = ["Check", "NoProofError", "PlanChecks", "Report", "read_report", "validate", "write_report"]
