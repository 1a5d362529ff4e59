"""Which device an engine runs on, and whether that device can do what the settings ask for."""

from __future__ import annotations

import torch

from paged_stream import ops
from paged_stream.config import EngineConfig

_LEAST_CAPABILITY = (8, 0)  # bfloat16 and asynchronous copies


def resolve_device(name: str | torch.device) -> torch.device:
    """Turn ``EngineConfig.device`` into a device.

    Raises:
        ValueError: there is no such device, or the op library has no kernels for it.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and ops.has_cuda() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: torch finds no CUDA device; use 'cpu' or 'auto'")
    if not ops.has_cuda():
        raise ValueError(
            f"device={name!r}: the op library paged_stream._C was built without CUDA; rebuild it "
            "with nvcc on the PATH or CUDA_HOME set"
        )
    index, count = torch.device(name).index, torch.cuda.device_count()
    if index is None:
        index = torch.cuda.current_device()
    if index >= count:
        raise ValueError(f"device={name!r}: there are {count} CUDA devices, from cuda:0 on")
    capability = torch.cuda.get_device_capability(index)
    if capability < _LEAST_CAPABILITY:
        raise ValueError(
            f"device={name!r} has compute capability {capability[0]}.{capability[1]}, needed is "
            f"{_LEAST_CAPABILITY[0]}.{_LEAST_CAPABILITY[1]} or later"
        )
    return torch.device("cuda", index)


def check_settings(config: EngineConfig, device: torch.device) -> None:
    """Refuse settings that the device cannot have.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    if device.type == "cpu":
        for name, value in (
            ("dtype", "float16"),
            ("kv_cache_dtype", "fp8"),
            ("attention_backend", "xformers"),
        ):
            if getattr(config, name) == value:
                raise ValueError(f"{name}={value!r} needs a CUDA device, but device is 'cpu'")
        return
    if config.attention_backend == "xformers" and (config.num_decode_steps or 1) > 1:
        raise ValueError(
            "attention_backend='xformers' looks at every step on the host, so num_decode_steps "
            f"must be 1 or None, got {config.num_decode_steps}"
        )
    if config.speculative_config is not None:
        raise ValueError(
            "speculative_config needs the CPU, where several tokens are computed with the bits of "
            f"single ones, got {config.speculative_config!r} for CUDA"
        )
    if config.quantization not in ("auto", None):
        raise ValueError(
            f"quantization={config.quantization!r} needs the CPU; on CUDA use None, or 'auto', "
            "which means None there"
        )


def prepare_device(device: torch.device) -> None:
    """Make matrix products accumulate in float32 throughout, whatever they are split into."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
