"""Training `mini`: its arithmetic is that of transformers, it goes on where it stopped, and what it saves loads."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train_mini
from mini_training import batches, checkpoint, model, schedule, words
from mini_training.batches import GRID, Batch, Feeder, Layout, make_batch
from PIL import Image

from vtexport.eval.drawing import draw
from vtexport.eval.questions import TASKS
from vtexport.eval.scenes import HELD_OUT_SEED

STEPS = 4  # of a whole training
SMALL = Layout(pictures=2, side=8, max_shapes=2)
PHASES = (
    schedule.Phase("tower", 0.5, ((SMALL, 1.0),), 0, 1.0, (1.0, 0.5), 1.0),
    schedule.Phase("joint", 0.5, ((SMALL, 0.5), (Layout(1, 10, 3), 0.5)), 60, 0.5, (0.5, 0.0), 0.3),
)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations in float32 too."""
    monkeypatch.setattr(model, "PRECISION", torch.float32)


def lively(seed: int = 0) -> model.Mini:
    """A model in which every weight matters: as created, each layer would add nothing."""
    torch.manual_seed(seed)
    made = model.Mini()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name == "embedding":
                parameter.normal_(0, 0.1)
            elif parameter.dim() == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def read(trained: model.Mini, batch: Batch) -> torch.Tensor:
    """Logits [B, T, V] of packed turns."""
    with torch.no_grad():
        features, _, _ = trained.vision(batch.pixels, batch.origins, last=False)
        seen = trained.see(trained.project(features))
        return trained.logits(trained.read(batch.ids, batch.turn, batch.place, seen)[1])


def test_packed_turns_give_what_transformers_gives_one_by_one(tmp_path: Path, exact: None) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    trained = lively()
    checkpoint.export(trained, tmp_path)
    hub, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(tmp_path)
    checkpoint.load_hub(trained, tmp_path)  # rounded to float16, as the file is
    batch = make_batch(1, 7, Layout(1, GRID, 6), 100)
    logits = read(trained, batch)
    for picture, _, at, _ in batch.answers[::3]:
        own = batch.turn[picture] == batch.turn[picture, at]
        ids = batch.ids[picture][own].tolist()[: at - int(own.nonzero()[0])]
        text = "USER: <image>\n" + words.decode(ids)
        inputs = processor(images=Image.fromarray(batch.pixels[picture].numpy()), text=text, return_tensors="pt")
        assert inputs["input_ids"][0, -len(ids) :].tolist() == ids
        assert int((inputs["input_ids"] == 4).sum()) == GRID * GRID
        with torch.no_grad():
            expected = hub(**inputs).logits[0, -1]
        torch.testing.assert_close(logits[picture, at - 1], expected, atol=2e-4, rtol=1e-3)


def test_a_turn_does_not_see_the_others(exact: None) -> None:
    trained, batch = lively(), make_batch(1, 3, SMALL, 60)
    before = read(trained, batch)
    first, last = batch.turn == 1, batch.turn == batch.turn.max(1, keepdim=True).values
    batch.ids[first] = 40
    after = read(trained, batch)
    assert torch.equal(before[last], after[last])
    assert not torch.equal(before[first], after[first])


@pytest.mark.parametrize("side", [8, 14, 24])
def test_every_visual_token_is_seen(side: int, exact: None) -> None:
    batch, trained = make_batch(1, 0, Layout(1, side, 2), 40), lively()
    with torch.no_grad():
        features, _, _ = trained.vision(batch.pixels, batch.origins, last=False)
        seen = trained.see(trained.project(features))
    assert features.shape == (1, side * side, model.WIDTH)
    length = len(words.BEFORE_IMAGE) + side * side + len(words.AFTER_IMAGE)
    assert {keys.shape[2] for keys, _ in seen} == {length}
    assert batch.labels.shape == batch.ids.shape == (1, 40)


def test_batches_are_the_same_for_a_step_and_differ_between_steps() -> None:
    one, again, next_one = (make_batch(1, step, SMALL, 60) for step in (5, 5, 6))
    assert torch.equal(one.pixels, again.pixels)
    assert torch.equal(one.ids, again.ids)
    assert not torch.equal(one.pixels, next_one.pixels)


def test_training_never_reaches_the_held_out_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    real = random.Random
    monkeypatch.setattr(batches.random, "Random", lambda seed: seeds.append(seed) or real(seed))
    make_batch(255, 2**22 - 1, SMALL, 0)
    assert max(seeds) < HELD_OUT_SEED
    for seed, step in ((256, 0), (-1, 0), (1, 2**22)):
        with pytest.raises(ValueError, match="leave the seeds of training"):
            make_batch(seed, step, SMALL, 0)


