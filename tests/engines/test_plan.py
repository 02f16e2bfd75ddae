"""Plans keep to their memory: what steps read and write, which activations share a place."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import assume, given, settings
from random_models import architectures
from torch import nn

from pylandscape.engines import records
from pylandscape.engines.capture import capture
from pylandscape.engines.layout import Slot, round_up
from pylandscape.engines.plan import Plan, make_plan
from pylandscape.engines.program import Program
from pylandscape.engines.records import LossKind
from pylandscape.engines.simple_layers import LossSpec


def subclasses(kind: type) -> Iterator[type]:
    for derived in kind.__subclasses__():
        yield derived
        yield from subclasses(derived)


STEPS = {kind.kind: kind for kind in subclasses(records.Step) if hasattr(kind, "kind")}
# They read single floats, so that pixels need not be padded to whole vectors.
READS_FLOATS = (records.Convolution, records.Narrow, records.Linear, records.Move)


def read_record(kind: type, numbers: Iterator[int]) -> Any:
    """A record from the numbers of a plan."""
    return kind(
        *(
            read_record(field.type, numbers)
            if dataclasses.is_dataclass(field.type)
            else next(numbers)
            for field in dataclasses.fields(kind)
        )
    )


def steps_of(plan: Plan) -> list[Any]:
    numbers = iter(plan.numbers.tolist())
    head = read_record(records.Head, numbers)
    for kind, count in [
        (records.Value, head.values),
        (records.Section, head.sections),
        (records.Fold, head.folds),
        (records.Rounding, head.roundings),
    ]:
        for _ in range(count):
            read_record(kind, numbers)
    steps = []
    for _ in range(head.steps):
        kind, length = next(numbers), next(numbers)
        steps.append(read_record(STEPS[kind], numbers))
        assert length == len(steps[-1].numbers())
    assert next(numbers, None) is None
    return steps


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of an activation."""

    top: int
    bottom: int
    left: int
    right: int

    def is_inside(self, other: "Box") -> bool:
        return (
            self.top >= other.top
            and self.bottom <= other.bottom
            and self.left >= other.left
            and self.right <= other.right
        )


def interior(slot: Slot) -> Box:
    return Box(0, slot.height, 0, slot.width)


def with_halo(slot: Slot) -> Box:
    return Box(-slot.top, slot.height + slot.bottom, -slot.left, slot.width + slot.right)


def reads(step: Any, plan: Plan) -> list[tuple[int, Box]]:
    """The slots that a step reads, and the pixels that its windows reach."""
    if isinstance(step, records.Load):
        return []
    if isinstance(step, records.Binary):
        return [(side, interior(plan.slots[side])) for side in (step.left, step.right)]
    box = interior(plan.slots[step.input])
    if isinstance(step, records.Winograd):
        t = step.tiles
        rows, columns = t.tiles_h * t.tile + 2, t.tiles_w * t.tile + 2
        box = Box(-t.pad_h, rows - t.pad_h, -t.pad_w, columns - t.pad_w)
    elif hasattr(step, "kernel_h") and not isinstance(step, (records.MaxPool, records.AveragePool)):
        box = _windows(step, plan.slots[step.out])
    found = [(step.input, box)]
    residual = step.epilogue.residual if hasattr(step, "epilogue") else records.NONE
    return (
        found if residual == records.NONE else [*found, (residual, interior(plan.slots[residual]))]
    )


def _windows(step: Any, out: Slot) -> Box:
    size = 2 if getattr(step, "pool", 0) else 1
    stride_h, stride_w = getattr(step, "stride_h", 1), getattr(step, "stride_w", 1)
    dilation_h, dilation_w = getattr(step, "dilation_h", 1), getattr(step, "dilation_w", 1)
    bottom = (size * out.height - 1) * stride_h + (step.kernel_h - 1) * dilation_h + 1
    right = (size * out.width - 1) * stride_w + (step.kernel_w - 1) * dilation_w + 1
    return Box(-step.pad_h, bottom - step.pad_h, -step.pad_w, right - step.pad_w)


def places(plan: Plan) -> list[tuple[Slot, range]]:
    """The activations that are used, and the floats of the arena that are theirs."""
    rooms = {records.Room.WHOLE_BLOCK: plan.block, records.Room.SUB_BLOCK: plan.sub_block}
    return [
        (slot, range(slot.offset, slot.offset + slot.sample_pitch * rooms[slot.room]))
        for slot in plan.slots
        if slot.first_step >= 0
    ]


