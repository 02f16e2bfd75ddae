"""Elements of a vector in other places of another one."""

import torch
from torch import Tensor

from pylandscape._checks import show


def rearrange(
    source: Tensor, elements: Tensor, segments: Tensor, out: Tensor, scale: float = 1.0
) -> Tensor:
    """Writes scale * source[elements - 1], and 0 where an element is 0, to segments of `out`.

    Args:
        source: [M], float32 or float64.
        elements: int32 [N], each from 0 to M; they are not looked at before they are used.
        segments: int64 [S, 3], of each the first place in `out`, how many there are, and the first
            of the `elements` that they take.
        out: float32; other places stay as they are.

    Returns:
        `out`.

    Raises:
        ValueError: dtypes or shapes do not fit, a tensor is not contiguous on the CPU, or a segment
            leaves `out` or `elements`.

    Example:
        >>> places = torch.tensor([[0, 2, 0], [3, 1, 2]])
        >>> order = torch.tensor([3, 0, 1], dtype=torch.int32)
        >>> rearrange(torch.tensor([5.0, 6.0, 7.0]), order, places, torch.ones(4), 10.0).tolist()
        [70.0, 0.0, 1.0, 50.0]
    """
    real, wide = (torch.float32, torch.float64), (torch.int64,)
    for name, tensor, dtypes, shape in (
        ("source", source, real, (len(source),)),
        ("elements", elements, (torch.int32,), (len(elements),)),
        ("segments", segments, wide, (len(segments), 3)),
        ("out", out, real[:1], (len(out),)),
    ):
        if (
            tensor.dtype not in dtypes
            or tensor.shape != shape
            or tensor.device.type != "cpu"
            or not tensor.is_contiguous()
        ):
            wanted = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(
                f"rearrange: {name} must be contiguous of shape {list(shape)}, {wanted} on the "
                f"CPU, got {show(tensor)}."
            )
    with torch.no_grad():
        torch.ops.pylandscape.rearrange(out, source, elements, segments, scale)
    return out


@torch.library.register_fake("pylandscape::rearrange")
def _(out: Tensor, source: Tensor, elements: Tensor, segments: Tensor, scale: float) -> None:
    return None