def test_labels_of_patches_follow_the_items() -> None:
    drawing = draw(random.Random(1), 8 * 14, max_shapes=3, origin=(5 * 14, 3 * 14), frame=336)
    labels = batches.dense_labels(drawing, 8, (5, 3))
    for item in drawing.items:
        x, y = int(item.centre[0] * GRID) - 5, int(item.centre[1] * GRID) - 3
        patch = y * 8 + x
        assert labels["kind"][patch] == words.KINDS.index(item.name)
        assert labels["box"][patch].tolist() == words.steps_of(item.box)
        assert labels["covered"][patch]
        assert labels["centre"][patch] == (item.kind == "shape")
    assert labels["centre"].sum() == len(drawing.shapes)
    assert labels["presence"].sum() == len(drawing.items) + len(drawing.shapes) + len(
        {i.colour for i in drawing.shapes}
    )
    assert (labels["colour"][~labels["covered"]] == len(words.COLOUR_IDS)).all()


def test_answers_are_labelled_where_the_token_before_them_is_read() -> None:
    batch = make_batch(1, 2, Layout(8, 12, 4), 200)
    for picture, task, at, length in batch.answers:
        said = batch.ids[picture, at : at + length + 1].tolist()
        assert said == batch.labels[picture, at - 1 : at + length].tolist()
        assert said[-1] == words.END
        assert (length == 4) == (task == "grounding")
    assert int((batch.labels != words.IGNORED).sum()) == sum(length + 1 for _, _, _, length in batch.answers)
    assert {task for _, task, _, _ in batch.answers} <= set(batches.ASKED)
    assert set(TASKS) < set(batches.ASKED)


