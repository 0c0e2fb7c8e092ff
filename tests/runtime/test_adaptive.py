"""Adaptive plans: rho, the choice of a budget, what images set and its file, and all of it in a bundle."""

from __future__ import annotations

import dataclasses
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

from vtexport.build import BuildProgress, build
from vtexport.bundle import manifest as schema
from vtexport.bundle.adaptive import ADAPTIVE_NAME, read_adaptations
from vtexport.bundle.manifest_json import decode, encode
from vtexport.bundle.reader import Bundle, open_bundle
from vtexport.cli.main import main
from vtexport.errors import BundleError, InputError, UsageError
from vtexport.pruning import diagnostic_model, select
from vtexport.runtime import adapt as adapting
from vtexport.runtime.adapt import adapt
from vtexport.runtime.adaptive import fit, nearest_budget, redundancy
from vtexport.runtime.pipeline import Pipeline
from vtexport.runtime.reuse import Reuse

BUDGETS, ADAPTIVE = [8, 16, 40], "prunesid-dynamic"


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
def unset(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an adaptive plan that no images have set; tests must not change it."""
    target = tmp_path_factory.mktemp("unset") / "tiny"
    return build(str(tiny_checkpoint), target, keep=BUDGETS[::-1], dynamic=True).folder


@pytest.fixture
def unset_copy(unset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unset, tmp_path / "unset"))


@pytest.fixture(scope="module")
def adapted(unset: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(unset, tmp_path_factory.mktemp("adapted") / "tiny"))
    adapt(open_bundle(folder), photos)
    return folder


def adaptive_of(folder: Path) -> tuple[Bundle, schema.AdaptivePlan]:
    bundle = open_bundle(folder)
    return bundle, bundle.manifest.adaptive_plans[0]


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
def test_no_normaliser_comes_nearer_to_the_mean(unset: Path, rhos: list[float], mean: int) -> None:
    bundle, adaptive = adaptive_of(unset)
    found = fit(bundle, msgspec.structs.replace(adaptive, mean=mean), rhos)

    def mean_at(normaliser: float) -> float:
        return float(np.mean([nearest_budget(mean * max(0.0, 1 - rho) / normaliser, BUDGETS) for rho in rhos]))

    assert found.mean_budget == pytest.approx(mean_at(found.normaliser))
    assert sum(found.images_by_budget.values()) == found.images == len(rhos)
    tried = np.concatenate([np.geomspace(1e-3, 10, 400), [np.mean(1 - np.asarray(rhos))]])
    best = min(abs(mean_at(each) - mean) for each in tried if each > 0)
    assert abs(found.mean_budget - mean) <= best + 1e-9


def test_images_without_any_difference_teach_nothing(unset: Path) -> None:
    with pytest.raises(InputError, match="uniform"):
        fit(*adaptive_of(unset), [1.0, 1.0])


def test_a_plan_that_no_images_have_set_says_what_to_do(unset: Path, photo: Path, capsys: Any) -> None:
    for plan in ([], ["--plan", ADAPTIVE]):
        assert main(["run", str(unset), *plan, "--image", str(photo), "--prompt", "x"]) == 1
        shown = capsys.readouterr().err.strip()
        assert shown.startswith(f"vtexport: the adaptive plan {ADAPTIVE} of {unset} is not set by images yet")
        assert f"vtexport adapt {unset} --images FOLDER" in shown
    assert Pipeline.open(unset, "prunesid-8").encode(photo).keep_indices.shape == (8,)
    assert main(["inspect", str(unset)]) == 0
    assert "not set by images yet: vtexport adapt" in capsys.readouterr().out


def test_an_older_runtime_adapts_by_its_own_graphs(
    unset_copy: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    stage = adapting.VisionStage

    def seen(bundle: Any, graph: str, *given: Any) -> Any:
        loaded.append(graph)
        return stage(bundle, graph, *given)

    monkeypatch.setattr(adapting, "VisionStage", seen)
    newest = adapt(open_bundle(unset_copy), photos).redundancies
    monkeypatch.setattr("onnxruntime.__version__", "1.22.1")
    older = adapt(open_bundle(unset_copy), photos).redundancies
    assert [name.split(".")[-1] for name in loaded] == ["modern", "classic"]
    assert older == pytest.approx(newest, abs=1e-5)


def test_adapt_by_the_command_line(unset_copy: Path, photos: Path, capsys: Any) -> None:
    manifest = (unset_copy / "manifest.json").read_bytes()
    names = {path.name for path in unset_copy.iterdir()}
    assert main(["adapt", str(unset_copy), "--images", str(photos)]) == 0
    shown = capsys.readouterr()
    assert f"not counted: {photos / 'notes.txt'} is not an image" in shown.err
    assert "1 of 8 files were not counted" in shown.out
    assert re.search(r"over 7 images, asked for 16, with the normaliser \d\.\d{4}; with their mean 1 - rho", shown.out)
    assert (unset_copy / "manifest.json").read_bytes() == manifest
    assert {path.name for path in unset_copy.iterdir()} == names | {ADAPTIVE_NAME}
    assert open_bundle(unset_copy).verify() == []

    assert main(["adapt", str(unset_copy), "--images", str(photos), "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["redundancies"]) == 7
    assert list(told["unreadable"]) == [str(photos / "notes.txt")]
    assert told["adaptive_plans"][ADAPTIVE]["images"] == 7
    assert main(["inspect", str(unset_copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adaptive"] == told["adaptive_plans"]
    assert main(["inspect", str(unset_copy)]) == 0
    assert f"adaptive plan {ADAPTIVE}: each image to one of prunesid-8, prunesid-16, prunesid-40, mean 16" in (
        capsys.readouterr().out
    )


def test_each_image_gets_its_budget_and_the_answer_says_so(adapted: Path, photos: Path, capsys: Any) -> None:
    bundle, adaptive = adaptive_of(adapted)
    adaptation = read_adaptations(adapted, bundle.manifest)[ADAPTIVE]
    pipeline = Pipeline.open(adapted)  # the adaptive plan is over all others
    got = []
    for path in sorted(photos.rglob("[0-9].png")):
        visual = pipeline.encode(path)
        assert visual.route is not None
        wanted = adaptive.mean * (1 - visual.route.redundancy) / adaptation.normaliser
        assert visual.route.wanted == pytest.approx(wanted)
        assert visual.route.budget == nearest_budget(wanted, BUDGETS) == len(visual.keep_indices)
        assert visual.plan == f"prunesid-{visual.route.budget}"
        alone = Pipeline.open(adapted, visual.plan)
        np.testing.assert_array_equal(alone.encode(path).embeddings, visual.embeddings)
        answer = pipeline.generate(visual, "What is this?", max_new_tokens=4)
        assert (answer.route, answer.plan) == (visual.route, visual.plan)
        assert answer.token_ids == alone.generate(path, "What is this?", max_new_tokens=4).token_ids
        got.append(visual.route.budget)
    assert {str(budget): got.count(budget) for budget in BUDGETS} == adaptation.images_by_budget
    assert np.mean(got) == pytest.approx(adaptation.mean_budget)
    assert len(set(got)) > 1

    ask = ["run", str(adapted), "--image", str(photos / "0.png"), "--prompt", "x", "--max-new-tokens", "2"]
    assert main(ask) == 0
    assert f"{ADAPTIVE}: rho " in capsys.readouterr().err
    assert main([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["route"]) == {"route", "redundancy", "wanted", "budget"}
    assert told["visual_tokens"] == told["route"]["budget"]


def test_the_images_of_one_prompt_get_budgets_of_their_own(adapted: Path, photos: Path, capsys: Any) -> None:
    pipeline = Pipeline.open(adapted)
    paths = sorted(photos.rglob("[0-9].png"))
    seen = {path: pipeline.encode(path) for path in paths}
    by_budget = {len(visual.keep_indices): path for path, visual in seen.items()}
    chosen = list(by_budget.values())
    assert len(chosen) > 1, "the photographs have budgets that differ"
    answer = pipeline.generate(chosen, "What has changed?", max_new_tokens=4)
    assert [image.route for image in answer.images] == [seen[path].route for path in chosen]
    assert [image.plan for image in answer.images] == [f"prunesid-{budget}" for budget in by_budget]
    assert answer.visual_tokens == sum(by_budget)

    # The rows of each image, from a plan of its budget alone, in one prompt of the first's plan.
    alone = Pipeline.open(adapted, "prunesid-8")
    fixed = [Pipeline.open(adapted, seen[path].plan).encode(path) for path in chosen]
    as_one = [dataclasses.replace(visual, plan="prunesid-8") for visual in fixed]
    assert alone.generate(as_one, "What has changed?", max_new_tokens=4).token_ids == answer.token_ids

    ask = [
        "run",
        str(adapted),
        *[part for path in chosen for part in ("--image", str(path))],
        "--prompt",
        "x",
        "--json",
    ]
    assert main([*ask, "--max-new-tokens", "2"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [image["route"]["budget"] for image in told["images"]] == list(by_budget)


def test_the_shared_graphs_are_loaded_once(adapted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vtexport.backends.onnxruntime import backend

    loaded: list[str] = []

    class Counted(backend.OnnxRuntimeSession):
        def __init__(self, path: Path, device: str, threads: int | None, library: Path | None = None):
            loaded.append(path.name)
            super().__init__(path, device, threads, library)

    monkeypatch.setattr(backend, "OnnxRuntimeSession", Counted)
    Pipeline.open(adapted)
    prunes = [f"prunesid-{budget}.prune.onnx" for budget in BUDGETS]
    assert sorted(loaded) == sorted(["vision.cls_attention.modern.onnx", "decoder_0.modern.onnx", *prunes])


def test_a_frame_that_comes_again_keeps_its_budget(adapted: Path, photo: Path) -> None:
    with Pipeline.open(adapted, threads=1) as fresh, Pipeline.open(adapted, threads=1, reuse=Reuse()) as pipeline:
        for question in ("x?", "y?"):
            answer, expected = (each.generate(photo, question, max_new_tokens=4) for each in (pipeline, fresh))
            assert (answer.token_ids, answer.route, answer.plan) == (expected.token_ids, expected.route, expected.plan)
    assert answer.images[0].reused
    assert answer.reused_tokens > answer.visual_tokens


def test_tokens_of_a_plan_outside_the_adaptive_one_are_refused(adapted: Path, photo: Path) -> None:
    visual = Pipeline.open(adapted, "prunesid-8").encode(photo)
    pipeline = Pipeline.open(adapted)
    assert pipeline.generate(visual, "x?", max_new_tokens=2).route is None
    with pytest.raises(UsageError, match="made with plan prunesid-8, this pipeline runs prunesid-16"):
        Pipeline.open(adapted, "prunesid-16").generate(visual, "x?")


def test_adapt_refuses(unset_copy: Path, tiny_bundle: Path, photos: Path, tmp_path: Path) -> None:
    bundle = open_bundle(unset_copy)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    for folder, message in (
        (tmp_path / "none", "none is not a folder"),
        (tmp_path / "empty", "empty holds no file"),
        (tmp_path / "texts", "none of the 1 files in .*texts can be read as an image"),
    ):
        with pytest.raises(InputError, match=message):
            adapt(bundle, folder)
    with pytest.raises(UsageError, match=r"no adaptive plan to set; build one with .*--dynamic"):
        adapt(open_bundle(tiny_bundle), photos)
    assert not (unset_copy / ADAPTIVE_NAME).exists()


def test_an_interrupted_write_leaves_the_old_file(
    adapted: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(adapted, tmp_path / "b"))
    before = (folder / ADAPTIVE_NAME).read_bytes()
    names = sorted(path.name for path in folder.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="cannot be written"):
        adapt(open_bundle(folder), photos)
    assert (folder / ADAPTIVE_NAME).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_file_of_something_else_is_not_used(adapted: Path, photos: Path, photo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapted, tmp_path / "b"))
    path = folder / ADAPTIVE_NAME
    whole = json.loads(path.read_text())
    for change, message in (
        ({"source_sha256": "0" * 64}, "another checkpoint or precision"),
        ({"schema_version": 1}, "schema_version 1, not 2"),
        ({"adaptations": 3}, "sets no adaptive plans"),
    ):
        path.write_text(json.dumps({**whole, **change}))
        with pytest.raises(BundleError, match=message):
            Pipeline.open(folder)
        assert adapt(open_bundle(folder), photos).adaptations.keys() == {ADAPTIVE}
    whole["adaptations"][ADAPTIVE]["mean"] = 20  # of a plan that aimed at something else
    path.write_text(json.dumps(whole))
    with pytest.raises(InputError, match="is not set by images yet"):
        Pipeline.open(folder).encode(photo)


def test_the_verbs_former_name(capsys: Any) -> None:
    assert main(["calibrate", "b", "--images", "photos"]) == 2
    shown = capsys.readouterr().err
    assert shown == "vtexport: `vtexport calibrate` is called `vtexport adapt` now; give that the same arguments\n"


def test_adding_plans_keeps_the_adaptive_one_and_what_images_set(
    adapted: Path, tiny_checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapted, tmp_path / "b"))
    chosen = Pipeline.open(folder).encode(photo).route
    build(str(tiny_checkpoint), folder, method="none")
    assert [each.name for each in open_bundle(folder).manifest.adaptive_plans] == [ADAPTIVE]
    with pytest.raises(UsageError, match=rf"several plans; name one of them .*none, {ADAPTIVE}"):
        Pipeline.open(folder)
    assert Pipeline.open(folder, ADAPTIVE).encode(photo).route == chosen

    notes: list[str] = []
    build(str(tiny_checkpoint), folder, keep=[8, 16], dynamic=True, mean=10, report=BuildProgress(note=notes.append))
    (adaptive,) = open_bundle(folder).manifest.adaptive_plans
    assert (adaptive.plans, adaptive.mean) == (["prunesid-8", "prunesid-16"], 10)
    assert any("what images had set goes; run `vtexport adapt`" in note for note in notes)
    with pytest.raises(InputError, match="not set by images"):
        Pipeline.open(folder, ADAPTIVE)


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
def test_adaptive_plans_that_cannot_be(
    request_: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        build(str(tiny_checkpoint), tmp_path / "b", **{"dynamic": True, **request_})
    assert not (tmp_path / "b").exists()


def test_an_adaptive_plans_name_and_middle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    options = {"order": "raster"}
    bundle = build(str(tiny_checkpoint), tmp_path / "b", keep=[8, 40, 16, 20], options=options, dynamic=True)
    (adaptive,) = bundle.manifest.adaptive_plans
    assert (adaptive.name, adaptive.mean) == ("prunesid-dynamic-order-raster", 18)
    assert adaptive.plans == [f"prunesid-{budget}-order-raster" for budget in (8, 16, 20, 40)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": ["prunesid-8", "prunesid-9"]}, "use the plan 'prunesid-9', which it does not have"),
        ({"plans": ["prunesid-16", "prunesid-8"]}, r"budgets \[16, 8\]"),
        ({"mean": 41}, "a mean of 41"),
        ({"name": "prunesid-8"}, "a plan and an adaptive plan, of one name"),
    ],
)
def test_a_manifest_with_an_adaptive_plan_that_leads_nowhere(unset: Path, change: dict[str, Any], message: str) -> None:
    manifest = open_bundle(unset).manifest
    manifest.adaptive_plans = [msgspec.structs.replace(manifest.adaptive_plans[0], **change)]
    with pytest.raises(BundleError, match=message):
        decode(encode(manifest), "the manifest")


def test_progress_counts_every_file(unset_copy: Path, photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    adapting.adapt(open_bundle(unset_copy), photos, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(9)]
