"""Choice of graphs for a version of ONNX Runtime, by the table of what was seen."""

from __future__ import annotations

import pytest
from packaging.version import Version

from vtexport.bundle.dialects import DIALECTS, choose_dialect, loads, why_not
from vtexport.errors import MissingDependencyError, UsageError

# version: what it answers rightly with, in float32 and in float16
SEEN = {
    "1.18.0": ({"classic"}, {"classic"}),
    "1.18.1": ({"classic"}, {"classic"}),
    "1.19.2": ({"classic"}, {"classic"}),
    "1.20.1": ({"classic"}, {"classic"}),
    "1.21.1": ({"classic"}, {"classic"}),
    "1.22.1": ({"classic"}, {"classic"}),
    "1.23.0": ({"classic"}, {"classic"}),
    "1.23.1": ({"modern", "classic"}, {"classic"}),
    "1.23.2": ({"modern", "classic"}, {"classic"}),
    "1.24.1": ({"modern", "classic"}, {"classic"}),
    "1.24.4": ({"modern", "classic"}, {"classic"}),
    "1.25.0": ({"modern", "classic"}, {"modern", "classic"}),
    "1.31.1": ({"modern", "classic"}, {"modern", "classic"}),
    "1.32.0": ({"modern", "classic"}, {"modern", "classic"}),
}


@pytest.mark.parametrize("version", SEEN)
def test_what_was_seen(version: str) -> None:
    for precision, right in zip(("float32", "float16"), SEEN[version], strict=True):
        assert {each for each in DIALECTS if why_not(each, version, precision) is None} == right
        assert choose_dialect(version, precision) == next(each for each in DIALECTS if each in right)
        for dialect in DIALECTS:
            if dialect in right:
                assert choose_dialect(version, precision, dialect) == dialect
            else:
                with pytest.raises(UsageError, match=f"ONNX Runtime {version} must not run the {dialect}") as caught:
                    choose_dialect(version, precision, dialect)
                assert len(str(caught.value)) < 300


@pytest.mark.parametrize("version", ["1.17.3", "1.16.0", "0.5"])
def test_too_old_for_any(version: str) -> None:
    for wanted in (None, *DIALECTS):
        with pytest.raises(MissingDependencyError, match=f"ONNX Runtime {version} cannot run bundles.*1.18.0 or newer"):
            choose_dialect(version, "float32", wanted)


@pytest.mark.parametrize(
    ("version", "dialect"),
    [
        ("1.25.0.dev20260101", "classic"),  # from before the release, so perhaps from before the repair
        ("1.25.0rc1", "classic"),
        ("1.25.1.dev20260101", "modern"),
        ("1.25", "modern"),
        ("1.26.0+cu128", "modern"),
        ("2.0.0", "modern"),
    ],
)
def test_other_spellings(version: str, dialect: str) -> None:
    assert choose_dialect(version, "float16") == dialect


def test_a_version_that_says_nothing_is_refused() -> None:
    with pytest.raises(MissingDependencyError, match="version 'unknown' does not say what it can run"):
        choose_dialect("unknown", "float32")


def test_only_known_dialects() -> None:
    with pytest.raises(UsageError, match="dialect 'latin' is not known; choose one of modern, classic"):
        choose_dialect("1.31.1", "float32", "latin")


def test_right_graphs_are_graphs_that_load() -> None:
    for version in sorted([*SEEN, "1.17.3"], key=Version):
        for dialect in DIALECTS:
            if why_not(dialect, version, "float32") is None:
                assert loads(dialect, version)
    assert loads("modern", "1.23.0")
    assert not loads("modern", "1.22.1")
    assert not loads("classic", "1.17.3")


def test_the_exporter_writes_every_dialect() -> None:
    from vtexport.export import dialects

    assert tuple(dialects.DIALECTS) == DIALECTS
