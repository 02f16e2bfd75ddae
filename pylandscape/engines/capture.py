"""From a module to a Program, by `torch.export`.

The module is exported in evaluation mode on a few samples. Every operator either keeps dimension 0
as the batch, one sample apart from the other, or the model is not covered; so the Program, which
knows single samples only, holds for any batch.
"""

import contextlib
import io
import linecache
import logging
import operator
import os
import re
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from pylandscape.engines.aten import LOWERINGS
from pylandscape.engines.builder import Builder, Call, Constant, Parameter, View
from pylandscape.engines.module import unchanged
from pylandscape.engines.program import NotCovered, Program

# Samples to export with. More than one, so that samples can be told apart; one fewer runs as well,
# to see that a sample's output does not depend on their number.
BATCH = 3

_TORCH = os.path.dirname(torch.__file__) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n\s*(?P<code>.*)')


def capture(model: nn.Module, inputs: Tensor) -> Program:
    """The Program of a module that maps one tensor [B, ...] to one tensor [B, ...].

    The module runs in evaluation mode and comes back unchanged.

    Args:
        model: any module.
        inputs: some samples [B, ...]; all further ones must have their shape.

    Raises:
        NotCovered: the model does something that has no native kernel; it names the first such
            operator and where the model calls it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
        >>> [node.op for node in capture(model, torch.randn(5, 4)).nodes]
        ['linear', 'activation']
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise NotCovered("the model is compiled by TorchScript, which torch.export does not take")
    example = _example(model, inputs)
    with _evaluating(model), _quiet(), torch.no_grad():
        exported = _export(model, example)
        program = _walk(exported, model, example)
        _check_batch_size(model, example)
    return program


def _example(model: nn.Module, inputs: Any) -> Tensor:
    """BATCH samples in the precision and on the device of the model."""
    if not (isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.numel()):
        raise NotCovered("the model takes something other than one floating-point tensor [B, ...]")
    like = next((p for p in model.parameters() if p.is_floating_point()), inputs)
    samples = inputs[torch.arange(BATCH) % len(inputs)]
    return samples.detach().to(like.device, like.dtype)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    with unchanged(model):
        for module in model.modules():
            module.__dict__.update(training=False, _compiled_call_impl=None)  # `model.compile()`
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.export warns, logs and prints: what is wrong is in the exception."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _export(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The graph in aten operators without in-place ones, layers in one piece."""
    try:
        exported = torch.export.export(model, (example,), strict=False).run_decompositions({})
    except Exception as error:
        raise _failure("torch.export", error) from error
    changed = exported.graph_signature.buffers_to_mutate.values()
    if changed:
        raise NotCovered(f"the model changes {', '.join(changed)} in evaluation mode")
    return exported


def _result(exported: ExportedProgram) -> fx.Node:
    """The node of the model's output."""
    specs = exported.graph_signature.output_specs
    outputs = [spec.arg for spec in specs if spec.kind is OutputKind.USER_OUTPUT]
    if not exported.call_spec.out_spec.is_leaf() or not isinstance(outputs[0], TensorArgument):
        raise NotCovered("the model returns something other than one tensor")
    return next(node for node in exported.graph.nodes if node.name == outputs[0].name)


def _check_batch_size(model: nn.Module, example: Tensor) -> None:
    """One sample fewer must leave the outputs of the others as they are."""
    try:
        full, fewer = model(example.clone()), model(example[:-1].clone())  # some write to them
    except Exception as error:
        raise _failure("the model", error) from error
    scale = full.abs().max().nan_to_num()
    if fewer.shape != full[:-1].shape or not torch.allclose(
        fewer, full[:-1], rtol=1e-2, atol=1e-2 * float(scale), equal_nan=True
    ):
        raise NotCovered("the model's output for a sample depends on the size of the batch")


def _walk(exported: ExportedProgram, model: nn.Module, example: Tensor) -> Program:
    result = _result(exported)
    live = _live(result)
    nodes = [node for node in exported.graph.nodes if node in live]
    build = Builder(len(example), tuple(example.shape[1:]))
    entries = _inputs(exported, model, build.input)
    constant = _constant(nodes, entries)
    for node in nodes:
        if node not in constant:
            _check_known(node, entries, build.input)
    for node in nodes:
        if node in constant:
            entries[node] = Constant(_evaluated(node, entries))
        elif node.op == "call_function":
            entries[node] = _lowered(node, entries, build)
        if isinstance(entries[node], View) and node.meta["val"].dtype != example.dtype:
            reason = f"changes the dtype to {node.meta['val'].dtype}"
            raise NotCovered(reason, _name(node), _source(node))
    output = entries[result]
    if not isinstance(output, View):
        raise NotCovered("the model's output does not depend on its input")
    program = build.program(output)
    _check_log_softmax(program)
    return program


