"""Recording from inside Lightning and the Trainer of Hugging Face, with the real libraries."""

import contextlib
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import pylandscape as pl

ROWS, BATCH = 24, 4


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 3, generator=generator), torch.randn(ROWS, 1, generator=generator)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def by_hand(accumulate=1, epochs=1, clip=float("inf")):
    """The same training in a plain loop: losses, norms before clipping, parameters per step."""
    model, (x, y) = net(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, norms, states = [], [], [[p.detach().clone() for p in model.parameters()]]
    size = BATCH * accumulate
    for _ in range(epochs):
        for i in range(0, ROWS, size):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x[i : i + size]), y[i : i + size])
            loss.backward()
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), clip)))
            optimizer.step()
            losses.append(loss.item())
            states.append([p.detach().clone() for p in model.parameters()])
    return np.array(losses), np.array(norms), states


def check(folder, prefix, losses, norms, states, clip):
    path = pl.Trajectory(folder)
    np.testing.assert_array_equal(path.log.step, np.arange(len(losses)))
    np.testing.assert_allclose(path.log.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(path.log.grad_norm, np.minimum(norms, clip), rtol=1e-4)
    assert path.steps == list(range(len(states)))
    for found, wanted in zip(path, states, strict=True):
        for name, tensor in zip(("0.weight", "0.bias", "2.weight", "2.bias"), wanted, strict=True):
            torch.testing.assert_close(found[prefix + name], tensor, rtol=1e-4, atol=1e-6)
    return path


# -- Lightning ------------------------------------------------------------------------------------


@pytest.fixture
def lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("lightning", reason="Lightning is not installed")


def lightning_run(
    lightning, callback, folder, epochs=1, accumulate=1, clip=None, fused=False, plugins=None, **fit
):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, index):
            if fit.get("fail_at") == self.global_step:
                raise ZeroDivisionError
            return nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            options = {"lr": 0.1, "fused": fused}
            made = [torch.optim.SGD(self.net.parameters(), **options) for _ in range(optimizers)]
            return made[0] if optimizers == 1 else made

    optimizers = fit.pop("optimizers", 1)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), BATCH)
    module = Module()
    module.automatic_optimization = optimizers == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, callbacks=[callback],
            accumulate_grad_batches=accumulate, gradient_clip_val=clip, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, plugins=plugins,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=fit.get("ckpt_path"))
    return trainer, module


