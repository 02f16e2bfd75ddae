"""Models as the functions of this package take them: modules, state dicts or flat vectors."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pylandscape._checks import require, show
from pylandscape.objective import Objective
from pylandscape.trajectory.snapshots import buffers_for, canonical_name, named_tensors

Model = nn.Module | Mapping[str, Tensor] | Tensor


def state_of(objective: Objective, model: Model, where: str, argument: str) -> dict[str, Tensor]:
    """The tensors of a model by the names of the objective's own.

    Raises:
        ValueError: another architecture, or other values of frozen parameters.
        TypeError: no model.
    """
    space, own = objective.space, objective.model
    if isinstance(model, Tensor):
        require(
            model.shape == (space.size,),
            f"{where}: {argument} must have shape [{space.size}] as a flat vector, got "
            f"{show(model)}.",
        )
        return space.unflatten(model.detach()) | dict(own.named_buffers())
    require(
        isinstance(model, (nn.Module, Mapping)),
        f"{where}: {argument} must be a module, a state dict or a flat vector, got {show(model)}.",
        TypeError,
    )
    given = named_tensors(model) if isinstance(model, nn.Module) else _canonical(model)
    names = {entry.name: canonical_name(entry.name) for entry in space.entries}
    for entry in space.entries:
        tensor = given.get(names[entry.name])
        got = "no such name" if tensor is None else f"shape {list(tensor.shape)}"
        require(
            tensor is not None and tuple(tensor.shape) == entry.shape,
            f"{where}: {argument} must have the architecture of the objective's model, got {got} "
            f"where that has {entry.name!r} of shape {list(entry.shape)}.",
        )
    for name, frozen in own.named_parameters():
        tensor = given.get(canonical_name(name), frozen) if name not in names else frozen
        require(
            torch.equal(tensor.detach().to(frozen), frozen),
            f"{where}: {argument} must agree with the objective's model in the frozen parameters, "
            f"got other values of {name!r}. Unfreeze it in the objective's model.",
        )
    buffers = dict(own.named_buffers()) | buffers_for(own, given, objective.device)
    return {name: given[key].detach() for name, key in names.items()} | buffers


def vector_of(objective: Objective, model: Model, where: str, argument: str) -> Tensor:
    """The parameters of a model [P], in the dtype and on the device of the objective."""
    state = state_of(objective, model, where, argument)
    return objective.space.flatten(state, objective.dtype, objective.device)


def require_test(objective: Objective, test: Objective | None, where: str) -> None:
    """Raises unless `test` is None or an objective of the same architecture."""
    require(
        test is None or (isinstance(test, Objective) and test.space == objective.space),
        f"{where}: test must be an objective of the same architecture, got "
        f"{test.space if isinstance(test, Objective) else show(test)} for {objective.space}.",
    )


def _canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict, saved from a wrapped model or not, by canonical names."""
    wrapped = all(name.startswith("module.") for name in state)
    strip = (lambda name: name.removeprefix("module.")) if wrapped else str
    return {canonical_name(strip(name)): tensor for name, tensor in state.items()}