def _live(result: fx.Node) -> set[fx.Node]:
    """What the result depends on."""
    live, pending = set(), [result]
    while pending:
        node = pending.pop()
        if node not in live:
            live.add(node)
            pending += node.all_input_nodes
    return live


def _constant(nodes: Iterable[fx.Node], entries: Mapping[fx.Node, Any]) -> set[fx.Node]:
    """The operators that neither the input nor a tensor of the model goes into, nor chance."""
    fixed = {node for node, entry in entries.items() if isinstance(entry, Constant)}
    operators: set[fx.Node] = set()
    for node in nodes:
        inputs = set(node.all_input_nodes)
        if node.op == "call_function" and inputs <= fixed | operators and not _is_random(node):
            operators.add(node)
    return operators


def _evaluated(node: fx.Node, entries: Mapping[fx.Node, Any]) -> Tensor:
    target: Any = node.target
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: entries[n].tensor)
    return target(*args, **kwargs)


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _inputs(exported: ExportedProgram, model: nn.Module, example: View) -> dict[fx.Node, Any]:
    """The entries of the graph's placeholders; tied tensors go by their first name."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    tensors = dict(named)
    first = {id(tensor): name for name, tensor in reversed(named)}
    entries: dict[fx.Node, Any] = {}
    placeholders = (node for node in exported.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            entries[node] = example
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            entries[node] = Constant(exported.constants[str(spec.target)])
        else:
            tensor = tensors[str(spec.target)]
            entries[node] = Parameter(first[id(tensor)], tuple(tensor.shape))
    return entries


def _lowered(node: fx.Node, entries: dict[fx.Node, Any], build: Builder) -> Any:
    if node.target is operator.getitem:
        producer, position = node.all_input_nodes[0], node.args[1]
        entry = entries[producer][position]
        if entry is None:
            reason = "is used for more than its values"
            raise NotCovered(reason, _name(producer), _source(producer))
        return entry
    call = Call(node, _name(node), _source(node), entries)
    try:
        return LOWERINGS[call.name](build, call)
    except NotCovered:
        raise
    except Exception as error:  # a use that nobody thought of: the torch engine still runs
        raise call.not_covered(f"cannot be understood: {_first_line(error)}") from error


def _check_known(node: fx.Node, entries: Mapping[fx.Node, Any], x: View) -> None:
    """Before anything else: a missing kernel tells more than how its inputs were prepared."""
    if node.op != "call_function" or node.target is operator.getitem or _name(node) in LOWERINGS:
        return
    reason = "has no native kernel"
    origins = [entries[n] for n in _live(node) if n.op == "placeholder"]
    if x not in origins:
        names = sorted({repr(entry.name) for entry in origins if isinstance(entry, Parameter)})
        reason = f"computes a tensor from {', '.join(names)}, for which there is no native kernel"
        if not names:  # nor is it constant
            reason = "draws random numbers"
    raise NotCovered(reason, _name(node), _source(node))


def _check_log_softmax(program: Program) -> None:
    """Native engines know it as a part of the loss."""
    for node in program.nodes:
        if node.op == "log_softmax" and node is not program.nodes[-1]:
            reason = "has a native kernel as the last operator only"
            raise NotCovered(reason, "aten.log_softmax", node.source)


# -- where and what ------------------------------------------------------------------------------


def _name(node: fx.Node) -> str:
    """As in `aten.conv2d`, without the overload."""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name).replace("::", ".") if schema else str(node.target)


def _source(node: fx.Node) -> str:
    """The innermost frame of the user's code, or the layer where there is none."""
    trace = _FRAME.finditer(node.meta.get("stack_trace") or "")
    frames = [frame for frame in trace if _is_of_user(frame["file"])]
    if frames:
        return _place(frames[-1]["file"], frames[-1]["line"], frames[-1]["code"])
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    return f"{modules[-1][0]} ({modules[-1][1].rpartition('.')[-1]})".strip() if modules else ""


def _failure(operation: str, error: Exception) -> NotCovered:
    """An exception out of the model's code, in one line."""
    trace = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in trace if _is_of_user(frame.filename)]
    source = ""
    if frames:
        file, line = frames[-1].filename, frames[-1].lineno or 0
        source = _place(file, line, linecache.getline(file, line))
    return NotCovered(f"fails: {_first_line(error)}", operation, source)


def _is_of_user(file: str) -> bool:
    if file.startswith(_STANDARD) and "site-packages" not in file:
        return False
    return file != __file__ and not file.startswith((_TORCH, "<"))  # "<": made by torch.fx


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _place(file: str, line: int | str, code: str) -> str:
    return f"{os.path.basename(file)}:{line} ({code.strip()})"
