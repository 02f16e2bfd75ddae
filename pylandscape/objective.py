"""The loss of a model over data as a function of its flat parameter vector."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pylandscape._checks import alike, require, show, users_level
from pylandscape._version import __version__
from pylandscape.data import Samples
from pylandscape.directions import Directions
from pylandscape.engines.cuda import CudaEngine
from pylandscape.engines.derivatives.engine import NativeDerivatives
from pylandscape.engines.eager import MOMENTS, EagerEngine, TrainingStep
from pylandscape.engines.module import PROBE_SAMPLES, Buffers, FunctionalModule
from pylandscape.engines.native import NativeEngine
from pylandscape.engines.points import Points
from pylandscape.engines.program import NotCovered
from pylandscape.losses import (
    Loss,
    PerSample,
    SampleLoss,
    accuracy_metric,
    is_accuracy,
    mean_over_outputs,
    sample_count,
)
from pylandscape.parameters import ParameterSpace, unwrap

BATCHNORM_POLICIES = ("frozen", "batch", "recompute")
ENGINES = ("auto", "native", "torch")
PRECISIONS = ("fast", "exact", "tf32", "bf16")
NATIVE_POINTS = 16  # from which on `auto` prepares the native engine, about a second

# Samples per forward pass. On a CPU the activations of a convolutional net should stay in cache
# (measured in bench/bench_plane.py); without convolutions larger matrix products win.
CPU_BATCH_CONVOLUTION = 64
CPU_BATCH = 1024
GPU_BATCH = 1024

RESERVED_METRICS = ("loss", "loss_stderr", "evaluated", "alpha", "beta", "gamma", "delta")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an evaluation.

    Attributes:
        values: loss and metrics [K] by name, NaN where nothing had been evaluated.
        done: the number of points that had been, from the first on, or of products or steps.
        surface: the same as a dataset, where a slice was being evaluated.
        result: what an analysis of the curvature had found so far, or the curve that `connect` had
            trained so far; None where that is nothing.
    """

    def __init__(self, values: dict[str, Tensor], done: int, unit: str = "points") -> None:
        super().__init__(f"interrupted after {done} {unit}")
        self.values, self.done = values, done
        self.surface: Any = None
        self.result: Any = None


