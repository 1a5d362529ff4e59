"""Attention by xformers: an alternative to the project's own kernels on CUDA.

Chunks go through copies of their keys, gathered from the blocks, and `memory_efficient_attention_
partial`; single tokens through its split-K kernel, which reads the blocks themselves. For that one
every KV head of a sequence is a sequence of its own, since a page of it is a block of one head.
Sinks and window are separate calls, merged by their log-sum-exp. Segments are planned on the host
once per step, so this backend needs the batch there too, and cannot run in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from paged_stream import ops
from paged_stream.attention.backend import AttentionBackend
from paged_stream.attention.forward_batch import ForwardBatch
from paged_stream.attention.segments import (
    Segment,
    block_tables,
    key_slots,
    split_step,
    token_indices,
)

_HEAD_DIMS = (32, 64, 128, 256)
_DTYPES = (torch.float16, torch.bfloat16)


class Kernels(NamedTuple):
    """What is used of xformers: two functions, the module of masks, and the paged operator for
    blocks of a given size."""

    partial: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    merge: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
    masks: Any
    paged_operator: Callable[[int], Any]


def load_kernels() -> Kernels:
    """Import xformers.

    Raises:
        ImportError: it is not installed, or not for this torch.
    """
    try:
        from xformers.ops import fmha
        from xformers.ops.fmha import attn_bias, triton_splitk
    except ImportError as error:
        raise ImportError(
            "attention_backend='xformers' needs xformers, which does not import here "
            f"({error}); install it with `pip install xformers` or use attention_backend='native'"
        ) from error

    @cache
    def paged_operator(block_size: int) -> Any:
        # The kernel goes through pages in steps that must divide them.
        step = next(n for n in (64, 32, 16) if block_size % n == 0)
        return type(f"FwOp_{step}", (triton_splitk.FwOp,), {"BLOCK_N": step})

    return Kernels(
        fmha.memory_efficient_attention_partial, fmha.merge_attentions, attn_bias, paged_operator
    )


@dataclass(frozen=True, slots=True)
class Call:
    """One call of xformers in every layer of a step.

    Args:
        tokens: int64 [N], indices into the batch; ``None`` for the whole batch.
        mask: xformers' mask.
        slots: int64, of the keys to gather; ``None`` to read the blocks that the mask names.
    """

    tokens: torch.Tensor | None
    mask: Any
    slots: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Plan:
    """Calls of one step: all tokens are in one of ``own``, and some in one of ``sinks`` beside."""

    own: list[Call]
    sinks: list[Call]


class XformersBackend(AttentionBackend):
    """Models and settings that pass `check`, on CUDA.

    Args:
        kernels: to use instead of xformers', for tests.
    """

    needs_host_batch = True

    def __init__(self, kernels: Kernels | None = None) -> None:
        self._kernels = kernels or load_kernels()
        self._planned: tuple[ForwardBatch, Plan] | None = None

    @staticmethod
    def check(
        *,
        head_dim: int,
        block_size: int,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        features: Sequence[str],
    ) -> None:
        """Refuse what xformers does not compute.

        Args:
            features: of the model, in words, of which it computes none.

        Raises:
            ValueError: names all of it.
        """
        problems = list(features)
        if dtype not in _DTYPES:
            problems.append(f"dtype {dtype} (it takes float16 and bfloat16)")
        elif kv_dtype != dtype:
            problems.append(f"a KV cache of {kv_dtype}")
        if head_dim not in _HEAD_DIMS:
            problems.append(f"head_dim {head_dim} (it takes {', '.join(map(str, _HEAD_DIMS))})")
        if block_size % 16:
            problems.append(f"block_size {block_size} (it takes multiples of 16)")
        if problems:
            raise ValueError(
                f"attention_backend='xformers' cannot compute {'; '.join(problems)}; use 'native'"
            )

    def forward(
        self,
        query: torch.Tensor,
        sink_query: torch.Tensor | None,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: ForwardBatch,
        scoring: ops.Scoring,
    ) -> torch.Tensor:
        scale = scoring.scale
        assert scoring == ops.Scoring(scale), "see check"
        plan = self._plan(batch, k_cache)
        num_tokens, num_heads, _ = query.shape
        # Parts are merged in float32 and rounded once.
        output = query.new_empty(query.shape, dtype=torch.float32)
        lse = query.new_empty(num_heads, num_tokens, dtype=torch.float32)
        for call in plan.own:
            part, part_lse = self._attend(call, query, k_cache, v_cache, scale)
            if call.tokens is None:
                output, lse = part, part_lse
            else:
                output[call.tokens] = part
                lse[:, call.tokens] = part_lse
        for call in plan.sinks:
            sink_part = self._attend(
                call, query if sink_query is None else sink_query, k_cache, v_cache, scale
            )
            window_part = output, lse
            if call.tokens is not None:
                window_part = output[call.tokens], lse[:, call.tokens]
            merged = self._merge(window_part, sink_part)
            if call.tokens is None:
                output = merged
            else:
                output[call.tokens] = merged
        return output.to(query.dtype)

    def _merge(self, *parts: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Merge outputs [N, num_heads, head_dim] by their lse, [num_heads, N]."""
        outputs = [output[None] for output, _ in parts]
        lses = [lse.contiguous()[None] for _, lse in parts]
        merged, _ = self._kernels.merge(
            outputs, lses, write_lse=False, output_dtype=outputs[0].dtype
        )
        return merged[0]

    def _attend(
        self,
        call: Call,
        query: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output [N, num_heads, head_dim] and lse [num_heads, N] of a call's tokens, float32."""
        if call.tokens is not None:
            query = query[call.tokens]
        num_kv_heads, head_dim = k_cache.shape[1], k_cache.shape[3]
        heads = query.reshape(len(query), num_kv_heads, -1, head_dim)
        group = heads.shape[2]
        if call.slots is not None:
            gathered = ops.gather_blocks(k_cache, v_cache, call.slots)
            key, value = (x[None, :, :, None].expand(-1, -1, -1, group, -1) for x in gathered)
            output, lse = self._kernels.partial(heads[None], key, value, call.mask, scale=scale)
            return output[0].flatten(1, 2).float(), lse[0].flatten(0, 1).float()
        # Rows of every head of every block, end to end.
        key, value = (
            x.view(1, -1, 1, head_dim).expand(-1, -1, group, -1) for x in (k_cache, v_cache)
        )
        output, lse = self._kernels.partial(
            heads.reshape(1, -1, group, head_dim),
            key,
            value,
            call.mask,
            scale=scale,
            op=self._kernels.paged_operator(k_cache.shape[2]),
        )
        lse = lse[0].reshape(group, -1, num_kv_heads).permute(2, 0, 1)
        return output.reshape(len(query), -1, head_dim).float(), lse.flatten(0, 1).float()

    def _plan(self, batch: ForwardBatch, k_cache: torch.Tensor) -> Plan:
        if self._planned is None or self._planned[0] is not batch:
            host = batch.host
            assert host is not None, "see needs_host_batch"
            own, sinks = split_step(host)
            self._planned = (
                batch,
                Plan(*(self._calls(segments, host, k_cache) for segments in (own, sinks))),
            )
        return self._planned[1]

    def _calls(
        self, segments: list[Segment], host: ops.BatchTensors, k_cache: torch.Tensor
    ) -> list[Call]:
        """Put segments together that one call can compute: single tokens, which need no mask, and
        those whose masks have the same window."""
        device, block_size = k_cache.device, k_cache.shape[2]
        groups: dict[tuple[bool, int | None], list[Segment]] = {}
        for segment in segments:
            is_single = segment.num_tokens == 1
            groups.setdefault((is_single, None if is_single else segment.window), []).append(
                segment
            )
        calls = []
        for (is_single, window), members in groups.items():
            tokens = token_indices(members)
            if is_single:
                mask, slots = self._paged_mask(members, host, k_cache), None
            else:
                mask = self._dense_mask(members, window, device)
                slots = key_slots(members, host, block_size).to(device)
            # Segments are in the order of their tokens, so one group of all is the whole batch.
            is_all = len(tokens) == len(host.slot_mapping)
            calls.append(Call(None if is_all else tokens.to(device), mask, slots))
        return calls

    def _dense_mask(self, segments: list[Segment], window: int | None, device: torch.device) -> Any:
        lengths = [s.num_tokens for s in segments], [s.num_keys for s in segments]
        mask = self._kernels.masks.BlockDiagonalMask.from_seqlens(*lengths, device=device)
        if not segments[0].is_causal:
            return mask
        if window is None:
            return mask.make_causal_from_bottomright()
        return mask.make_local_attention_from_bottomright(window)

    def _paged_mask(
        self, segments: list[Segment], host: ops.BatchTensors, k_cache: torch.Tensor
    ) -> Any:
        num_kv_heads, block_size, device = k_cache.shape[1], k_cache.shape[2], k_cache.device
        tables, offsets = block_tables(segments, host, block_size)
        tables = tables.to(device)[:, None] * num_kv_heads
        heads = torch.arange(num_kv_heads, dtype=torch.int32, device=device)
        tables = (tables + heads[:, None]).flatten(0, 1)
        row_size = tables.shape[1] * block_size
        starts = [offset for offset in offsets for _ in range(num_kv_heads)]
        lengths = [s.num_keys for s in segments for _ in range(num_kv_heads)]
        masks = self._kernels.masks
        # As if each row of the table had its own stretch of keys; made paged, it does not.
        mask = masks.BlockDiagonalGappyKeysMask.from_seqlens(
            [1] * len(starts),
            [*(i * row_size + start for i, start in enumerate(starts)), len(starts) * row_size],
            lengths,
            device=device,
        )
        return mask.make_paged(tables, block_size, row_size, masks.PagedBlockDiagonalGappyKeysMask)
