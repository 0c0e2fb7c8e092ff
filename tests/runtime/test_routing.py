"""Routes: rho, the choice of a budget, the calibration and its file, and all of it in a bundle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtexport.build import Report, build
from vtexport.bundle import manifest as schema
from vtexport.bundle.calibration import CALIBRATION_NAME, read_calibration
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.cli.main import main
from vtexport.errors import BundleError, InputError, UsageError
from vtexport.pruning import diagnostic_model, select
from vtexport.runtime import calibrate as calibrating
from vtexport.runtime.calibrate import calibrate
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.routing import fit, nearest_budget, redundancy

REMEMBERS_VISION = True
BUDGETS, ROUTE = [8, 16, 40], "prunesid-dynamic"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Path:
    """Seven parts of a photograph, from one without detail to all of it, one in a folder below; and no image."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    whole = Image.open(photo).convert("RGB")
    for number in range(7):
        side = 8 * 2**number
        part = whole.crop((100, 100, 100 + side, 100 + side))
        part.save(folder / ("more" if number == 3 else "") / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def routed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a route and without calibration; tests must not change it."""
    target = tmp_path_factory.mktemp("routed") / "tiny"
    return build(str(tiny_checkpoint), target, keep=BUDGETS[::-1], dynamic=True).folder


@pytest.fixture
def routed_copy(routed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(routed, tmp_path / "routed"))


@pytest.fixture(scope="module")
def calibrated(routed: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(routed, tmp_path_factory.mktemp("calibrated") / "tiny"))
    calibrate(open_bundle(folder), photos)
    return folder


def route_of(folder: Path) -> tuple[Bundle, schema.Route]:
    bundle = open_bundle(folder)
    return bundle, bundle.manifest.routes[0]


@pytest.mark.parametrize("kind", ["random", "similar", "equal", "zero row", "one", "huge"])
def test_rho_is_the_ops(kind: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 24)).astype(np.float32)
    x = {
        "random": x,
        "huge": x,
        "similar": x + 2,
        "equal": np.ones_like(x),
        "zero row": x * (np.arange(40) != 7)[:, None],
        "one": x[:1],
    }[kind].astype(np.float32)
    if kind == "one":
        assert redundancy(x) == 0
        return
    request = {"keep": 8, "cls_slot": False, "nms_score": "abs_v"}
    if kind == "huge":
        assert redundancy(x * np.float32(1e30)) == pytest.approx(redundancy(x), abs=1e-6)
        return
    reference = select("prunesid", x[None], **request).details["rho"][0]
    assert redundancy(x) == pytest.approx(float(reference), abs=1e-6)
    model = diagnostic_model("prunesid", tokens=40, width=24, **request)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (by_onnx,) = session.run(["rho"], {"features": x[None]})
    assert redundancy(x) == pytest.approx(float(by_onnx[0]), abs=1e-6)


def test_the_nearest_budget_and_the_lower_of_two() -> None:
    got = [nearest_budget(wanted, [8, 16, 40]) for wanted in (0, 11.9, 12, 12.1, 28, 28.1, 1e9)]
    assert got == [8, 8, 8, 16, 16, 40, 40]


@settings(max_examples=150, deadline=None)
@given(
    rhos=st.lists(st.floats(-0.2, 0.999), min_size=1, max_size=40),
    mean=st.integers(BUDGETS[0], BUDGETS[-1]),
)
def test_no_normaliser_comes_nearer_to_the_mean(routed: Path, rhos: list[float], mean: int) -> None:
    bundle, route = route_of(routed)
    found = fit(bundle, msgspec.structs.replace(route, mean=mean), rhos)

    def mean_at(normaliser: float) -> float:
        return float(np.mean([nearest_budget(mean * max(0.0, 1 - rho) / normaliser, BUDGETS) for rho in rhos]))

    assert found.mean_budget == pytest.approx(mean_at(found.normaliser))
    assert sum(found.images_by_budget.values()) == found.images == len(rhos)
    tried = np.concatenate([np.geomspace(1e-3, 10, 400), [np.mean(1 - np.asarray(rhos))]])
    best = min(abs(mean_at(each) - mean) for each in tried if each > 0)
    assert abs(found.mean_budget - mean) <= best + 1e-9


def test_images_without_any_difference_teach_nothing(routed: Path) -> None:
    with pytest.raises(InputError, match="uniform"):
        fit(*route_of(routed), [1.0, 1.0])


def test_a_route_without_calibration_says_what_to_do(routed: Path, photo: Path, capsys: Any) -> None:
    for plan in ([], ["--plan", ROUTE]):
        assert main(["run", str(routed), *plan, "--image", str(photo), "--prompt", "x"]) == 1
        shown = capsys.readouterr().err.strip()
        assert shown.startswith(f"vtexport: the route {ROUTE} of {routed} is not calibrated")
        assert f"vtexport calibrate {routed} --images FOLDER" in shown
    assert Pipeline.open(routed, "prunesid-8").encode(photo).keep_indices.shape == (8,)
    assert main(["inspect", str(routed)]) == 0
    assert "not calibrated: vtexport calibrate" in capsys.readouterr().out


def test_an_older_runtime_calibrates_by_its_own_graphs(
    routed_copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    tower = calibrating.VisionTower

    def seen(bundle: Any, graph: str, *given: Any) -> Any:
        loaded.append(graph)
        return tower(bundle, graph, *given)

    monkeypatch.setattr(calibrating, "VisionTower", seen)
    newest = calibrate(open_bundle(routed_copy), photos).redundancies
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    older = calibrate(open_bundle(routed_copy), photos).redundancies
    assert [name.split(".")[-1] for name in loaded] == ["modern", "classic"]
    assert older == pytest.approx(newest, abs=1e-5)


def test_calibrate_by_the_command_line(routed_copy: Path, photos: Path, capsys: Any) -> None:
    manifest = (routed_copy / "manifest.json").read_bytes()
    names = {path.name for path in routed_copy.iterdir()}
    assert main(["calibrate", str(routed_copy), "--images", str(photos)]) == 0
    shown = capsys.readouterr()
    assert f"not counted: {photos / 'notes.txt'} is not an image" in shown.err
    assert "1 of 8 files were not counted" in shown.out
    assert re.search(r"over 7 images, asked for 16, with the normaliser \d\.\d{4}; with their mean 1 - rho", shown.out)
    assert (routed_copy / "manifest.json").read_bytes() == manifest
    assert {path.name for path in routed_copy.iterdir()} == names | {CALIBRATION_NAME}
    assert open_bundle(routed_copy).verify() == []

    assert main(["calibrate", str(routed_copy), "--images", str(photos), "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["redundancies"]) == 7
    assert list(told["unreadable"]) == [str(photos / "notes.txt")]
    assert told["routes"][ROUTE]["images"] == 7
    assert main(["inspect", str(routed_copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["calibration"] == told["routes"]
    assert main(["inspect", str(routed_copy)]) == 0
    assert f"route {ROUTE}: each image to one of prunesid-8, prunesid-16, prunesid-40, mean 16" in (
        capsys.readouterr().out
    )


def test_each_image_gets_its_budget_and_the_answer_says_so(calibrated: Path, photos: Path, capsys: Any) -> None:
    bundle, route = route_of(calibrated)
    calibration = read_calibration(calibrated, bundle.manifest)[ROUTE]
    pipeline = Pipeline.open(calibrated)  # the route has all plans
    got = []
    for path in sorted(photos.rglob("[0-9].png")):
        visual = pipeline.encode(path)
        assert visual.route is not None
        wanted = route.mean * (1 - visual.route.redundancy) / calibration.normaliser
        assert visual.route.wanted == pytest.approx(wanted)
        assert visual.route.budget == nearest_budget(wanted, BUDGETS) == len(visual.keep_indices)
        assert visual.plan == f"prunesid-{visual.route.budget}"
        alone = Pipeline.open(calibrated, visual.plan)
        np.testing.assert_array_equal(alone.encode(path).embeddings, visual.embeddings)
        answer = pipeline.generate(visual, "What is this?", max_new_tokens=4)
        assert (answer.route, answer.plan) == (visual.route, visual.plan)
        assert answer.token_ids == alone.generate(path, "What is this?", max_new_tokens=4).token_ids
        got.append(visual.route.budget)
    assert {str(budget): got.count(budget) for budget in BUDGETS} == calibration.images_by_budget
    assert np.mean(got) == pytest.approx(calibration.mean_budget)
    assert len(set(got)) > 1

    ask = ["run", str(calibrated), "--image", str(photos / "0.png"), "--prompt", "x", "--max-new-tokens", "2"]
    assert main(ask) == 0
    assert f"{ROUTE}: rho " in capsys.readouterr().err
    assert main([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["route"]) == {"route", "redundancy", "wanted", "budget"}
    assert told["visual_tokens"] == told["route"]["budget"]


def test_the_shared_graphs_are_loaded_once(calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtexport.runtime import language_model, onnxruntime_backend, pipeline, vision

    loaded: list[str] = []

    class Counted(onnxruntime_backend.Session):
        def __init__(self, path: Path, device: str, threads: int | None, library: Path | None = None):
            loaded.append(path.name)
            super().__init__(path, device, threads, library)

    for module in (pipeline, vision, language_model):
        monkeypatch.setattr(module, "Session", Counted)
    Pipeline.open(calibrated)
    prunes = [f"prunesid-{budget}.prune.onnx" for budget in BUDGETS]
    assert sorted(loaded) == sorted(["vision.cls_attention.modern.onnx", "decoder_0.modern.onnx", *prunes])


def test_tokens_of_a_plan_outside_the_route_are_refused(calibrated: Path, photo: Path) -> None:
    visual = Pipeline.open(calibrated, "prunesid-8").encode(photo)
    pipeline = Pipeline.open(calibrated)
    assert pipeline.generate(visual, "x?", max_new_tokens=2).route is None
    with pytest.raises(UsageError, match="made with plan prunesid-8, this pipeline runs prunesid-16"):
        Pipeline.open(calibrated, "prunesid-16").generate(visual, "x?")


def test_calibrate_refuses(routed_copy: Path, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = open_bundle(routed_copy)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    for folder, message in (
        (tmp_path / "none", "none is not a folder"),
        (tmp_path / "empty", "empty holds no file"),
        (tmp_path / "texts", "none of the 1 files in .*texts can be read as an image"),
    ):
        with pytest.raises(InputError, match=message):
            calibrate(bundle, folder)
    with pytest.raises(UsageError, match=r"no route to calibrate; build one with .*--dynamic"):
        calibrate(open_bundle(tiny_bundle), photos)
    assert not (routed_copy / CALIBRATION_NAME).exists()


def test_an_interrupted_write_leaves_the_old_calibration(
    calibrated: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(calibrated, tmp_path / "b"))
    before = (folder / CALIBRATION_NAME).read_bytes()
    names = sorted(path.name for path in folder.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="cannot be written"):
        calibrate(open_bundle(folder), photos)
    assert (folder / CALIBRATION_NAME).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_calibration_of_something_else_is_not_used(
    calibrated: Path, photos: Path, photo: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(calibrated, tmp_path / "b"))
    path = folder / CALIBRATION_NAME
    whole = json.loads(path.read_text())
    for change, message in (
        ({"source_sha256": "0" * 64}, "another checkpoint or precision"),
        ({"schema_version": 2}, "schema_version 2, not 1"),
        ({"routes": 3}, "is not a calibration"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(BundleError, match=message):
            Pipeline.open(folder)
        assert calibrate(open_bundle(folder), photos).routes.keys() == {ROUTE}
    whole["routes"][ROUTE]["mean"] = 20  # of a route that aimed at something else
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="is not calibrated"):
        Pipeline.open(folder).encode(photo)


def test_adding_plans_keeps_the_route_and_its_calibration(
    calibrated: Path, tiny_checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(calibrated, tmp_path / "b"))
    chosen = Pipeline.open(folder).encode(photo).route
    build(str(tiny_checkpoint), folder, method="none")
    assert [route.name for route in open_bundle(folder).manifest.routes] == [ROUTE]
    with pytest.raises(UsageError, match=rf"several plans; name one of them .*none, {ROUTE}"):
        Pipeline.open(folder)
    assert Pipeline.open(folder, ROUTE).encode(photo).route == chosen

    notes: list[str] = []
    build(str(tiny_checkpoint), folder, keep=[8, 16], dynamic=True, mean=10, report=Report(note=notes.append))
    (route,) = open_bundle(folder).manifest.routes
    assert (route.plans, route.mean) == (["prunesid-8", "prunesid-16"], 10)
    assert any("its calibration goes; run `vtexport calibrate`" in note for note in notes)
    with pytest.raises(InputError, match="not calibrated"):
        Pipeline.open(folder, ROUTE)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"keep": 16}, "only 16; give several"),
        ({"keep": [8, 16], "mean": 17}, "--mean 17 is not between the budgets; give a number from 8 to 16"),
        ({"keep": [8, 16], "method": "svdprune"}, "--dynamic is not defined for svdprune .*--method prunesid"),
        ({"keep": [8, 16], "options": {"variant": "qwen"}}, "not defined for prunesid with these parameters"),
        ({"keep": [8, 16], "dynamic": False, "mean": 8}, "no meaning without --dynamic"),
    ],
)
def test_routes_that_cannot_be(request_: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        build(str(tiny_checkpoint), tmp_path / "b", **{"dynamic": True, **request_})
    assert not (tmp_path / "b").exists()


def test_a_routes_name_and_middle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"order": "raster"}
    bundle = build(str(tiny_checkpoint), tmp_path / "b", keep=[8, 40, 16, 20], options=options, dynamic=True)
    (route,) = bundle.manifest.routes
    assert (route.name, route.mean) == ("prunesid-dynamic-order-raster", 18)
    assert route.plans == [f"prunesid-{budget}-order-raster" for budget in (8, 16, 20, 40)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": ["prunesid-8", "prunesid-9"]}, "use the plan 'prunesid-9', which it does not have"),
        ({"plans": ["prunesid-16", "prunesid-8"]}, r"budgets \[16, 8\]"),
        ({"mean": 41}, "a mean of 41"),
        ({"name": "prunesid-8"}, "a plan and a route, of one name"),
    ],
)
def test_a_manifest_with_a_route_that_leads_nowhere(routed: Path, change: dict[str, Any], message: str) -> None:
    manifest = open_bundle(routed).manifest
    manifest.routes = [msgspec.structs.replace(manifest.routes[0], **change)]
    with pytest.raises(BundleError, match=message):
        schema.decode(schema.encode(manifest), "the manifest")


def test_progress_counts_every_file(routed_copy: Path, photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    calibrating.calibrate(open_bundle(routed_copy), photos, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(9)]