class Objective:
    """L(w) = sum_i a_i(w) / sum_i b_i: the mean loss over N samples, w in R^P.

    The weights b_i are 1 but for losses that weight their mean themselves (class weights,
    `ignore_index`). The split of the data into batches never matters. The model runs in evaluation
    mode and is never changed.

    Args:
        model: any module; wrappers of DistributedDataParallel and torch.compile are looked through.
            Its parameters that require a gradient make up w.
        loss: a torch loss module or a callable (outputs, targets) that gives a mean or a sum over
            samples, or one value per sample.
        data: (inputs, targets) tensors, a Dataset or a DataLoader of such pairs. Inputs may be a
            tensor, a tuple (positional arguments) or a dict (keyword arguments). Read once and kept
            where half of the free memory suffices, otherwise read anew on every pass, in the
            loader's batches.
        batchnorm: `frozen` - the running statistics of the model (Li et al. 2018); `recompute` -
            statistics estimated anew over the data at every point (Garipov et al. 2018), constants
            in derivatives; `batch` - those of each batch, so that L depends on `batch_size`.
        engine: `torch` runs the module through PyTorch; `native` runs a captured copy of it through
            compiled kernels, many times faster at many points, and is an error where something has
            no kernel (`pl.explain` tells what); `auto` takes the native one for lines, planes and
            grids where it can, and says so once where it cannot. On a GPU it is used only when
            asked for, and derivatives run through PyTorch, products with the Hessian by
            torch.compile once they have cost as much as compiling.
        precision: of the native engine. `fast` runs 3x3 convolutions in the Winograd domain, with
            an error of the loss of about 1e-7; `exact` forms the same sums as PyTorch; `bf16`
            rounds the factors of convolutions and linear layers to bfloat16 (an error of about
            1e-3) for the matrix tiles of processors that have them. On a GPU the first two are
            float32, and `tf32` and `bf16` round the factors for tensor cores.
        dtype: precision of parameters, data and results; default that of the model's parameters.
        batch_size: samples per forward pass; the default fits the device.
        samples: use a random subset of so many samples, drawn without replacement.
        seed: of that draw.
        metrics: further quantities by name, callables (outputs, targets) -> one value per sample.

    Raises:
        TypeError: a model that is no module, data of an unknown kind, a loss that is not callable.
        ValueError: shapes of data that do not fit, a loss that is no mean over samples, no
            trainable parameters, a loader that shuffles or augments, a model that gives another
            output on a second pass.

    Example:
        >>> import torch, pylandscape as pl
        >>> x, y = torch.randn(50, 4), torch.randint(0, 3, (50,))
        >>> objective = pl.Objective(torch.nn.Linear(4, 3), torch.nn.CrossEntropyLoss(), (x, y))
        >>> values = objective.evaluate(objective.center[None])
        >>> abs(values["loss"].item() - objective.loss()) < 1e-9
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        *,
        batchnorm: str = "frozen",
        engine: str = "auto",
        precision: str = "fast",
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        samples: int | None = None,
        seed: int = 0,
        metrics: Mapping[str, Callable[[Any, Any], Tensor]] | None = None,
    ) -> None:
        require(
            isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule),
            f"Objective: model must be a torch.nn.Module in Python, got {show(model)}.",
            TypeError,
        )
        require(
            batchnorm in BATCHNORM_POLICIES,
            f"Objective: batchnorm must be one of {BATCHNORM_POLICIES}, got {show(batchnorm)}.",
        )
        require(
            engine in ENGINES, f"Objective: engine must be one of {ENGINES}, got {show(engine)}."
        )
        require(
            precision in PRECISIONS,
            f"Objective: precision must be one of {PRECISIONS}, got {show(precision)}.",
        )
        require(
            isinstance(metrics, Mapping | None),
            f"Objective: metrics must be a mapping of callables by name, got {show(metrics)}.",
            TypeError,
        )
        require(
            batch_size is None or (isinstance(batch_size, int) and batch_size > 0),
            f"Objective: batch_size must be a positive integer, got {show(batch_size)}.",
        )
        self.model = unwrap(model)
        self.space = ParameterSpace.from_model(self.model)
        self.batchnorm = batchnorm
        self.dtype = self._choose_dtype(dtype)
        self.device = self._find_device()
        if not isinstance(data, Samples):  # else they are those of another objective
            data = Samples(data, limit=samples, seed=seed, device=self.device, dtype=self.dtype)
        self.data = data
        self.sample_seed = seed if samples is not None else None
        self._given: dict[str, Any] = {"loss": loss, "metrics": metrics, "batch_size": batch_size}
        self._engine = self._build_engine(loss, metrics or {}, batch_size)
        self._native: NativeEngine | None = None
        self.choice, self.precision = engine, precision
        self._may_be_native = engine == "auto" and self._fits_native
        if engine == "native":
            try:
                self._native = self.native_engine
            except NotCovered as obstacle:
                raise ValueError(
                    "Objective: engine must be 'auto' or 'torch' here, got 'native', but "
                    f"{obstacle}."
                ) from None

    def replace(
        self, *, data: Any = None, batchnorm: str | None = None, engine: str | None = None
    ) -> "Objective":
        """The same model and loss on other data, with another BatchNorm policy or engine.

        What is not given stays as it is; the data are shared, not copied.

        Example:
            >>> import torch, pylandscape as pl
            >>> model, data = torch.nn.Linear(4, 1), (torch.randn(9, 4), torch.randn(9, 1))
            >>> objective = pl.Objective(model, torch.nn.MSELoss(), data)
            >>> part = objective.replace(data=(data[0][:3], data[1][:3]))
            >>> part.samples, part.space == objective.space
            (3, True)
        """
        engine = engine or self.choice
        if engine == "native" and batchnorm not in (None, self.batchnorm):
            engine = "auto"  # the native engine has no statistics of batches
        other = Objective(
            self.model,
            data=self.data if data is None else data,
            batchnorm=batchnorm or self.batchnorm,
            engine=engine,
            precision=self.precision,
            dtype=self.dtype,
            **self._given,
        )
        if data is None:
            other.sample_seed = self.sample_seed
        return other

    # -- values at single points -----------------------------------------------------------------

    @property
    def center(self) -> Tensor:
        """The model's own parameters as they are now, a copy [P]."""
        return self.space.flatten(self.model, self.dtype, self.device)

    @property
    def samples(self) -> int:
        """N, the number of samples."""
        return self.data.count

    @functools.cached_property
    def native_engine(self) -> NativeEngine:
        """The native engine of this objective, made when it is first asked for.

        Raises:
            NotCovered: something in the model, the loss or the data has no kernel.
        """
        kind = CudaEngine if self.device.type == "cuda" else NativeEngine
        return kind(self._engine, self.precision)

    @functools.cached_property
    def native_derivatives(self) -> NativeDerivatives:
        """Native gradients and curvature products of this objective.

        Raises:
            NotCovered: something in the model, the loss or the data has none.
        """
        return NativeDerivatives(self.native_engine)

    @property
    def engine(self) -> str:
        """The engine in use: `native` or `torch`."""
        return self._engine.name if self._native is None else self._native.name

    def loss(self, at: Tensor | None = None) -> float:
        """L at a point [P], by default at the model's own parameters."""
        return float(self.evaluate(self._point(at, "loss")[None])["loss"])

    def gradient(self, at: Tensor | None = None) -> Tensor:
        """The gradient of L [P] at a point [P], by default at the model's own parameters.

        Raises:
            ValueError: the loss does not depend on the parameters in a way that autograd can
                follow, or inference mode is on.
        """
        _require_autograd("gradient")
        return self._derivatives.loss_and_gradient(self._point(at, "gradient"))[1]

    def loss_and_gradient(self, at: Tensor | None = None) -> tuple[float, Tensor]:
        """L and its gradient [P] from one pass; errors as for `gradient`."""
        _require_autograd("loss_and_gradient")
        loss, gradient = self._derivatives.loss_and_gradient(self._point(at, "loss_and_gradient"))
        return float(loss), gradient

    def hessian_vector_product(self, v: Tensor, at: Tensor | None = None) -> Tensor:
        """H(at) v, the exact directional derivative of the gradient (Pearlmutter 1994).

        Args:
            v: [P] or [P, K].
            at: the point [P], by default the model's own parameters.

        Raises:
            ValueError: as for `gradient`.
        """
        return self._product("hessian_vector_product", v, at)

    def ggn_vector_product(self, v: Tensor, at: Tensor | None = None) -> Tensor:
        """G(at) v with the generalised Gauss-Newton matrix G = sum_i J_i' H_i J_i / sum_i b_i.

        J_i is the Jacobian of the model's outputs for sample i in the parameters, H_i the Hessian
        of the term a_i in these outputs: the Hessian of L without the curvature of the model.

        Args:
            v: [P] or [P, K].
            at: the point [P], by default the model's own parameters.

        Raises:
            ValueError: as for `gradient`.
        """
        return self._product("ggn_vector_product", v, at)

    def fisher_vector_product(self, v: Tensor, at: Tensor | None = None) -> Tensor:
        """F(at) v with the empirical Fisher matrix F = sum_i b_i g_i g_i' / sum_i b_i.

        g_i is the gradient of the loss of sample i, a_i / b_i; a sample that the loss weights by 2
        counts like two samples.

        Args:
            v: [P] or [P, K].
            at: the point [P], by default the model's own parameters.

        Raises:
            ValueError: as for `gradient`.
        """
        return self._product("fisher_vector_product", v, at)

    # -- values at many points -------------------------------------------------------------------

    def evaluate(self, points: Tensor) -> dict[str, Tensor]:
        """Loss and metrics at K points [K, P], each float64 [K].

        `loss` is L, `loss_stderr` its standard error sqrt(Var / N) from the spread over samples
        (with the factor sqrt(1 - n/N) of a subset drawn without replacement), `accuracy` the
        fraction of correct predictions of a classifier, and every metric its mean over the
        samples.
        """
        require(
            isinstance(points, Tensor) and points.ndim == 2 and points.shape[1] == self.space.size,
            f"evaluate: points must have shape [K, {self.space.size}], got {show(points)}.",
        )
        return self._evaluate(Points(points.detach().to(self.device, self.dtype)))

    def evaluate_along(
        self,
        center: Tensor,
        directions: Directions,
        coordinates: Tensor,
        *,
        buffers: Callable[[Tensor], Buffers | None] | None = None,
        bar: Any = None,
    ) -> dict[str, Tensor]:
        """Loss and metrics at the points center + sum_j c[k, j] d_j, each float64 [K].

        Args:
            center: [P].
            directions: D of them.
            coordinates: [K, D].
            buffers: for a row of coordinates, module buffers to use there instead of the model's.
            bar: a progress bar to update point by point.

        Raises:
            Interrupted: on Ctrl-C; its `values` hold NaN where nothing had been evaluated.
        """
        center = self._point(center, "evaluate_along")
        self.check_directions(directions, "evaluate_along")
        require(
            isinstance(coordinates, Tensor)
            and coordinates.ndim == 2
            and coordinates.shape[1] == len(directions),
            f"evaluate_along: coordinates must have shape [K, {len(directions)}], got "
            f"{show(coordinates)}.",
        )
        own = None if buffers is None else (buffers(row) for row in coordinates)
        return self._evaluate(Points(center, directions, coordinates), own, bar)

    @contextlib.contextmanager
    def training(self) -> Iterator[TrainingStep]:
        """A function (point [P], batch) -> (mean loss, gradient [P]) of single batches.

        While the context lasts the module is in training mode: dropout is on, BatchNorm uses the
        statistics of the batch. It comes back unchanged. Ctrl-C is seen at the start of a step.
        """
        _require_autograd("training")
        with self._engine.training() as step:
            yield step

    def check_directions(self, directions: Directions, where: str) -> None:
        """Raises unless `directions` lie in this objective's parameter space."""
        require(
            isinstance(directions, Directions),
            f"{where}: directions must be Directions, got {show(directions)}. Make them with "
            "random_directions or Directions.from_vectors.",
            TypeError,
        )
        require(
            directions.space == self.space,
            f"{where}: directions must belong to the objective's model, got {directions.space} for "
            f"{self.space}.",
        )

    def describe(self, derivatives: bool = False) -> dict[str, Any]:
        """How results are made, for their attributes: only strings, numbers and lists of them.

        Args:
            derivatives: of results that gradients or curvature make, whose engine may be another.
        """
        compiled = derivatives and self._engine.compiled.in_use
        return {
            "model": type(self.model).__name__,
            "parameters": self.space.size,
            "loss_function": self._engine.loss.name,
            "samples": self.samples,
            "population": self.data.population,
            "sample_seed": "" if self.sample_seed is None else self.sample_seed,
            "data": self.data.fingerprint,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "engine": self._derivatives.name if derivatives else self.engine,
            **({"compiled": "hessian_vector_product"} if compiled else {}),
            "batchnorm": self._batchnorm_in_use,
            "pylandscape": __version__,
            "torch": torch.__version__,
        }

    def buffers(self, at: Tensor | None = None) -> dict[str, Tensor]:
        """The module's buffers by name as the policy has them at a point [P].

        Under `recompute` this is a pass over the data, otherwise they are the model's own.
        """
        point = self._point(at, "buffers")
        with self._engine.module.evaluating(), torch.no_grad():
            state = self._engine.module.state(point)
        return {name: state[name] for name, _ in self.model.named_buffers()}

    @functools.cached_property
    def has_batchnorm(self) -> bool:
        """Whether the model has BatchNorm layers that use running statistics."""
        return bool(self._engine.module.norms)

    @property
    def _batchnorm_in_use(self) -> str:
        if self._engine.module.uses_batch_statistics:
            return "batch"
        return self.batchnorm if self.has_batchnorm else "none in the model"

    # -- inner ------------------------------------------------------------------------------------

    @property
    def _fits_native(self) -> bool:
        """No choice of the user rules the native engine out; only then is a fallback a surprise."""
        return (
            self.device.type == "cpu"
            and self.dtype == torch.float32
            and self.data.in_memory
            and (self.batchnorm == "frozen" or not self.has_batchnorm)
            and all(map(is_accuracy, self._engine.metrics.values()))
        )

    @functools.cached_property
    def _derivatives(self) -> EagerEngine | NativeDerivatives:
        """The native engine's where everything has native derivatives, else torch's."""
        if self.choice == "torch" or not self._fits_native:
            return self._engine
        try:
            return self.native_derivatives
        except NotCovered:
            return self._engine

    def _product(self, name: str, v: Tensor, at: Tensor | None) -> Tensor:
        """A product of the engine with a vector or with every column of a block."""
        _require_autograd(name)
        point = self._point(at, name)
        require(
            isinstance(v, Tensor) and v.ndim in (1, 2) and v.shape[0] == self.space.size,
            f"{name}: v must have shape [{self.space.size}] or [{self.space.size}, K], got "
            f"{show(v)}.",
        )
        v, product = v.to(self.device, self.dtype), getattr(self._derivatives, name)
        return product(point, v)

    def _evaluate(
        self, points: Points, buffers: Iterator[Buffers | None] | None = None, bar: Any = None
    ) -> dict[str, Tensor]:
        shape = (len(points), 1 + len(self._engine.metrics), MOMENTS)
        moments = torch.full(shape, torch.nan, dtype=torch.float64, device=self.device)
        done = 0
        try:
            engine = self._engine if buffers is not None else self._engine_for(len(points))
            for row in engine.moments(points, buffers):
                moments[done] = row
                done += 1
                if bar is not None:
                    bar.update(1)
        except KeyboardInterrupt:
            raise Interrupted(self._summary(moments.cpu()), done) from None
        return self._summary(moments.cpu())

    def _engine_for(self, points: int) -> EagerEngine | NativeEngine:
        """The native engine where it may be used and is worth its preparation."""
        if self._native is None and self._may_be_native and points >= NATIVE_POINTS:
            try:
                self._native = self.native_engine
            except NotCovered as obstacle:
                self._may_be_native = False  # tried once
                warnings.warn(
                    f"Objective: running on PyTorch, because {obstacle}.", stacklevel=users_level()
                )
        return self._engine if self._native is None else self._native

    def _summary(self, moments: Tensor) -> dict[str, Tensor]:
        """Means and standard errors from the sums over samples."""
        n, population = self.samples, self.data.population
        a, aa, ab, b, bb = moments[:, 0].unbind(-1)
        loss = a / b
        residuals = (aa - 2 * loss * ab + loss**2 * bb).clamp(min=0)  # sum of (a_i - L b_i)^2
        stderr = (residuals * n / (n - 1)).sqrt() / b if n > 1 else torch.full_like(loss, torch.nan)
        values = {"loss": loss, "loss_stderr": stderr * (1 - n / population) ** 0.5
                  if n < population else stderr}  # fmt: skip
        for j, name in enumerate(self._engine.metrics, start=1):
            values[name] = moments[:, j, 0] / moments[:, j, 3]
        return values

    def _point(self, at: Tensor | None, where: str) -> Tensor:
        if at is None:
            return self.center
        require(
            isinstance(at, Tensor) and at.shape == (self.space.size,),
            f"{where}: the point must have shape [{self.space.size}], got {show(at)}.",
        )
        return at.detach().to(self.device, self.dtype)

    def _choose_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        found = {p.dtype for p in self.model.parameters() if p.requires_grad}
        if dtype is None:
            require(
                len(found) == 1,
                "Objective: dtype must be given for a model of mixed precision, got parameters of "
                f"{sorted(map(str, found))}.",
            )
            return found.pop()
        require(
            isinstance(dtype, torch.dtype) and dtype.is_floating_point,
            f"Objective: dtype must be a floating-point torch.dtype, got {show(dtype)}.",
        )
        return dtype

    def _find_device(self) -> torch.device:
        devices = {tensor.device for tensor in self.model.parameters()}
        require(
            len(devices) == 1,
            f"Objective: model must be on one device, got {sorted(map(str, devices))}.",
        )
        require(
            devices != {torch.device("meta")},
            "Objective: model must hold values, got parameters on the meta device.",
        )
        return devices.pop()

    def _build_engine(
        self,
        loss: Loss,
        metrics: Mapping[str, Callable[[Any, Any], Tensor]],
        batch_size: int | None,
    ) -> EagerEngine:
        size = batch_size or self._default_batch_size()
        module = FunctionalModule(self.model, self.space, self.data, self.batchnorm, size)
        if module.needs_variance and self.data.in_memory:
            while batch_size is None and self.samples % size == 1 and size > 2:
                size -= 1
            require(
                self.samples % size != 1 and size > 1,
                "Objective: batch_size must not leave a batch of one sample where BatchNorm1d uses "
                f"batch statistics, got {size} for {self.samples} samples.",
            )
            module.batch_size = size
        inputs, targets = self.data.first(PROBE_SAMPLES)
        outputs = _probe(module, inputs)
        terms = SampleLoss(loss, outputs, targets)
        measures = {
            name: _as_measure(name, metric, outputs, targets) for name, metric in metrics.items()
        }
        accuracy = accuracy_metric(loss, outputs, targets)
        if accuracy is not None:
            measures.setdefault("accuracy", accuracy)
        return EagerEngine(module, terms, measures)

    def _default_batch_size(self) -> int:
        if self.device.type != "cpu":
            return GPU_BATCH
        convolution = any(isinstance(m, nn.modules.conv._ConvNd) for m in self.model.modules())
        return CPU_BATCH_CONVOLUTION if convolution else CPU_BATCH


