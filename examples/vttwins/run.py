"""A run: everything from its settings to its files, and the loop; what is learned is a ``Task``.

Requirements: torch, tqdm; safetensors for the final weights; tensorboard if wanted.

Whatever ends a run, save SIGKILL and an unwritable disk, the last whole step is saved. The same
command goes on from there, to the losses of a run that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from examples.vttwins import checkpoint, config, distributed, loading, stopping, weights
from examples.vttwins.config import Settings
from examples.vttwins.distributed import Place
from examples.vttwins.loading import LoadingError
from examples.vttwins.logs import Logs
from examples.vttwins.steps import NotFinite, Stepper, learning_rate
from examples.vttwins.stopping import Stopped, StopRequest
from examples.vttwins.task import Task
from examples.vttwins.words import Vocabulary

S = TypeVar("S", bound=Settings)


class Run:
    """A training run.

    Args:
        task: what is learned.
        place: of this process.
        restart: delete the files of the run in the settings' folder first, once all is checked.

    Raises:
        SystemExit: a sentence about a file or setting that does not fit. The folder is then as it
            was.
    """

    def __init__(self, task: Task, place: Place, restart: bool = False) -> None:
        self.task, self.settings, self.place = task, task.settings, place
        settings = self.settings
        self.out = Path(settings.out)
        batches = settings.epochs * (task.items // settings.batch)
        self.steps = settings.steps or max(batches // settings.accumulate, 1)
        self.step = self.skipped = 0
        self._saved_step: int | None = None  # of the last checkpoint on disk
        self.files: dict[str, str] = {}
        saved = None
        with distributed.agreed():
            self._batches(0)  # refuses a batch that cannot be made
            if place.first:
                weights.check_export()
                self._refuse_own_files()
                self.files = task.digests()
                saved = self._continued(restart)
                vocabulary = self._vocabulary(saved)
                self.model, self.vocabulary = task.model(vocabulary)
                dataset = task.dataset(self.vocabulary)  # may refuse the list of videos
                self.files[weights.WORDS] = self.vocabulary.digest
                if restart:
                    checkpoint.remove_run(self.out)
                self._write_start()
        with distributed.agreed():
            if not place.first:
                if not (self.out / checkpoint.SETTINGS).exists():
                    raise SystemExit(f"--out {self.out} must be a folder that all nodes share")
                saved = checkpoint.load_checkpoint(self.out)
                words = None if settings.word_vectors else self._vocabulary_file
                vocabulary = Vocabulary.load(words) if words else None
                self.model, self.vocabulary = task.model(vocabulary)
                dataset = task.dataset(self.vocabulary)
        self.model.words_digest = self.vocabulary.digest
        self.model.to(place.device)
        # torch's types do not know this overload.
        self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(task.groups(self.model), lr=settings.learning_rate)
        if saved is not None:
            scales = [group.get("scale", 1.0) for group in self.optimizer.param_groups]
            self.model.load_state_dict(saved["state_dict"])
            self.optimizer.load_state_dict(saved["optimizer"])
            for group, scale in zip(self.optimizer.param_groups, scales, strict=True):
                group["scale"] = scale
            self.step, self.skipped = saved["step"], saved["skipped"]
            self._saved_step = self.step
        self.planned = saved.get("steps", self.steps) if saved else self.steps
        self.loader = loading.loader(
            dataset, self._batches(self.step), settings.workers,
            pin=place.device.type == "cuda", timeout=settings.timeout,
        )  # fmt: skip
        self.stepper = Stepper(
            self.model, self._network(), self.optimizer,
            lambda network, batch, number: task.loss(network, batch, number, place),
            settings, place,
        )  # fmt: skip
        self.stepper.bad = saved.get("bad", 0) if saved else 0
        self._stop = StopRequest(busy=lambda: self.stepper.updating)

    @property
    def _vocabulary_file(self) -> Path:
        return self.out / "vocabulary.json"

    def _batches(self, start: int) -> loading.StepBatches:
        settings, place = self.settings, self.place
        return loading.StepBatches(
            self.task.items, settings.batch, self.steps * settings.accumulate,
            start * settings.accumulate, settings.seed, place.rank, place.world,
        )  # fmt: skip

    def _network(self) -> nn.Module:
        network: nn.Module = self.model
        if self.settings.compile:
            # A module makes a module, which torch's types do not say.
            network = torch.compile(network)  # type: ignore[assignment]
        if self.place.world > 1:
            cuda = self.place.device.type == "cuda"
            # Buffers are per-rank statistics, as released; rank 0's are the ones saved.
            with warnings.catch_warnings():  # torch 2.13 wants another name, which 2.6 lacks
                warnings.simplefilter("ignore", FutureWarning)
                network = DistributedDataParallel(
                    network,
                    device_ids=[self.place.device.index] if cuda else None,
                    broadcast_buffers=False,
                )
        return network

    def _refuse_own_files(self) -> None:
        """Refuse to begin with files that this run would delete or write over."""
        for name in config.FILE_FIELDS:
            value = getattr(self.settings, name, "")
            if not value or name == "train_csv":  # which is named from the data folder
                continue
            path = Path(value)
            if path.is_dir():
                own = path.resolve() == self.out.resolve()
            else:
                own = checkpoint.written_by_run(path, self.out)
            if own:
                raise SystemExit(
                    f"--{name.replace('_', '-')} {value} is of the run in --out {self.out}, which "
                    "would be lost; give another --out"
                )

    def _continued(self, restart: bool) -> dict[str, Any] | None:
        """The checkpoint to go on from, if there is one; refuses a folder that is no run's."""
        former = checkpoint.settings_of(self.out)
        if restart:
            if former is None:
                checkpoint.remove_run(self.out)  # refuses a folder of other files
            return None
        saved = checkpoint.load_checkpoint(self.out)
        if saved is None:
            checkpoint.refuse_to_lose(self.out)
            return None
        changed = config.differences(
            saved["settings"], self.settings, saved.get("files", {}), self.files
        )
        if changed:
            raise SystemExit(
                f"{self.out} holds a run with other settings ({'; '.join(changed)}). "
                "Give another --out, or --restart to begin anew."
            )
        if self.steps < saved["step"]:
            raise SystemExit(
                f"{self.out} holds a run of {saved['step']} steps, more than the {self.steps} that "
                "--steps or --epochs ask for. Give more of them, another --out, or --restart."
            )
        self.task.going_on(self.out, saved["step"])
        return saved

    def _vocabulary(self, saved: dict[str, Any] | None) -> Vocabulary | None:
        if self.settings.word_vectors:
            return None
        if saved is None:
            return self.task.vocabulary()
        vocabulary = Vocabulary.load(self._vocabulary_file)
        rows = len(saved["state_dict"]["text_module.word_embd.weight"])
        known = saved.get("files", {}).get(weights.WORDS)  # an older run did not note it
        try:
            weights.compare_words(vocabulary, self._vocabulary_file, rows, known, self.out)
        except weights.WeightsError as error:
            raise SystemExit(
                f"{error}. Put its own back, or give --restart to begin anew."
            ) from None
        return vocabulary

    def _write_start(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        checkpoint.remove_leftovers(self.out)
        self.vocabulary.save(self._vocabulary_file)
        text = json.dumps(dataclasses.asdict(self.settings), indent=1)
        checkpoint.write_text(self.out / checkpoint.SETTINGS, text)

    def announce(self) -> None:
        """Say where the run stands, and what its owner may not expect."""
        step, steps, settings = self.step, self.steps, self.settings
        if step:
            done = " (finished; more --steps or --epochs go on, --restart begins anew)"
            done = done if step == steps else ""
            print(f"{self.out}: going on from step {step} of {steps}{done}")
        if self.planned != steps:
            rates = [learning_rate(step, count, settings) for count in (self.planned, steps)]
            print(
                f"The run was to have {self.planned} steps and now has {steps}: from here on the "
                f"learning rate is that of a run of {steps} steps, {rates[1]:.2e} instead of "
                f"{rates[0]:.2e}."
            )
        warmup = settings.warmup_of(steps)
        if warmup >= steps:
            print(
                f"The warm-up of {warmup} steps is not over at the end, step {steps}: "
                "--learning-rate is never reached. See --warmup."
            )

    def save(self) -> None:
        """Write a checkpoint, on the first rank; no signal breaks that off."""
        with self._stop.holding():
            if self.place.first:
                self._write_checkpoint()
            self._saved_step = self.step  # only now is it true

    def _write_checkpoint(self) -> None:
        # The weights of a former end; first, so that those that are there are of one step.
        (self.out / checkpoint.WEIGHTS).unlink(missing_ok=True)
        content = {
            "step": self.step,
            "steps": self.steps,
            "skipped": self.skipped,
            "bad": self.stepper.bad,
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "settings": dataclasses.asdict(self.settings),
            "files": self.files,
        }
        keep = self.settings.keep_every
        checkpoint.save_checkpoint(self.out, content, bool(keep) and self.step % keep == 0)

    def _rescue(self) -> None:
        """Save the last whole step, after whatever ended the one under way."""
        if self.stepper.updating or self._saved_step == self.step:
            return
        try:
            self.stepper.undo()
            self.save()
        except Exception as error:  # what ended the run is what is to be told
            print(f"the last whole step could not be saved: {error!r}")

    @property
    def saved(self) -> str:
        """What there is on disk of the steps that were taken."""
        at, out = f"step {self.step} of {self.steps}", self.settings.out
        if self._saved_step == self.step:
            return f"saved at {at} in {out}"
        if self._saved_step is None:
            return f"{at} is not saved; there is no checkpoint in {out}"
        return f"{at} is not saved; the last checkpoint in {out} is of step {self._saved_step}"

    def train(self) -> int:
        """Train to the end, or until a signal; returns the signal's number, 0 at the end.

        Raises:
            loading.LoadingError, steps.NotFinite: the run cannot go on; it is saved.
        """
        with self._stop as stop, ExitStack() as workers:
            try:
                if self.place.first:
                    with self._waiting(stop):
                        self.task.started(self)
                self._loop(stop, workers.enter_context(loading.stream(self.loader)))
                stop.hold()
            except BaseException as error:
                stop.hold()
                self._rescue()
                if not isinstance(error, Stopped):
                    if self.place.first and self._saved_step != self.step:
                        print(self.saved)
                    raise
        if not stop.number and self.stepper.bad_in_a_row > 1:
            raise self.stepper.not_finite(self.step - 1)  # no end that deserves the name
        return stop.number

    def finish(self) -> int:
        """Write the weights of the end and let the task finish, on the first rank.

        Returns the number of a signal that broke this off, else 0. The same command does it again.
        """
        if not self.place.first:
            return 0
        with StopRequest() as stop:
            try:
                with stop.holding():
                    weights.export_safetensors(self.model, self.out / checkpoint.WEIGHTS)
                with stop.waiting():  # the other ranks have nothing left to do
                    self.task.finished(self)
            except Stopped:
                pass
        return stop.number

    def _waiting(self, stop: StopRequest) -> AbstractContextManager[None]:
        """A block that a signal breaks off at once; several ranks stop together, after a step."""
        return stop.waiting() if self.place.world == 1 else nullcontext()

    def _loop(self, stop: StopRequest, stream: Any) -> None:
        settings, first = self.settings, self.place.first
        samples = settings.batch * settings.accumulate
        logs = Logs(self.out, self.step, self.place, settings)
        bar = tqdm(
            total=self.steps, initial=self.step, disable=not first, mininterval=1, unit="step"
        )
        agreed = 0
        with logs, bar:
            self._evaluate(logs, stop)  # if an interruption left it out
            while self.step < self.steps and not agreed:
                began = time.perf_counter()
                with self._waiting(stop):
                    batches = [next(stream) for _ in range(settings.accumulate)]
                waited = time.perf_counter() - began
                self.task.train_mode(self.stepper.network)
                rate = learning_rate(self.step, self.steps, settings)
                entry = {"step": self.step, **self.stepper(self.step, rate, batches)}
                seconds = time.perf_counter() - began
                self.step += 1
                self.skipped += int(entry["skipped"])
                entry |= {
                    "seconds": seconds,
                    "wait_seconds": waited,
                    "decode_seconds": sum(b["decode_seconds"] for b in batches),
                    "clips_per_second": samples * self.task.clips / seconds,
                    "skipped": self.skipped,
                    "bad_steps": self.stepper.bad,
                }
                try:
                    logs.write(entry, [pair for batch in batches for pair in batch["skipped"]])
                finally:  # weights and step agree, whatever befalls the logs
                    self.stepper.updating = False
                bar.update()
                bar.set_postfix(loss=f"{entry['loss']:.3f}", skipped=self.skipped, refresh=False)
                # Not the number itself, which may change at any time, on this rank alone.
                agreed = int(distributed.max_over_ranks(stop.number, self.place.device))
                stop.number = agreed or stop.number
                done = agreed or self.step == self.steps
                if not agreed:
                    self._evaluate(logs, stop)
                if done or self.step % settings.save_every == 0 or self._kept():
                    self.save()

    def _evaluate(self, logs: Logs, stop: StopRequest) -> None:
        """Evaluate on the first rank, if that is due after this step and was not done before."""
        every = self.settings.eval_every
        due = every and self.step and self.step % every == 0
        if self.place.first and due and self.step not in logs.evaluated_steps:
            with self._waiting(stop):
                logs.evaluated(self.step, self.task.evaluate(self.model, self.vocabulary))

    def _kept(self) -> bool:
        return self.settings.keep_every > 0 and self.step % self.settings.keep_every == 0


def run_task(make: Callable[[S], Task], settings: S, restart: bool) -> None:
    """A run of the task ``make(settings)``, on this process and those that torchrun started.

    Raises:
        SystemExit: unless the run reached its end.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    place = distributed.start(settings.device or None)
    with stopping.ending(place):
        with distributed.agreed():
            task: Task = make(settings)
        run = Run(task, place, restart)
        if place.first:
            run.announce()
        try:
            number = run.train()
            if run.stepper.bad and place.first:
                print(f"{run.stepper.bad} of {run.step} steps were skipped: no finite gradient")
            number = number or run.finish()
        except (LoadingError, NotFinite, OSError) as error:  # OSError: a full disk, most likely
            raise SystemExit(f"{type(error).__name__}: {error}") from error
        if number:
            name = signal.Signals(number).name
            if place.first:
                print(f"{name}: {run.saved}")
            sys.exit(128 + number)
        distributed.stop()
