"""xformers' two functions in plain torch: what its masks say, taken from their `materialize`."""

from __future__ import annotations

import dataclasses

import torch

from paged_stream.attention.xformers import Kernels


def kernels(masks) -> Kernels:
    return Kernels(partial, merge, masks, lambda block_size: f"pages of {block_size}")


def partial(query, key, value, mask, *, scale, op=None):
    """Output, in the shape of the query, and lse [1, (G,) H, M]."""
    is_paged = hasattr(mask, "block_tables")
    assert is_paged == (op is not None), "only blocks need the operator for them"
    bias = (_paged_bias if is_paged else _dense_bias)(mask, query.shape[1], key.shape[1])
    seen = (bias == 0).any(0)  # what nobody sees may be NaN
    shape, dtype = query.shape, query.dtype
    query, key, value = (_heads(x).double() for x in (query, key[:, seen], value[:, seen]))
    scores = torch.einsum("mhk,nhk->hmn", query, key) * scale + bias[:, seen]
    lse = scores.logsumexp(-1)
    assert lse.isfinite().all(), "a token without a key"
    output = torch.einsum("hmn,nhk->mhk", scores.softmax(-1), value)
    # The operator for blocks gives its parts in more than the queries' precision.
    dtypes = (torch.float32, torch.float64) if is_paged else (dtype, torch.float32)
    return output.reshape(shape).to(dtypes[0]), lse.reshape(1, *shape[2:-1], -1).to(dtypes[1])


def _heads(x):
    return x[0].flatten(1, -2)


def _dense_bias(mask, num_tokens, num_keys):
    return mask.materialize((num_tokens, num_keys), dtype=torch.float64)


def _paged_bias(mask, num_tokens, num_keys):
    """As `materialize` says, in which a padded column would hide the block that it names."""
    page_size, tables = mask.page_size, mask.block_tables
    used = torch.tensor(mask.k_seqinfo.seqlen_py)[:, None] > (
        torch.arange(tables.shape[1]) * page_size
    )
    num_pages = num_keys // page_size
    assert tables.min() >= 0 and tables.max() < num_pages
    padded = dataclasses.replace(mask, block_tables=torch.where(used, tables, num_pages))
    bias = padded.materialize((num_tokens, tables.numel() * page_size), dtype=torch.float64)
    bias = bias[:, :num_keys]
    missing = num_keys - bias.shape[1]
    return torch.nn.functional.pad(bias, (0, missing), value=-torch.inf)


def merge(outputs, lses, *, write_lse, output_dtype):
    weights = torch.stack(lses).softmax(0)  # [2, 1, heads, M]
    merged = (torch.stack(outputs) * weights.transpose(2, 3)[..., None]).sum(0)
    return merged.to(output_dtype), None
