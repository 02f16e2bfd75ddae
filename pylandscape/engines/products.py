"""Convolutions and linear layers: which kernel takes each, and how its weights are packed."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from pylandscape.engines import packing, records
from pylandscape.engines.layout import Slot, image_shape, round_up
from pylandscape.engines.lowering import Lowering, State, paddings
from pylandscape.engines.program import Node, NotCovered
from pylandscape.engines.records import NONE, Activation, Epilogue, FusedPool, Tiles

WINOGRAD_BYTES = 384 << 10  # of transformed tiles at once
WINOGRAD_TILES = 4096  # at once, at most
# Work per output of F(2x2) and F(4x4) with their transforms, against 9 products for direct sums.
WINOGRAD_COST = {2: 16 / 4 * 1.5, 4: 36 / 16 * 1.4}
WINOGRAD_CHANNELS = 16
MAX_SEGMENTS = 256  # of the segment GEMM
TILE_ROWS = 16  # of the processor's bfloat16 tiles
MAX_NARROW = 8  # output channels of the kernel for one input channel
_MONOTONE = (Activation.NONE, Activation.RELU)


def lower_conv(low: Lowering, node: Node) -> None:
    weight = node.tensors["weight"]
    out_channels, group_in, *_ = low.shapes[weight]
    groups = node.attrs["groups"]
    source = low.slot(node.inputs[0], "first")
    bias = low.pack_vector(node.tensors.get("bias"))
    depthwise = groups > 1 and group_in == 1 and out_channels == groups
    even = groups == 1 or (out_channels // groups) % low.lanes == 0
    value, epilogue, residual = low.fuse(node, bias, may_add=even and not depthwise)
    reads = [source] + ([residual] if residual is not None else [])
    if depthwise:
        _depthwise(low, node, source, value, epilogue, weight)
    elif residual is None and _is_narrow(low, node, low.slots[source]):
        _narrow(low, node, source, value, epilogue, weight)
    elif _fits_tiles(low, node, source):
        _tile_convolution(low, node, source, value, epilogue, reads)
    elif _winograd_tile(low, node, source):
        _winograd(low, node, source, value, epilogue, reads)
    else:
        _direct(low, node, source, value, epilogue, reads)


def _conv_halo(low: Lowering, node: Node, slot: Slot) -> tuple[int, int]:
    """Makes room around the input for what the windows reach; returns the leading padding."""
    (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
    (dh, dw) = node.attrs["dilation"]
    shape = image_shape(low.program.values[node.output].shape, "first")
    (top, left), _ = paddings(node)
    bottom = (shape[1] - 1) * sh + (kh - 1) * dh + 1 - top - slot.height
    right = (shape[2] - 1) * sw + (kw - 1) * dw + 1 - left - slot.width
    slot.need_halo(top, max(0, bottom), left, max(0, right))
    return top, left


def _direct(
    low: Lowering, node: Node, source: int, value: int, epilogue: Epilogue, reads: list[int]
) -> None:
    weight = node.tensors["weight"]
    out_channels, group_in, *_ = low.shapes[weight]
    (kh, kw), groups, slot = node.attrs["kernel"], node.attrs["groups"], low.slots[source]
    (sh, sw), (dh, dw) = node.attrs["stride"], node.attrs["dilation"]
    top, left = _conv_halo(low, node, slot)
    # Whole kernel rows are one run of memory; not where they would be mostly padding.
    by_row = groups == 1 and dw == 1
    by_row = by_row and slot.pixel_pitch <= 1.25 * group_in
    if (kh if by_row else kh * kw) > MAX_SEGMENTS:
        raise NotCovered("has a kernel too large for the native engine", "conv", node.source)
    pitch, lanes = slot.pixel_pitch, low.lanes
    depth = kh * kw * (pitch if by_row else group_in)
    weights = low.pack(
        groups * round_up(out_channels // groups, lanes) * depth,
        lambda state: packing.direct_filters(state[weight], groups, pitch, by_row, lanes),
    )
    # Pooled in registers, after the rest of the epilogue.
    poolable = groups == 1 and epilogue.residual == NONE
    value, pool = low.fuse_pool(value, (FusedPool.MAX, FusedPool.AVERAGE) if poolable else ())
    out = low.add_slot(value, "first")
    if groups > 1 and (out_channels // groups) % lanes:
        low.slots[out].dedicated = True
    low.draft(
        reads,
        out,
        lambda: records.Convolution(
            source, out, weights, epilogue, kh, kw, sh, sw, top, left, dh, dw,
            groups, group_in, out_channels // groups, by_row, pool,
        ),
        f"conv {kh}x{kw} direct" + (f" with {pool.name.lower()} pool 2x2" if pool else ""),
    )  # fmt: skip


def _is_narrow(low: Lowering, node: Node, source: Slot) -> bool:
    """One channel in and few out: pixels fill the vectors better than channels do."""
    out_channels, group_in, *_ = low.shapes[node.tensors["weight"]]
    return (
        source.pixel_pitch == group_in == node.attrs["groups"] == 1
        and out_channels <= min(MAX_NARROW, low.lanes // 2)
        and node.attrs["stride"] == node.attrs["dilation"] == (1, 1)
    )


def _narrow(
    low: Lowering, node: Node, source: int, value: int, epilogue: Epilogue, weight: str
) -> None:
    pads = _conv_halo(low, node, low.slots[source])
    (kh, kw), size = node.attrs["kernel"], torch.Size(low.shapes[weight]).numel()
    weights = low.pack(size, lambda state: packing.narrow_filters(state[weight]))
    value, pool = low.fuse_pool(value, (FusedPool.MAX, FusedPool.AVERAGE))
    # Its pixels are stored float by float, so they need no padding for a reader of floats.
    dense = all(low.reads_dense(reader, value) for reader in low.consumers.get(value, []))
    out = low.add_slot(value, "first", dense=dense and value != low.program.output)
    low.slots[out].dedicated = not low.slots[out].dense
    low.draft(
        [source],
        out,
        lambda: records.Narrow(source, out, weights, epilogue, kh, kw, *pads, pool),
        f"conv {kh}x{kw} narrow" + (f" with {pool.name.lower()} pool 2x2" if pool else ""),
    )


def _fits_tiles(low: Lowering, node: Node, source: int) -> bool:
    """Whether a product may run in bfloat16 on tiles: whole vectors of input channels."""
    a, slot = node.attrs, low.slots[source]
    plain = node.op == "linear" or (a["groups"] == 1 and a["dilation"][1] == 1)
    return low.precision == "bf16" and plain and slot.pixel_pitch % 16 == 0


def _pack_pairs(low: Lowering, size: int, depth: int, make: Callable[[State], Tensor]) -> int:
    """Packs panels for tiles; every point rounds them."""
    offset = low.pack(size, lambda state: packing.pair_panels(make(state), depth, low.lanes))
    low.roundings.append(records.Rounding(offset, size))
    return offset


def _tile_convolution(
    low: Lowering, node: Node, source: int, value: int, epilogue: Epilogue, reads: list[int]
) -> None:
    weight, slot, lanes = node.tensors["weight"], low.slots[source], low.lanes
    (kh, kw), (sh, sw), dilation = (node.attrs[n] for n in ("kernel", "stride", "dilation"))
    pads, pitch = _conv_halo(low, node, slot), slot.pixel_pitch
    depth = kh * kw * pitch
    weights = _pack_pairs(
        low,
        round_up(low.shapes[weight][0], lanes) * depth,
        depth,
        lambda state: packing.direct_filters(state[weight], 1, pitch, True, lanes),
    )
    out = low.add_slot(value, "first")
    result = low.slots[out]

    def reach() -> int:  # from the first to the last float that a window covers
        rows = (result.height - 1) * sh + (kh - 1) * dilation[0]
        pixels = (result.width - 1) * sw + kw
        return round_up(rows * slot.row_pitch + pixels * pitch, 16)

    def scratch() -> int:  # two bfloat16 to a float; idle tile rows read on behind the end
        return (reach() + 2 * TILE_ROWS * sw * pitch) // 2 + 32

    low.draft(
        reads,
        out,
        lambda: records.TileConvolution(
            source, out, weights, epilogue, kh, kw, sh, sw, *pads, dilation[0],
            low.scratch_offset, reach(),
        ),
        f"conv {kh}x{kw} bfloat16",
        scratch=scratch,
    )  # fmt: skip


def _depthwise(
    low: Lowering, node: Node, source: int, value: int, epilogue: Epilogue, weight: str
) -> None:
    top, left = _conv_halo(low, node, low.slots[source])
    (kh, kw), lanes = node.attrs["kernel"], low.lanes
    (sh, sw), (dh, dw) = node.attrs["stride"], node.attrs["dilation"]
    weights = low.pack(
        kh * kw * round_up(low.shapes[weight][0], lanes),
        lambda state: packing.depthwise_filters(state[weight], lanes),
    )
    out = low.add_slot(value, "first")
    low.draft(
        [source],
        out,
        lambda: records.Depthwise(
            source, out, weights, epilogue, kh, kw, sh, sw, top, left, dh, dw,
        ),
        f"conv {kh}x{kw} depthwise",
    )  # fmt: skip


def winograd_tile(channels: int, pitch: int, height: int, width: int) -> int:
    """2 or 4 where a 3x3 convolution of stride 1 takes less work in the Winograd domain, else 0.

    Args:
        channels: of the input, which lie `pitch` apart.
        height, width: of the output.
    """
    if channels < WINOGRAD_CHANNELS:
        return 0

    def cost(tile: int) -> float:
        return WINOGRAD_COST[tile] * round_up(height, tile) * round_up(width, tile) * pitch

    best = min(WINOGRAD_COST, key=cost)
    return best if cost(best) < 9 * height * width * channels else 0


def winograd_room(
    tile: int, in_pitch: int, out_pitch: int, inputs: int = 1
) -> tuple[int, int, int]:
    """Floats of a transformed tile of inputs and one of outputs, and how many run at once."""
    frequencies = (tile + 2) ** 2
    at_once = WINOGRAD_BYTES // (4 * frequencies * (in_pitch + out_pitch))
    # tiles must not be whole pages apart
    return (
        frequencies * in_pitch + 16,
        frequencies * out_pitch + 16,
        max(8, min(WINOGRAD_TILES, at_once)),
    )


def _winograd_tile(low: Lowering, node: Node, source: int) -> int:
    a, slot = node.attrs, low.slots[source]
    simple = a["kernel"] == (3, 3) and a["stride"] == (1, 1) and a["dilation"] == (1, 1)
    if low.precision != "fast" or not simple or a["groups"] != 1:
        return 0
    _, height, width = image_shape(low.program.values[node.output].shape, "first")
    return winograd_tile(low.shapes[node.tensors["weight"]][1], slot.pixel_pitch, height, width)


def _winograd(
    low: Lowering, node: Node, source: int, value: int, epilogue: Epilogue, reads: list[int]
) -> None:
    weight, slot, lanes = node.tensors["weight"], low.slots[source], low.lanes
    out_channels, *_ = low.shapes[weight]
    tile = _winograd_tile(low, node, source)
    # the maximum may be taken before a monotone function
    monotone = epilogue.activation in _MONOTONE and epilogue.residual == NONE
    value, pool = low.fuse_pool(value, (FusedPool.MAX,) if monotone else ())
    out = low.add_slot(value, "first")
    result = low.slots[out]
    covered = [n * (2 if pool else 1) for n in (result.height, result.width)]
    tiles_h, tiles_w = (-(-n // tile) for n in covered)
    (top, left), _ = paddings(node)
    slot.need_halo(
        top, max(0, tiles_h * tile + 2 - top - slot.height),
        left, max(0, tiles_w * tile + 2 - left - slot.width),
    )  # fmt: skip
    pitch, frequencies = slot.pixel_pitch, (tile + 2) ** 2
    weights = low.pack(
        frequencies * round_up(out_channels, lanes) * pitch,
        lambda state: packing.winograd_filters(state[weight], tile, pitch, lanes),
    )
    in_pitch, out_pitch, at_once = winograd_room(tile, pitch, result.pixel_pitch)
    low.draft(
        reads,
        out,
        lambda: records.Winograd(
            source, out, weights, epilogue,
            Tiles(tile, top, left, tiles_h, tiles_w, at_once, low.scratch_offset,
                  in_pitch, out_pitch),
            pool,
        ),
        f"conv 3x3 Winograd F({tile}x{tile})" + (" with max_pool 2x2" if pool else ""),
        scratch=lambda: at_once * (in_pitch + out_pitch) + lanes,
    )  # fmt: skip


def lower_linear(low: Lowering, node: Node) -> None:
    weight = node.tensors["weight"]
    outputs, inputs = low.shapes[weight]
    by_pixel = len(low.program.values[node.inputs[0]].shape) > 1
    source, features = linear_source(low, node, inputs)
    slot, lanes = low.slots[source], low.lanes
    columns = functools.partial(linear_columns, slot, features, inputs, by_pixel)
    depth = (1 if by_pixel else slot.height * slot.width) * slot.pixel_pitch
    size = round_up(outputs, lanes) * depth

    def panels(state: State) -> Tensor:
        return packing.linear_weights(state[weight], columns(), lanes)

    # A Linear that comes first is formed per direction, in float32 and once for all points.
    on_tiles = (
        _fits_tiles(low, node, source)
        and not by_pixel
        and depth % 16 == 0
        and low.packed > 0
        and _is_sole_reader(low, node)
    )
    weights = _pack_pairs(low, size, depth, panels) if on_tiles else low.pack(size, panels)
    if weights == 0:
        low.first_linear_size = low.packed
    bias = low.pack_vector(node.tensors.get("bias"))
    value, epilogue, residual = low.fuse(node, bias)
    out = low.add_slot(value, "last" if by_pixel else "first")

    def make() -> records.Step:
        if on_tiles:
            return records.TileLinear(
                source, out, weights, epilogue, depth, outputs, low.scratch_offset
            )
        if by_pixel:
            segments = (1, slot.pixel_pitch, 0)
        elif slot.left == slot.right == 0:
            segments = (1, slot.height * slot.row_pitch, 0)
        else:
            segments = (slot.height, slot.width * slot.pixel_pitch, slot.row_pitch)
        return records.Linear(source, out, weights, epilogue, *segments, outputs, by_pixel)

    reads = [source] + ([residual] if residual is not None else [])
    label = f"linear {inputs} -> {outputs}" + (" bfloat16" if on_tiles else "")
    rows = (lambda: low.block + 2 * TILE_ROWS) if on_tiles else (lambda: 0)
    low.draft(reads, out, make, label, scratch=lambda: rows() * depth // 2 + 32)


def _is_sole_reader(low: Lowering, node: Node) -> bool:
    """Whether nothing else reads what a Linear reads, so that it has no halo."""
    value = node.inputs[0]
    producer = next((n for n in low.program.nodes if n.output == value), None)
    flattened = producer.inputs if producer is not None and producer.op == "reindex" else ()
    return all(len(low.consumers[v]) == 1 for v in (value, *flattened))


def linear_columns(slot: Slot, features: Tensor, inputs: int, by_pixel: bool) -> Tensor:
    """The input of a Linear that each float of a row of its source is, -1 where it is none."""
    if by_pixel:
        room = torch.full((slot.pixel_pitch,), -1)
        room[:inputs] = torch.arange(inputs)
        return room
    room = torch.full((slot.height, slot.width, slot.pixel_pitch), -1)
    logical = features.reshape(slot.channels, slot.height, slot.width)
    if slot.order == "last":
        logical = features.reshape(slot.height, slot.width, slot.channels).movedim(2, 0)
    room[:, :, : slot.channels] = logical.permute(1, 2, 0)
    return room.reshape(-1)


def linear_source(low: Lowering, node: Node, inputs: int) -> tuple[int, Tensor]:
    """The slot a Linear reads, and the feature that each of its elements (torch order) is."""
    value = node.inputs[0]
    identity = torch.arange(inputs)
    if len(low.program.values[value].shape) == 1 and value not in low.slot_of:
        producer = next(n for n in low.program.nodes if n.output == value)
        features = low.columns(producer)
        if features is not None:
            return low.any_slot(producer.inputs[0]), features
    return low.slot(value, "last"), identity
