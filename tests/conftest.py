"""Checkpoints and bundles that the tests share: small, seeded, made once a run."""

from __future__ import annotations

import worker_cores  # noqa: F401 (it counts for what is imported behind it)

# isort: split

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from tiny_llava import PHOTO, make_config, make_model, save_model
from warm_builds import WarmBuilds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files marked `long` first, so that of several test processes none is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


# A build by the command line would make one wherever PyTorch is installed, as it is here; tests of it say so.
os.environ.setdefault("VTEXPORT_PROOF", "0")
# No test is a matter of time: a loaded machine must not fail one.
hypothesis.settings.register_profile("vtexport", deadline=None)
hypothesis.settings.load_profile("vtexport")


@pytest.fixture(scope="session")
def photo() -> Path:
    return PHOTO


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    return make_model(make_config())


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tiny_model, tmp_path_factory.mktemp("checkpoints") / "tiny-llava")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans: prunesid-16 and prunesid-32. Tests must not change it; see `bundle_copy`."""
    from vtexport.build import build

    return build(str(tiny_checkpoint), tmp_path_factory.mktemp("bundles") / "tiny", keep=[16, 32]).folder


@pytest.fixture(scope="session")
def eval_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans none, prunesid-8 and prunesid-16, and an adaptive one over the last two. Tests must not change it."""
    from vtexport.build import build

    folder = tmp_path_factory.mktemp("eval") / "tiny"
    build(str(tiny_checkpoint), folder, method="none")
    return build(str(tiny_checkpoint), folder, keep=[8, 16], dynamic=True).folder


@pytest.fixture(scope="session")
def proven_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plans none, prunesid-16, cdpruner-16 (by the question) and nuwa-16 (steps), all with a proof. Tests must not
    change it; see `proven_copy`."""
    from vtexport.build import build
    from vtexport.proof import prove

    folder = tmp_path_factory.mktemp("proven") / "tiny"
    for method, keep in (("none", None), ("prunesid", 16), ("cdpruner", 16), ("nuwa", 16)):
        build(str(tiny_checkpoint), folder, method=method, keep=keep)
    prove(folder, str(tiny_checkpoint), command="vtexport prove tiny")
    return folder


@pytest.fixture
def proven_copy(proven_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a proof that a test may damage."""
    return Path(shutil.copytree(proven_bundle, tmp_path / "proven"))


@pytest.fixture(scope="session")
def warm_builds(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmBuilds]:
    """Commands on the tiny checkpoint that start at once (see `warm_builds`)."""
    warm = WarmBuilds(tiny_checkpoint, tmp_path_factory.mktemp("warm"))
    yield warm
    warm.close()


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def mini_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which mini's seeded weights are generated, apart from the user's own cache."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def mini_bundle(mini_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mini with random weights, which leave no answer short."""
    from vtexport.build import build

    folder = tmp_path_factory.mktemp("bundles") / "mini"
    return build("mini", folder, keep=64, weights="random", cache_dir=mini_cache).folder


@pytest.fixture
def noisy_image() -> np.ndarray:
    """[H, W, 3] uint8, not square, different everywhere."""
    return np.random.default_rng(5).integers(0, 256, (150, 201, 3), dtype=np.uint8)


@pytest.fixture
def blocked_import(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a package look uninstalled."""
    import builtins

    real = builtins.__import__

    def block(package: str) -> None:
        def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.partition(".")[0] == package:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", guarded)

    return block
