"""Trains the packaged model `mini` from scratch on scenes that the project renders itself.

    python tools/train_mini.py --minutes 90                # a budget of training time
    python tools/train_mini.py --until 19:45               # up to a time of day (UTC)
    python tools/train_mini.py --minutes 30 --start-from vtexport/checkpoint/packaged/mini   # go on from its weights

Started again, it goes on where its last checkpoint was. When it ends the model lies in OUTPUT/model, in the layout of
Hugging Face's LLaVA; `--export` writes the last checkpoint's there at any time. docs/mini.md says how the packaged
weights were made.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from mini_training import checkpoint
from mini_training.batches import Feeder, make_batch
from mini_training.losses import text_losses, vision_losses
from mini_training.model import Mini
from mini_training.optimiser import Optimiser
from mini_training.schedule import PHASES, Clock, Deadline, Minutes, Phase, Steps, advance, phase_at

MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARM_STEPS = 10  # at the begin of each phase the learning rate rises
SMOOTHING = 0.98
LOG_SECONDS = 30.0


class Trainer:
    """Model, optimiser and how far they are: all that a checkpoint holds."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        self.model = Mini()
        self.optimiser = Optimiser(self.model, muon_rate=MUON_RATE, adam_rate=ADAM_RATE)
        self.seed, self.step, self.progress, self.seconds, self.pictures = seed, 0, 0.0, 0.0, 0
        self.phase_step = 0
        self.averages: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        counts = ("seed", "step", "progress", "seconds", "pictures", "phase_step", "averages")
        return {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state(),
            "counts": {name: getattr(self, name) for name in counts},
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimiser.load(state["optimiser"])
        for name, value in state["counts"].items():
            setattr(self, name, value)

    def rate(self, phase: Phase, into: float) -> float:
        begin, end = phase.rates
        return min(1.0, (self.phase_step + 1) / WARM_STEPS) * (begin + (end - begin) * into)

    def train_step(self, phase: Phase, into: float, batch: Any) -> dict[str, float]:
        """One step on one batch; its figures."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(phase.vision > 0):
                features, cls, last = self.model.vision(batch.pixels, batch.origins, last=phase.vision > 0)
            visual = self.model.project(features)
            loss, figures = vision_losses(self.model, visual, cls, last, batch)
            loss = loss * phase.dense_weight
            if phase.room:
                text, text_figures, right = text_losses(self.model, visual, batch)
                loss, figures = loss + text, {**figures, **text_figures}
                figures |= {f"right_{task}": good / number for task, (good, number) in right.items()}
        loss.backward()
        self.optimiser.step(self.rate(phase, into), phase.vision)
        self.step += 1
        self.phase_step += 1
        self.pictures += len(batch.pixels)
        for name, value in figures.items():
            self.averages[name] = SMOOTHING * self.averages.get(name, value) + (1 - SMOOTHING) * value
        return {**figures, "loss": float(loss.detach())}


class Log:
    """Figures on stdout and in a file of JSON lines."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def __call__(self, **figures: Any) -> None:
        line = json.dumps({name: round(x, 4) if isinstance(x, float) else x for name, x in figures.items()})
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def train(
    trainer: Trainer, clock: Clock, save_to: Path, log: Log, *, phases: tuple[Phase, ...], save_every: float
) -> None:
    """Trains to the clock's end, with a checkpoint every `save_every` seconds, at SIGTERM and at the end."""
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    try:
        while trainer.progress < 1 and not ended:
            number, _ = phase_at(trainer.progress, phases)
            _train_phase(trainer, clock, save_to, log, phases, number, save_every, ended)
            checkpoint.save(save_to, trainer.state())
    finally:
        signal.signal(signal.SIGTERM, before)


def _train_phase(
    trainer: Trainer,
    clock: Clock,
    save_to: Path,
    log: Log,
    phases: tuple[Phase, ...],
    number: int,
    save_every: float,
    ended: list[int],
) -> None:
    phase = phases[number]
    feeder = Feeder(
        lambda step: make_batch(trainer.seed, step, phase.layout(trainer.seed, step), phase.room, phase.weights),
        trainer.step,
    )
    saved = logged = last = time.monotonic()
    seen: dict[str, int] = defaultdict(int)
    try:
        for batch in feeder:
            at, into = phase_at(trainer.progress, phases)
            if at != number or trainer.progress >= 1 or ended:
                break
            trainer.train_step(phase, into, batch)
            now = time.monotonic()
            trainer.progress = advance(trainer.progress, clock, now - last)
            trainer.seconds += now - last
            last = now
            seen["steps"] += 1
            seen["pictures"] += len(batch.pixels)
            if now - logged >= LOG_SECONDS:
                log(
                    phase=phase.name,
                    progress=trainer.progress,
                    minutes=trainer.seconds / 60,
                    step=trainer.step,
                    rate=trainer.rate(phase, into),
                    steps_s=seen["steps"] / (now - logged),
                    pictures_s=seen["pictures"] / (now - logged),
                    **trainer.averages,
                )
                logged, seen = now, defaultdict(int)
            if now - saved >= save_every:
                checkpoint.save(save_to, trainer.state())
                saved = now
    finally:
        feeder.close()
    if at != number:
        trainer.phase_step = 0
    log(end_of=phase.name, progress=trainer.progress, minutes=trainer.seconds / 60, step=trainer.step,
        pictures=trainer.pictures, **trainer.averages)  # fmt: skip


def utc_time(text: str) -> float:
    """Seconds since the epoch of the next time that it is HH:MM (UTC)."""
    hour, minute = map(int, text.split(":"))
    now = datetime.datetime.now(datetime.timezone.utc)
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (end if end > now else end + datetime.timedelta(days=1)).timestamp()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ends = parser.add_mutually_exclusive_group(required=True)
    ends.add_argument("--minutes", type=float, help="training time in all, earlier runs with this OUTPUT included")
    ends.add_argument("--until", type=utc_time, metavar="HH:MM", help="end at this time of day, UTC")
    ends.add_argument("--steps", type=int, help="steps in all: the same result again on the same machine")
    ends.add_argument("--export", action="store_true", help="only write the last checkpoint's model")
    parser.add_argument("--output", type=Path, default=Path("build/mini"), help="folder (%(default)s)")
    parser.add_argument("--start-from", type=Path, metavar="FOLDER", help="a trained model; skips to the last phase")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=180.0, metavar="SECONDS")
    chosen = parser.parse_args(arguments)

    torch.set_num_threads(chosen.threads)
    trainer, saved = Trainer(chosen.seed), chosen.output / "checkpoint.pt"
    if saved.exists():
        trainer.load(torch.load(saved, weights_only=True))
    elif chosen.start_from:
        checkpoint.load_hub(trainer.model, chosen.start_from)
    elif chosen.export:
        sys.exit(f"there is no {saved} to export")
    if not chosen.export:
        log = Log(chosen.output / "log.jsonl")
        clock: Clock
        if chosen.steps is not None:
            clock = Steps(chosen.steps, trainer.step)
        elif chosen.minutes is not None:
            clock = Minutes(chosen.minutes * 60 - trainer.seconds)
        else:
            clock = Deadline(chosen.until)
        log(start={k: str(v) for k, v in vars(chosen).items()}, step=trainer.step, progress=trainer.progress)
        phases = PHASES[-1:] if chosen.start_from else PHASES
        train(trainer, clock, saved, log, phases=phases, save_every=chosen.save_every)
    checkpoint.export(trainer.model, chosen.output / "model")


if __name__ == "__main__":
    main(sys.argv[1:])
