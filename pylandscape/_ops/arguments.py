"""Checks of arguments that several operators share."""

import torch
from torch import Tensor

from pylandscape._checks import show


def alike(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.device == b.device


def vector_size(function: str, name: str, vector: Tensor) -> int:
    if vector.ndim != 1 or not vector.is_floating_point():
        raise ValueError(f"{function}: {name} must be a real vector [P], got {show(vector)}.")
    return vector.numel()


def checked_coordinates(center: Tensor, coordinates: Tensor, count: int) -> Tensor:
    if coordinates.ndim != 2 or coordinates.shape[1] != count:
        raise ValueError(
            f"perturb: coordinates must have shape [K, {count}], a column per direction, got "
            f"{show(coordinates)}."
        )
    return coordinates.to(center.device, center.dtype).contiguous()


def room_for_points(center: Tensor, coordinates: Tensor, out: Tensor | None) -> Tensor:
    shape = (len(coordinates), center.numel())
    if out is None:
        return center.new_empty(shape)
    if out.shape != shape or not out.is_contiguous() or not alike(out, center):
        raise ValueError(
            f"perturb: out must be contiguous of shape {list(shape)}, {center.dtype} on "
            f"{center.device} like the center, got {show(out)} on {out.device}."
        )
    return out


def checked_seeds(function: str, seeds: Tensor | int) -> Tensor:
    streams = torch.tensor([seeds]) if isinstance(seeds, int) else seeds.cpu()
    if streams.ndim != 1 or streams.dtype != torch.int64:
        raise ValueError(f"{function}: seeds must be int64 of shape [D], got {show(streams)}.")
    return streams.contiguous()


def checked_table(function: str, filter_table: Tensor) -> Tensor:
    table = filter_table
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype != torch.int64:
        raise ValueError(
            f"{function}: filter_table must be int64 of shape [T, 4], got {show(table)}."
        )
    return table.cpu().contiguous()
