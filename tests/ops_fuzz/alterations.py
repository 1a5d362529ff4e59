"""Alters the arguments of a valid call: values, shapes, strides, dtypes, devices, memory, lists."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

Draw = Callable[[st.SearchStrategy], Any]

NUMBERS = sorted(
    {
        sign * (2**bits + step)
        for bits in (0, 4, 16, 31, 32, 40, 61, 62, 63)
        for step in (-2, -1, 0, 1, 4)
        for sign in (1, -1)
    }
    | {0, 3, 7}
)
INTEGERS = [n for n in NUMBERS if -(2**63) <= n < 2**63]
FLOATS = [0.0, -0.0, 1e-300, 1e-46, 1e-5, 0.5, 1.0, 1.5, -1.0, 3e38, 1e300, math.inf, -math.inf]
FLOATS.append(math.nan)
# Dimensions of tensors without elements, which need no memory, and of rows without a stride.
SIZES = [0, 1, 2, 16, 2**16, 2**31 - 1, 2**31, 2**40, 2**62]
DTYPES = [
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8),
    *(torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn),
]
TEXTS = ["", "Q8_0", "Q6_K", "generic", "avx2", "mmx", "\0", "Q4_0\0", "é" * 300]

Path = tuple[int, ...]


def altered(draw: Draw, arguments: list) -> list:
    """The arguments with one of them, or one number of one, changed."""
    path = draw(st.sampled_from(list(_paths(arguments))))
    return _replaced(arguments, path, lambda value: _other(draw, value, arguments))


def _paths(arguments: list, prefix: Path = ()) -> Iterator[Path]:
    for index, value in enumerate(arguments):
        yield (*prefix, index)
        if isinstance(value, list):
            yield from _paths(value, (*prefix, index))


def _replaced(arguments: list, path: Path, change: Callable[[Any], Any]) -> list:
    index, *rest = path
    copy, value = list(arguments), arguments[index]
    copy[index] = _replaced(value, tuple(rest), change) if rest else change(value)
    return copy


def tensors_of(arguments: list) -> list[Tensor]:
    """All tensors of the arguments, in order."""
    found: list[Tensor] = []
    for value in arguments:
        found += tensors_of(value) if isinstance(value, list) else []
        found += [value] if isinstance(value, Tensor) else []
    return found


def _other(draw: Draw, value: Any, arguments: list) -> Any:
    if isinstance(value, Tensor):
        change = draw(
            st.sampled_from((_values, _values, _values, _shape, _strides, _kind, _memory))
        )
        return change(draw, value, arguments)
    if isinstance(value, list):
        return _list(draw, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return _integer(draw, value)
    if isinstance(value, float):
        return draw(st.sampled_from(FLOATS))
    if isinstance(value, str):
        return draw(st.sampled_from(TEXTS))
    return draw(st.sampled_from((torch.ones(2), torch.ones(0), 1, 0.5)))  # for None


def _integer(draw: Draw, value: int) -> int:
    near = [n for n in (value - 1, value + 1, -value, 2 * value) if -(2**63) <= n < 2**63]
    return draw(st.sampled_from((*near, *INTEGERS)))


def _list(draw: Draw, value: list) -> list:
    if not value:
        return [draw(st.sampled_from((0, torch.ones(2))))]
    place = draw(st.integers(0, len(value) - 1))
    without = value[:place] + value[place + 1 :]
    doubled = value[:place] + [value[place]] + value[place:]
    return draw(st.sampled_from((without, doubled, value[::-1], [])))


def _values(draw: Draw, tensor: Tensor, _: list) -> Tensor:
    """One element, or all of them, changed to a number that the dtype can hold."""
    if tensor.numel() == 0 or tensor.numel() > 10**6 or tensor.is_meta or tensor.is_sparse:
        return tensor
    changed = tensor.clone()
    flat = changed.view(-1) if changed.is_contiguous() else changed.reshape(-1)
    place = draw(st.integers(0, flat.numel() - 1))
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        number: Any = draw(st.sampled_from(FLOATS))
    elif tensor.dtype == torch.bool:
        number = draw(st.booleans())
    else:
        limits = torch.iinfo(tensor.dtype)
        number = min(max(_integer(draw, int(flat[place])), limits.min), limits.max)
    if draw(st.booleans()):
        flat[place] = number
    else:
        flat.fill_(number)
    return flat.view(tensor.shape)


def _shape(draw: Draw, tensor: Tensor, _: list) -> Tensor:
    if tensor.dim() == 0:
        return tensor.reshape(1)
    dim = draw(st.integers(0, tensor.dim() - 1))
    size = draw(st.sampled_from(SIZES))
    shape = list(tensor.shape)
    empty = [*shape[:dim], size, *shape[dim + 1 :]]
    empty[draw(st.integers(0, tensor.dim() - 1))] = 0
    return draw(
        st.sampled_from(
            (
                lambda: tensor.narrow(dim, 0, shape[dim] // 2),
                lambda: torch.cat((tensor, tensor), dim),
                lambda: tensor.unsqueeze(dim),
                lambda: tensor.select(dim, 0) if shape[dim] else tensor,
                lambda: tensor.flatten(),
                lambda: tensor.new_empty(empty),
                lambda: tensor[:0],
            )
        )
    )()


def _strides(draw: Draw, tensor: Tensor, _: list) -> Tensor:
    if tensor.dim() == 0 or tensor.numel() == 0:
        return tensor
    dim = draw(st.integers(0, tensor.dim() - 1))
    shape, stride = list(tensor.shape), list(tensor.stride())
    many = draw(st.sampled_from(SIZES))
    one = [1 if index == dim else size for index, size in enumerate(shape)]
    far = [2**62 - 1 if index == dim else step for index, step in enumerate(stride)]
    return draw(
        st.sampled_from(
            (
                lambda: tensor.transpose(0, dim),
                lambda: torch.stack((tensor, tensor), -1)[..., 0],
                lambda: torch.cat((tensor, tensor), dim).narrow(dim, 0, shape[dim]),
                lambda: tensor.narrow(dim, 0, 1).expand(shape),
                lambda: tensor.narrow(dim, 0, 1).expand(
                    [many if index == dim else size for index, size in enumerate(shape)]
                ),
                lambda: tensor.as_strided(one, far),
                lambda: tensor.as_strided(
                    shape, [0 if index == dim else step for index, step in enumerate(stride)]
                ),
            )
        )
    )()


def _kind(draw: Draw, tensor: Tensor, _: list) -> Any:
    dtype = draw(st.sampled_from(DTYPES))
    return draw(
        st.sampled_from(
            (
                lambda: tensor.to(dtype),
                lambda: tensor.to(dtype),
                lambda: tensor.view(dtype) if tensor.shape and tensor.shape[-1] else tensor,
                lambda: tensor.to("meta"),
                lambda: tensor.to_sparse(),
                lambda: tensor.detach().float().requires_grad_(),
                lambda: None,
            )
        )
    )()


def _memory(draw: Draw, tensor: Tensor, arguments: list) -> Tensor:
    """A tensor of the same shape, contiguous, in the memory of another argument."""
    other = draw(st.sampled_from(tensors_of(arguments)))
    size = tensor.numel() * tensor.element_size()
    if other.is_meta or other.is_sparse or other.untyped_storage().nbytes() < size or not size:
        return tensor
    memory = torch.empty(0, dtype=torch.uint8).set_(other.untyped_storage())
    return memory[:size].view(tensor.dtype).view(tensor.shape)
