"""Recording a training run through hooks of its optimizer."""

import numbers
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pylandscape._checks import require, show
from pylandscape.parameters import unwrap
from pylandscape.trajectory import folder
from pylandscape.trajectory.deltas import Base
from pylandscape.trajectory.log import MEASURED, LogWriter, Row, read_rows
from pylandscape.trajectory.schedule import Schedule, schedule_of
from pylandscape.trajectory.snapshots import Snapshot, named_tensors, write_snapshot

OWN_NAMES = {"step", "epoch", *MEASURED} - {"loss"}


class Recorder:
    """Records parameter snapshots and a log while a model trains, in any training loop.

    After `attach`, every `optimizer.step()` adds a row to the log: step, epoch, gradient norm,
    learning rate, wall time, and what `log` was given for that step. Snapshots of parameters and
    buffers are taken at attachment, as `every` says, and at the end. The model, its gradients and
    the random state are never changed.

    Row t and the snapshot of step t both belong to the parameters after t steps: `loss` and
    `grad_norm` of row t are taken before step t + 1 is made. The gradient norm is the l2 norm over
    all parameters of the model that the optimizer holds, as the optimizer gets them: after
    clipping, and without the factor of a gradient scaler. The norm before clipping is what the
    clipping returns: `recorder.log(grad_norm_unclipped=clip_grad_norm_(...))`. A step that a
    scaler skips leaves no row, or with a fused optimizer, which is called and skips it by itself,
    one with a norm that is not finite.

    The run is written to `directory`: `log.jsonl`, a line per step, and
    `snapshots/step-*.safetensors`, each of which appears whole or not at all. A killed run loses
    the line or the snapshot that is being written (with values on an accelerator, whose reading
    would stall it, up to 64 lines since the last snapshot). Under torch.distributed rank 0 writes.

    Args:
        directory: folder of the run, made if it is missing.
        every: when to take snapshots: n for every n steps; `"epoch"` for every call of `end_epoch`;
            `"early"` for every step up to 64 and then 32 snapshots per doubling, evenly spaced
            between powers of two, so that the fast beginning is dense and a long run costs little;
            a function step -> bool or a collection of steps for any other schedule.
        compress: store parameters and floating-point buffers as their difference to the snapshot
            before, rounded to bfloat16, which takes half the space of float32. The error of an
            element is at most 2^-8 of its change since the snapshot before and does not add up;
            it is measured in every file (`Trajectory.errors`). Every 16th snapshot and that of
            `detach` are exact. Costs a copy of the model in main memory.
        resume: continue a run that is already there (or start one). `attach` then goes on after the
            last snapshot, whose values the model must have
            (`Trajectory(directory).load_into(model, -1)`), and drops log rows from there on.
            Optimizer state is not recorded: restore it from your own checkpoint, and name its step
            in `attach`.
        overwrite: `attach` deletes a run that is already there (only files that a Recorder wrote).

    Attributes:
        step: steps made so far.
        epoch: calls of `end_epoch` so far; set it after `attach` to resume within an epoch.
        resume: as given.

    Raises:
        ValueError: a run is already there and neither `resume` nor `overwrite` is given, the folder
            cannot be written to, or `every` is no schedule.

    Example:
        >>> import tempfile, torch, pylandscape as pl
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> folder = tempfile.TemporaryDirectory()
        >>> with pl.Recorder(folder.name, every=5).attach(model, optimizer) as recorder:
        ...     for _ in range(12):
        ...         loss = model(torch.ones(4, 2)).square().mean()
        ...         optimizer.zero_grad()
        ...         loss.backward()
        ...         recorder.log(loss=loss)  # before the step that it belongs to
        ...         optimizer.step()
        >>> pl.Trajectory(folder.name).steps
        [0, 5, 10, 12]

        With epochs, and gradients that are clipped by hand:

        >>> recorder = pl.Recorder(folder.name, every="epoch", overwrite=True)
        >>> _ = recorder.attach(model, optimizer)
        >>> for _ in range(2):
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(4, 2)).square().mean().backward()
        ...         recorder.log(grad_norm_unclipped=recorder.gradient_norm(optimizer))
        ...         torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
        ...         optimizer.step()
        ...     recorder.end_epoch()
        >>> recorder.snapshot()  # a further one, where the last step has none
        >>> recorder.detach()
        >>> path = pl.Trajectory(folder.name)
        >>> path.steps, bool((path.log.grad_norm <= path.log.grad_norm_unclipped).all())
        ([0, 3, 6], True)
        >>> folder.cleanup()
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: Schedule = 1,
        *,
        compress: bool = False,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        require(
            not (resume and overwrite),
            "Recorder: resume and overwrite must not both be True, got both. Choose one.",
        )
        self.directory = Path(directory)
        self.step = 0
        self.epoch = 0
        self._by_epoch = isinstance(every, str) and every == "epoch"
        self._due = schedule_of(every)
        self.resume = resume
        self._writer = _is_writer()
        self._model: nn.Module | None = None
        self._used = False
        self._stepping = False
        self._last_snapshot: int | None = None
        self._compress = compress
        self._base: Base | None = None  # of the next compressed snapshot
        self._scalars: dict[str, float | Tensor] = {}
        if self._writer:
            folder.prepare(self.directory, allow_run=resume or overwrite)

    # -- what a training loop calls --------------------------------------------------------------

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int | None = None
    ) -> "Recorder":
        """Starts recording: hooks into `optimizer` and takes the first snapshot.

        Args:
            model: wrappers of DistributedDataParallel and torch.compile are looked through.
            optimizer: must hold parameters of `model`.
            step: with `resume`, the number of steps the model has behind it; snapshots after it are
                dropped. By default that of the last snapshot.

        Returns:
            The recorder, so that `with Recorder(...).attach(...) as recorder:` reads well.

        Raises:
            ValueError: already attached, nothing in common between model and optimizer, or a model
                that is not the one to resume.
        """
        require(
            not self._used,
            "Recorder.attach: a recorder must be attached once, got a second call. Use one "
            "Recorder and folder per run.",
        )
        require(
            isinstance(model, nn.Module) and isinstance(optimizer, torch.optim.Optimizer),
            "Recorder.attach: model must be a torch.nn.Module and optimizer a "
            f"torch.optim.Optimizer, got {show(model)} and {show(optimizer)}.",
            TypeError,
        )
        require(
            step is None or (self.resume and isinstance(step, int) and step >= 0),
            "Recorder.attach: step must be a non-negative integer and needs Recorder(..., "
            f"resume=True), got {show(step)}.",
        )
        model = unwrap(model)
        own = {id(parameter) for parameter in model.parameters()}
        held = (parameter for group in optimizer.param_groups for parameter in group["params"])
        require(
            any(id(parameter) in own for parameter in held),
            "Recorder.attach: optimizer must hold parameters of model, got none in common. Build "
            "it from model.parameters() after moving or wrapping the model.",
        )
        if self._writer:
            self._open(model, step)
            self._handles = [
                optimizer.register_step_pre_hook(self._before_step),
                optimizer.register_step_post_hook(self._after_step),
            ]
        self._model, self._own, self._used = model, own, True
        self.snapshot()
        return self

    def log(self, **scalars: float | Tensor) -> None:
        """Gives values to the row of the coming step: call it before `optimizer.step()`.

        `recorder.log(loss=loss)` after `loss.backward()` is all that most loops need. A step with a
        closure fills `loss` in by itself. Tensors on an accelerator are kept there for a while, so
        that logging does not wait for them.

        Args:
            scalars: numbers or tensors of one element, by name. `loss` is the one with a meaning;
                any further name becomes a variable of `Trajectory.log`.

        Raises:
            ValueError: not attached, not a scalar, or a name that the recorder fills in itself.
        """
        require(
            self._model is not None,
            "Recorder.log: the recorder must be attached, got a call before attach() or after "
            "detach().",
        )
        taken = sorted(OWN_NAMES & scalars.keys())
        require(
            not taken,
            f"Recorder.log: names must not be those that are recorded anyway, got {taken}.",
        )
        if self._writer:
            self._scalars |= {name: _scalar(name, value) for name, value in scalars.items()}

    def end_epoch(self) -> None:
        """Counts an epoch, and takes a snapshot with `every="epoch"`."""
        self.epoch += 1
        if self._by_epoch:
            self.snapshot()

    def snapshot(self) -> None:
        """Takes a snapshot now, unless this step has one."""
        require(
            self._model is not None,
            "Recorder.snapshot: the recorder must be attached, got a call before attach() or after "
            "detach().",
        )
        if self._writer and self._last_snapshot != self.step:
            self._write_snapshot(self._base)

    def _write_snapshot(self, base: Base | None) -> None:
        assert self._model is not None
        self._log.sync()  # so that no snapshot is ahead of the log
        file = folder.snapshot_file(self.directory, self.step)
        self._base = write_snapshot(file, self._model, self.step, self.epoch, base)
        if self._compress and self._base is None:
            self._base = Snapshot(file).as_base()
        self._last_snapshot = self.step

    def detach(self) -> None:
        """Ends the recording with a snapshot of the final parameters and removes the hooks.

        A step that failed half-way leaves no snapshot: its parameters are not those of any step.
        """
        if self._model is None:
            return
        try:
            inexact = self._base is not None and self._base.depth > 0
            if (
                self._writer
                and not self._stepping
                and (self._last_snapshot != self.step or inexact)
            ):
                self._write_snapshot(None)
        finally:
            if self._writer:
                for handle in self._handles:
                    handle.remove()
                self._log.close()
            self._model = self._base = None
        if self._scalars:
            names = ", ".join(self._scalars)
            self._scalars = {}
            warnings.warn(
                f"Recorder: {names} came after the last step and is not recorded. Call log() "
                "before optimizer.step(): values belong to the step that follows.",
                stacklevel=2,
            )

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._scalars = {}  # the step that they belong to was not reached
        self.detach()

    @torch.no_grad()
    def gradient_norm(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """The l2 norm of the gradients as they are now, over what the optimizer has of the model.

        In a loop that clips them by itself, `recorder.log(grad_norm_unclipped=...)` takes the norm
        before that; every row has the one after it.
        """
        gradients = [
            parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and id(parameter) in self._own
        ]
        norm = nn.utils.get_total_norm(gradients)
        scale = getattr(optimizer, "grad_scale", None)  # set where a fused step divides by itself
        return norm if scale is None else norm / scale

    # -- hooks -----------------------------------------------------------------------------------

    def _before_step(self, optimizer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._stepping = True
        self._row: Row | None = None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._row = self._measure(optimizer)
            return None

        def measured() -> Any:
            loss = closure()
            if self._row is None:  # the first of a step's evaluations is at the step's own point
                if loss is not None:
                    self._scalars.setdefault("loss", _scalar("loss", loss))
                self._row = self._measure(optimizer)
            return loss

        if len(args) > 1:
            return (args[0], measured, *args[2:]), kwargs
        return args, {**kwargs, "closure": measured}

    def _after_step(self, optimizer: Any, args: tuple, kwargs: dict) -> None:
        self._log.append(self._row if self._row is not None else self._measure(optimizer))
        self.step += 1
        self._stepping = False
        if self._due(self.step):
            self.snapshot()

    @torch.no_grad()
    def _measure(self, optimizer: torch.optim.Optimizer) -> Row:
        row: Row = {
            "step": self.step,
            "epoch": self.epoch,
            "time": round(time.perf_counter() - self._clock, 6),
            "loss": self._scalars.pop("loss", float("nan")),
            "grad_norm": _scalar("grad_norm", self.gradient_norm(optimizer)),
        }
        for number, group in enumerate(optimizer.param_groups):
            name = f"learning_rate_{number}" if number else "learning_rate"
            row[name] = _scalar(name, group["lr"])
        row |= self._scalars
        self._scalars = {}
        return row

    # -- the folder ------------------------------------------------------------------------------

    def _open(self, model: nn.Module, step: int | None) -> None:
        """Brings folder, counters and clock to the step that recording starts from."""
        elapsed = 0.0
        if self.resume:
            self._find_step(model, step)
            folder.rewind(self.directory, self.step)
            for row in read_rows(folder.log_file(self.directory)):
                elapsed = row["time"]
        else:
            folder.clear(self.directory)
        self._clock = time.perf_counter() - elapsed
        self._log = LogWriter(folder.log_file(self.directory))

    def _find_step(self, model: nn.Module, step: int | None) -> None:
        """Sets step and epoch to those of the snapshot to resume, after a check of its values."""
        files = folder.snapshot_files(self.directory)
        earlier = [f for f in files if step is None or folder.snapshot_step(f) <= step]
        self.step = step or 0
        if not earlier:
            return
        snapshot = Snapshot(earlier[-1])
        tensors = named_tensors(model)
        snapshot.check_model(tensors)
        self.epoch = snapshot.epoch
        if step is not None and snapshot.step != step:
            return
        different = snapshot.differing(tensors)
        require(
            not different,
            f"Recorder.attach: model must have the values of {snapshot.file.name} to resume, got "
            f"others in {', '.join(different[:3])}. Load them with Trajectory(directory)"
            ".load_into(model, -1), or name the step that the model is at: attach(..., step=...).",
        )
        self.step = self._last_snapshot = snapshot.step
        self._base = snapshot.as_base() if self._compress else None


def _scalar(name: str, value: float | Tensor) -> float | Tensor:
    """A number; a tensor on an accelerator as a copy that stays there."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.detach()
        return float(value) if value.device.type == "cpu" else value.clone()
    require(
        isinstance(value, numbers.Real),
        f"Recorder.log: {name} must be a number or a tensor of one element, got {show(value)}.",
    )
    return float(value)


def _is_writer() -> bool:
    distributed = torch.distributed
    return not (
        distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0
    )