@pytest.mark.parametrize(("accumulate", "part"), [(1, ""), (2, "net")])
def test_lightning_records_what_a_plain_loop_does(tmp_path, lightning, accumulate, part):
    wanted = by_hand(accumulate, epochs=2, clip=0.5)
    callback = pl.lightning_callback(pl.Recorder(tmp_path / "run"), part)
    lightning_run(lightning, callback, tmp_path, 2, accumulate, 0.5)
    path = check(tmp_path / "run", "" if part else "net.", *wanted, 0.5)
    np.testing.assert_allclose(path.log.grad_norm_unclipped, wanted[1], rtol=1e-4)
    assert (wanted[1] > 0.5).any()
    steps = len(wanted[0])
    np.testing.assert_array_equal(path.log.epoch, np.repeat([0, 1], steps // 2))


@pytest.mark.parametrize(("fused", "clip"), [(False, 0.5), (True, None)])  # never both
def test_lightning_in_mixed_precision_records_unscaled_values(tmp_path, lightning, fused, clip):
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    plugin.forward_context = contextlib.nullcontext  # the scaler alone, in float32
    wanted = by_hand(clip=clip or float("inf"))
    callback = pl.lightning_callback(pl.Recorder(tmp_path / "run"))
    lightning_run(lightning, callback, tmp_path, clip=clip, fused=fused, plugins=[plugin])
    path = check(tmp_path / "run", "net.", *wanted, clip or np.inf)
    np.testing.assert_allclose(path.log.grad_norm_unclipped, wanted[1], rtol=1e-4)


def test_lightning_goes_on_from_a_checkpoint(tmp_path, lightning):
    run = tmp_path / "run"
    callback = pl.lightning_callback(pl.Recorder(run))
    trainer, _ = lightning_run(lightning, callback, tmp_path)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    callback = pl.lightning_callback(pl.Recorder(run, resume=True))
    lightning_run(lightning, callback, tmp_path, 2, ckpt_path=tmp_path / "saved.ckpt")
    path = check(run, "net.", *by_hand(epochs=2), np.inf)
    np.testing.assert_array_equal(path.log.epoch, np.repeat([0, 1], ROWS // BATCH))


def test_lightning_keeps_what_came_before_an_exception(tmp_path, lightning):
    callback = pl.lightning_callback(pl.Recorder(tmp_path / "run", every=100))
    with pytest.raises(ZeroDivisionError):
        lightning_run(lightning, callback, tmp_path, fail_at=3)
    assert pl.Trajectory(tmp_path / "run").log.sizes["step"] == 3


def test_lightning_with_two_optimizers_is_refused(tmp_path, lightning):
    callback = pl.lightning_callback(pl.Recorder(tmp_path / "run"))
    with pytest.raises(ValueError, match="must have one optimizer, got 2"):
        lightning_run(lightning, callback, tmp_path, optimizers=2)


# -- Hugging Face ---------------------------------------------------------------------------------


@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    return pytest.importorskip("transformers", reason="transformers is not installed")


class Regression(nn.Module):
    """Returns its loss as the models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x, labels=None, **given):
        output = self.net(x)
        items = given.get("num_items_in_batch")
        if items is not None:
            loss = nn.functional.mse_loss(output, labels, reduction="sum") / items
        else:
            loss = nn.functional.mse_loss(output, labels)
        return {"loss": loss, "logits": output}


class PlainRegression(Regression):
    def forward(self, x, labels=None):
        return super().forward(x, labels)


def trainer_run(transformers, model, callback, folder, epochs=1, accumulate=1, clip=0.0, **train):
    rows = [{"x": x, "labels": y} for x, y in zip(*data(), strict=True)]
    args = transformers.TrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=accumulate, max_grad_norm=clip, learning_rate=0.1,
        lr_scheduler_type="constant", optim="sgd", report_to=[], disable_tqdm=True, use_cpu=True,
        save_strategy="epoch", logging_strategy="no", dataloader_pin_memory=False,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=rows, callbacks=[callback])
    trainer.train(**train)


@pytest.mark.parametrize(("kind", "accumulate"), [(PlainRegression, 2), (Regression, 2)])
def test_the_trainer_records_what_a_plain_loop_does(tmp_path, transformers, kind, accumulate):
    wanted = by_hand(accumulate, epochs=2, clip=0.5)
    callback = pl.huggingface_callback(pl.Recorder(tmp_path / "run"))
    trainer_run(transformers, kind(), callback, tmp_path / "out", 2, accumulate, 0.5)
    path = check(tmp_path / "run", "net.", *wanted, 0.5)
    np.testing.assert_array_equal(path.log.epoch, np.repeat([0, 1], len(wanted[0]) // 2))


def test_the_trainer_goes_on_from_a_checkpoint(tmp_path, transformers):
    model = PlainRegression()
    callback = pl.huggingface_callback(pl.Recorder(tmp_path / "run"), part="net")
    trainer_run(transformers, model, callback, tmp_path / "out")
    callback = pl.huggingface_callback(pl.Recorder(tmp_path / "run", resume=True), part="net")
    trainer_run(
        transformers, PlainRegression(), callback, tmp_path / "out", 2, resume_from_checkpoint=True
    )
    path = check(tmp_path / "run", "", *by_hand(epochs=2), np.inf)
    np.testing.assert_array_equal(path.log.epoch, np.repeat([0, 1], ROWS // BATCH))


# -- without them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "modules", "package"),
    [
        (pl.lightning_callback, ("lightning.pytorch", "pytorch_lightning"), "lightning"),
        (pl.huggingface_callback, ("transformers",), "transformers"),
    ],
)
def test_a_missing_library_is_named(tmp_path, monkeypatch, make, modules, package):
    for module in (*modules, *(name.partition(".")[0] for name in modules)):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        make(pl.Recorder(tmp_path / "run"))
    with pytest.raises(TypeError, match="recorder must be a pylandscape"):
        make(str(tmp_path))