def shares(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def planned(
    program: Program, model: nn.Module, shape: tuple[int, ...], lanes: int, precision: str
) -> Plan:
    shapes = {k: tuple(t.shape) for k, t in (*model.named_parameters(), *model.named_buffers())}
    strides = torch.empty(5, *shape).stride()
    loss = LossSpec(LossKind.SQUARED)
    return make_plan(program, shapes, loss, strides, 5, lanes, precision)


def check_accesses(plan: Plan) -> None:
    for step in steps_of(plan):
        for slot, box in reads(step, plan):
            assert box.is_inside(with_halo(plan.slots[slot])), step
            assert isinstance(step, READS_FLOATS) or not plan.slots[slot].dense, step
        if isinstance(step, records.Linear) and not step.by_pixel:
            source = plan.slots[step.input]
            last = (step.segments - 1) * step.segment_pitch + step.segment
            ends = (source.height - 1) * source.row_pitch + source.width * source.pixel_pitch
            assert last <= ends, step
        if isinstance(step, records.Narrow):  # loads whole vectors of pixels
            source, out = plan.slots[step.input], plan.slots[step.out]
            stored = plan.lanes // 2 if step.pool else plan.lanes
            vectors = round_up(out.width, stored) * (2 if step.pool else 1)
            right = vectors + step.kernel_w - 1 - step.pad_w
            assert right - (source.width + source.right) <= plan.lanes, step


def check_places(plan: Plan) -> None:
    used = places(plan)
    for i, (slot, place) in enumerate(used):
        assert place.start >= 0
        assert 4 * place.stop <= plan.arena_bytes
        for other, elsewhere in used[:i]:
            if shares(place, elsewhere):
                assert slot.last_step < other.first_step or other.last_step < slot.first_step
                assert not slot.dedicated
                assert not other.dedicated
                assert place == elsewhere
                assert slot.geometry() == other.geometry()


@settings(max_examples=40, deadline=None)
@given(architectures())
def test_steps_keep_to_their_activations(case: tuple[nn.Module, tuple[int, ...]]) -> None:
    model, shape = case
    assume(any(True for _ in model.parameters()))
    program = capture(model, torch.randn(2, *shape, dtype=torch.float64))
    assume(all(len(value.shape) <= 3 for value in program.values))
    for lanes, precision in [(4, "fast"), (8, "exact"), (16, "fast"), (16, "bf16")]:
        plan = planned(program, model, shape, lanes, precision)
        check_accesses(plan)
        check_places(plan)


def test_memory_is_used_again() -> None:
    """Ten layers of one geometry take the room of two, not of eleven."""
    layers = [nn.Conv2d(16, 16, 3, padding=1) for _ in range(10)]
    model = nn.Sequential(*layers).double()
    program = capture(model, torch.randn(2, 16, 12, 12, dtype=torch.float64))
    plan = planned(program, model, (16, 12, 12), 16, "exact")
    check_places(plan)
    inner = [slot for slot in plan.slots if (slot.top, slot.left) == (1, 1)]
    assert len(inner) == 10
    assert len({slot.offset for slot in inner}) == 2


def test_packing_is_linear() -> None:
    """What makes a point's weights a sum of packed vectors, Winograd's domain included."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.Conv2d(16, 20, 3, padding=1),
        nn.BatchNorm2d(20),
        nn.Conv2d(20, 20, 3, groups=20),
        nn.Conv2d(20, 8, 1, groups=4),
        nn.GroupNorm(2, 8),
        nn.Flatten(),
        nn.Linear(8 * 36, 7),
    )
    program = capture(model, torch.randn(2, 3, 8, 8))
    plan = planned(program, model, (3, 8, 8), 16, "fast")
    state = {k: t.detach() for k, t in (*model.named_parameters(), *model.named_buffers())}
    other = {k: torch.randn_like(t) if t.is_floating_point() else t for k, t in state.items()}
    both = {k: 0.5 * state[k] - 2 * other[k] for k in state}
    packed = [torch.zeros(plan.packed) for _ in range(3)]
    for tensors, row in zip((state, other, both), packed, strict=True):
        plan.pack(tensors, row)
    torch.testing.assert_close(packed[2], 0.5 * packed[0] - 2 * packed[1], rtol=1e-5, atol=1e-5)