def _require_autograd(where: str) -> None:
    require(
        not torch.is_inference_mode_enabled(),
        f"{where}: must be called outside torch.inference_mode(), which has no derivatives. "
        "torch.no_grad() does no harm.",
    )


def _probe(module: FunctionalModule, inputs: Any) -> Any:
    """The outputs for one batch, after a second pass has given the same ones."""
    outputs = module.outputs(inputs)
    require(
        alike(outputs, module.outputs(inputs), rtol=1e-4, atol=1e-6),
        "Objective: model must give the same outputs on every pass, got others on the second. "
        "Turn off what is random in evaluation mode (dropout by F.dropout, noise).",
    )
    return outputs


def _as_measure(
    name: str, metric: Callable[[Any, Any], Tensor], outputs: Any, targets: Any
) -> Callable[[Any, Any], PerSample]:
    """A user's metric as terms per sample, tried on one batch."""
    require(
        isinstance(name, str) and name.isidentifier() and name not in RESERVED_METRICS,
        f"Objective: metrics must have names of their own, got {show(name)}.",
    )
    require(
        callable(metric), f"Objective: metrics must be callable, got {show(metric)}.", TypeError
    )
    values, samples = metric(outputs, targets), sample_count(targets)
    require(
        isinstance(values, Tensor) and values.ndim > 0 and len(values) == samples,
        f"Objective: metrics must give one value per sample, got {show(values)} from {name!r} for "
        f"{samples} samples.",
    )

    return functools.partial(_measure, metric)


def _measure(metric: Callable[[Any, Any], Tensor], outputs: Any, targets: Any) -> PerSample:
    return mean_over_outputs(metric(outputs, targets).double())