@pytest.mark.parametrize("groups", [1, 2])
def test_attention_and_its_derivative(groups: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 4 // groups, 7, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.zeros(2, 1, 1, 5, 7, dtype=torch.float64).masked_fill_(torch.rand(2, 1, 1, 5, 7) < 0.3, model.MASKED)
    whole = [y.repeat_interleave(groups, 1) for y in (k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(q, *whole, attn_mask=mask[:, 0])
    torch.testing.assert_close(model._Attention.apply(q, k, v, mask), expected)
    torch.autograd.gradcheck(lambda *a: model._Attention.apply(*a, mask), (q, k, v))


def test_derivatives_of_rotation_and_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.rand(5, 4, dtype=torch.float64)
    torch.autograd.gradcheck(lambda y: model._Rotation.apply(y, angles.cos(), angles.sin()), (x,))
    x = torch.randn(6, 16, requires_grad=True)
    weights = torch.randn(6, 16)
    (own,) = torch.autograd.grad((model.rms(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((torch.nn.functional.rms_norm(x, (16,), eps=model.EPSILON) * weights).sum(), x)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def train(output: Path, steps: int) -> tuple[train_mini.Trainer, list[dict[str, Any]]]:
    """Trains to `steps` steps in all, going on from what lies in `output`; the trainer and what it logged."""
    trainer, saved, lines = train_mini.Trainer(1), output / "checkpoint.pt", []
    if saved.exists():
        trainer.load(torch.load(saved, weights_only=True))
    clock = schedule.Steps(STEPS, trainer.step)
    ends = trainer.step + steps

    def stopping(
        phase: schedule.Phase, into: float, batch: Batch, real: Callable[..., Any] = trainer.train_step
    ) -> Any:
        figures = real(phase, into, batch)
        lines.append(figures)
        if trainer.step == ends:
            signal.raise_signal(signal.SIGTERM)
        return figures

    trainer.train_step = stopping  # type: ignore[method-assign]
    train_mini.train(trainer, clock, saved, lambda **figures: None, phases=PHASES, save_every=1e9)  # type: ignore[arg-type]
    return trainer, lines


@pytest.fixture(scope="module")
def trained_at_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[train_mini.Trainer, list[dict[str, Any]]]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the tests have it: sums depend on it
    made = train(tmp_path_factory.mktemp("whole"), STEPS)
    torch.set_num_threads(before)
    return made


@pytest.mark.parametrize("pause", [1, STEPS // 2, STEPS // 2 + 1])  # in a phase, between both, in the next
def test_stopped_training_goes_on_as_if_it_had_not_stopped(trained_at_once: Any, tmp_path: Path, pause: int) -> None:
    whole, losses = trained_at_once
    _, first = train(tmp_path / "parts", pause)
    parts, second = train(tmp_path / "parts", STEPS - pause)
    assert [figures["loss"] for figures in losses] == [figures["loss"] for figures in first + second]
    assert (whole.progress, whole.step, whole.pictures) == (parts.progress, parts.step, parts.pictures)
    assert whole.progress == 1
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_losses_fall_and_every_part_learns() -> None:
    trainer = train_mini.Trainer(1)
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    batch, losses = make_batch(1, 1, SMALL, 80), []
    for _ in range(6):
        losses.append(trainer.train_step(PHASES[1], 0.0, batch)["loss"])
    assert losses[-1] < 0.9 * losses[0]
    assert all(not torch.equal(start[name], parameter) for name, parameter in trainer.model.named_parameters())


def test_a_frozen_tower_stays_as_it_is() -> None:
    trainer = train_mini.Trainer(1)
    before = {name: p.detach().clone() for name, p in trainer.model.vision.named_parameters()}
    frozen = schedule.Phase("language", 1.0, ((SMALL, 1.0),), 60, 0.0, (1.0, 1.0), 0.1)
    trainer.train_step(frozen, 0.0, make_batch(1, 0, SMALL, 60))
    assert all(torch.equal(before[name], p) for name, p in trainer.model.vision.named_parameters())


def test_the_command_line_trains_exports_and_starts_from_what_it_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtexport.checkpoint.resolve import open_checkpoint

    monkeypatch.setattr(train_mini, "PHASES", PHASES)
    train_mini.main(["--steps", "2", "--output", str(tmp_path / "one"), "--threads", "1"])
    exported = tmp_path / "one" / "model"
    found = open_checkpoint(str(exported), notify=lambda line: None)
    assert (found.source.weights, found.config.text_config.vocab_size) == ("stored", words.SIZE)
    assert sum(file.stat().st_size for file in exported.iterdir()) < 12e6
    saved = (tmp_path / "one" / "checkpoint.pt").read_bytes()
    train_mini.main(["--export", "--output", str(tmp_path / "one")])
    assert (tmp_path / "one" / "checkpoint.pt").read_bytes() == saved
    train_mini.main(
        ["--steps", "1", "--output", str(tmp_path / "two"), "--start-from", str(exported), "--threads", "1"]
    )
    log = (tmp_path / "two" / "log.jsonl").read_text()
    assert '"end_of": "joint"' in log
    assert "tower" not in log
    with pytest.raises(SystemExit, match="there is no"):
        train_mini.main(["--export", "--output", str(tmp_path / "nothing")])


def test_a_checkpoint_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def failing(content: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"step": 2})
    assert torch.load(path) == {"step": 1}


def test_phases_take_their_shares() -> None:
    phases = schedule.PHASES
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert schedule.phase_at(0.0) == (0, 0.0)
    assert schedule.phase_at(1.0) == (len(phases) - 1, 1.0)
    assert schedule.phase_at(phases[0].share + 1e-9)[0] == 1
    assert phases[-1].rates[1] == 0
    assert {phase.layout(1, step).side for phase in phases for step in range(200)} >= {8, 9, 12, 13, 15, 19, GRID}


class Watch:
    """A clock of the day that a test sets."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


def test_a_deadline_is_met_although_the_process_was_stopped() -> None:
    watch, progress, seen = Watch(), 0.0, []
    clock = schedule.Deadline(1000.0 + 100, now=watch)
    for step in range(200):
        took = 31.0 if step == 20 else 1.0  # stopped for half a minute
        watch.time += took
        progress = schedule.advance(progress, clock, took)
        seen.append(progress)
        if progress == 1:
            break
    assert watch.time == pytest.approx(1100, abs=1.5)
    assert seen[9] == pytest.approx(0.1, abs=0.01)
    assert max(np.diff(seen)) < 0.1, "the pause itself took a part of the schedule"


def test_stopped_time_is_not_training_time() -> None:
    clock, progress, trained = schedule.Minutes(50.0), 0.0, 0.0
    for step in range(100):
        took = 600.0 if step == 10 else 1.0
        trained += 1
        progress = schedule.advance(progress, clock, took)
        if progress == 1:
            break
    assert 45 <= trained <= 50


def test_a_time_of_day_is_the_next_one() -> None:
    import datetime

    now = datetime.datetime.now(datetime.timezone.utc)
    for hours in (-2, 2):
        then = now + datetime.timedelta(hours=hours)
        assert 0 < train_mini.utc_time(f"{then:%H:%M}") - now.timestamp() <= 24 * 3600


def test_a_feeder_passes_errors_on() -> None:
    def make(step: int) -> Batch:
        if step == 1:
            raise ValueError("no such batch")
        return make_batch(1, step, SMALL, 0)

    feeder = Feeder(make, 0)
    coming = iter(feeder)
    assert torch.equal(next(coming).pixels, make_batch(1, 0, SMALL, 0).pixels)
    with pytest.raises(ValueError, match="no such batch"):
        next(coming)
    feeder.close()


def test_muon_steps_are_about_orthogonal() -> None:
    from mini_training.optimiser import orthogonal

    torch.manual_seed(0)
    for shape in ((3, 16, 64), (3, 64, 16)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert 0.5 < float(singular.min()) <= float(singular.max()) < 1.5
