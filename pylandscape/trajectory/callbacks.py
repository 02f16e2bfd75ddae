"""Recorders for loops that are not the user's own: Lightning and the Trainer of Hugging Face.

Neither library is needed by this package; each is imported when its callback is made.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pylandscape._checks import require, show
from pylandscape.trajectory.recorder import Recorder

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")


def lightning_callback(recorder: Recorder, part: str = "") -> Any:
    """A callback for `lightning.Trainer(callbacks=[...])` that records the run.

    The recorder is attached when the training starts, after a checkpoint has been restored, and
    detached at its end, also after an exception. Each row has the loss (the mean over accumulated
    batches), the norm of the gradient that the optimizer gets, and, as `grad_norm_unclipped`, the
    norm before Lightning clips it. Epochs are those of the trainer. With a recorder that resumes,
    `trainer.fit(..., ckpt_path=...)` goes on at the step of the checkpoint.

    Args:
        recorder: not yet attached.
        part: the name of the submodule of the LightningModule to record, as in
            `get_submodule`; by default all of it.

    Returns:
        A `lightning.pytorch.Callback`, or one of `pytorch_lightning` where only that is loaded.

    Raises:
        TypeError: `recorder` is no Recorder.
        ImportError: Lightning is not installed.
        ValueError: when training starts, more than one optimizer.

    Example:
        >>> import lightning, tempfile, pylandscape as pl
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     callback = pl.lightning_callback(pl.Recorder(folder, every=10))
        ...     trainer = lightning.Trainer(
        ...         max_steps=20, callbacks=[callback], logger=False, enable_checkpointing=False,
        ...         enable_progress_bar=False, enable_model_summary=False,
        ...     )
        ...     trainer.fit(BoringModel())
        ...     pl.Trajectory(folder).steps
        [0, 10, 20]
    """
    _require_recorder(recorder, "lightning_callback")
    base: Any = _lightning().Callback

    class RecordRun(base):
        """Records the run of a trainer."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            require(
                len(trainer.optimizers) == 1,
                "lightning_callback: the LightningModule must have one optimizer, got "
                f"{len(trainer.optimizers)}. Attach a Recorder per optimizer in its own code.",
            )
            model, optimizer = pl_module.get_submodule(part), trainer.optimizers[0]
            _attach(recorder, model, optimizer, trainer.global_step)
            recorder.epoch = trainer.current_epoch
            self.losses: list[Tensor] = []

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            # Lightning has divided it by the number of batches, and scaled it in mixed precision
            self.losses.append(loss.detach() / _loss_scale(trainer, loss.device))

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if self.losses:
                recorder.log(loss=sum(self.losses[1:], self.losses[0]))
                self.losses = []
            norm = recorder.gradient_norm(optimizer)
            if getattr(optimizer, "_step_supports_amp_scaling", False):  # it unscales in its step
                norm = norm / _loss_scale(trainer, norm.device)
            recorder.log(grad_norm_unclipped=norm)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            recorder.end_epoch()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            recorder.detach()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            recorder.__exit__(type(exception), exception, exception.__traceback__)

    return RecordRun()


def huggingface_callback(recorder: Recorder, part: str = "") -> Any:
    """A callback for `transformers.Trainer(callbacks=[...])` that records the run.

    Attached when the training begins and detached when it ends; after an exception inside
    `trainer.train()` call `recorder.detach()`, or use the recorder in a `with` block. Each row has
    the norm of the gradient that the optimizer gets, after clipping: the Trainer shows callbacks no
    other. The loss is the one that the model itself returns in training, as the Trainer combines it
    over accumulated batches; it is NaN where the Trainer computes another one (label smoothing, a
    `compute_loss_func`). With a recorder that resumes, `resume_from_checkpoint` goes on at the step
    of the checkpoint.

    Args:
        recorder: not yet attached.
        part: the name of the submodule of the model to record, as in `get_submodule`; by default
            all of it.

    Returns:
        A `transformers.TrainerCallback`.

    Raises:
        TypeError: `recorder` is no Recorder.
        ImportError: transformers is not installed.

    Example:
        >>> import tempfile, torch, transformers, pylandscape as pl
        >>> class Net(torch.nn.Linear):
        ...     def forward(self, x, labels):
        ...         output = super().forward(x)
        ...         return {"loss": (output - labels).square().mean(), "logits": output}
        >>> rows = [{"x": torch.randn(3), "labels": torch.randn(1)} for _ in range(32)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     callback = pl.huggingface_callback(pl.Recorder(f"{folder}/run", every=4))
        ...     args = transformers.TrainingArguments(folder, report_to=[], disable_tqdm=True)
        ...     trainer = transformers.Trainer(
        ...         Net(3, 1), args, train_dataset=rows, callbacks=[callback]
        ...     )
        ...     trainer.remove_callback(transformers.PrinterCallback)
        ...     _ = trainer.train()  # three epochs of batches of eight
        ...     pl.Trajectory(f"{folder}/run").steps
        [0, 4, 8, 12]
    """
    _require_recorder(recorder, "huggingface_callback")
    base: Any = _library("transformers", ("transformers",)).TrainerCallback

    class RecordRun(base):
        """Records the run of a Trainer."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            model, optimizer = given["model"], given["optimizer"]
            optimizer = getattr(optimizer, "optimizer", optimizer)  # inside that of accelerate
            _attach(recorder, model.get_submodule(part), optimizer, state.global_step)
            recorder.epoch = int(state.epoch or 0)
            self.losses: list[tuple[Tensor, bool]] = []
            self.hook = model.register_forward_hook(self.keep_loss, with_kwargs=True)

        def keep_loss(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            loss = output.get("loss") if isinstance(output, dict) else None
            if module.training and loss is not None and loss.requires_grad:
                # with the number of items of the step, each batch gives its share of the mean
                self.losses.append((loss.detach(), kwargs.get("num_items_in_batch") is not None))

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if self.losses:
                total = sum((loss for loss, _ in self.losses[1:]), self.losses[0][0])
                shares = self.losses[0][1]
                recorder.log(loss=total if shares else total / len(self.losses))
                self.losses = []

        def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            recorder.end_epoch()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            self.hook.remove()
            recorder.detach()

    return RecordRun()


def _loss_scale(trainer: Any, device: torch.device) -> Tensor:
    """The factor of the gradient scaler of Lightning's `16-mixed`, or 1; it stays on its device."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    one = torch.ones((), device=device)
    return one if scaler is None else scaler.scale(one)


def _attach(recorder: Recorder, model: nn.Module, optimizer: Any, step: int) -> None:
    recorder.attach(model, optimizer, step=step if recorder.resume and step else None)


def _require_recorder(recorder: Any, where: str) -> None:
    require(
        isinstance(recorder, Recorder),
        f"{where}: recorder must be a pylandscape.Recorder, got {show(recorder)}. Make one for the "
        "folder of the run.",
        TypeError,
    )


def _lightning() -> ModuleType:
    loaded = [name for name in LIGHTNING if name in sys.modules]
    return _library("lightning", (*loaded, *LIGHTNING))


def _library(package: str, names: tuple[str, ...]) -> ModuleType:
    """The first of the modules that can be imported."""
    for name in names:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
                raise  # the library is there, and something that it needs is not
    raise ImportError(f"This callback needs the package {package}: pip install {package}.")
