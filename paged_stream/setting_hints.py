"""Names that users of other engines may try in `EngineConfig`, and what to write here."""

from __future__ import annotations

from dataclasses import fields

from paged_stream.scheduler.sampling_params import SamplingParams

_LENGTH = (
    "texts may be of any length here, and window_size + num_sink_tokens is how many tokens each "
    "token sees; write window_size=N"
)
_STAY = "weights stay on the device; quantization='int8' or 'int4' makes them smaller"
_ADAPTERS = (
    "adapters need no setting; pass lora_request=LoRARequest(...) to generate or open_stream"
)

OTHER_ENGINES = {
    "max_model_len": _LENGTH,
    "max_seq_len": _LENGTH,
    "max_length": _LENGTH,
    "context_length": _LENGTH,
    "n_ctx": _LENGTH,
    "sliding_window": _LENGTH,
    "attention_sink_window_size": "write window_size",
    "recent_size": "write window_size",
    "attention_sink_size": "write num_sink_tokens",
    "start_size": "write num_sink_tokens",
    "trust_remote_code": "code that comes with a model is never run; leave it out",
    "enforce_eager": "enforce_eager=True elsewhere is cuda_graphs=False here",
    "enable_chunked_prefill": "prompts are always computed in chunks; leave it out",
    "tokenizer_mode": "leave it out",
    "skip_tokenizer_init": "token ids as prompts need no tokenizer; leave it out",
    "torch_dtype": "write dtype",
    "device_map": "write device, or tensor_parallel_size for several GPUs",
    "n_gpu_layers": "a model is on one device as a whole; write device",
    "n_threads": "write num_threads",
    "n_batch": "write max_num_batched_tokens",
    "load_in_8bit": "write quantization='int8'",
    "load_in_4bit": "write quantization='int4'",
    "quantization_config": "write quantization",
    "attn_implementation": "write attention_backend",
    "swap_space": "write parking_memory_bytes, the host memory for idle streams",
    "cpu_offload_gb": _STAY,
    "num_gpu_blocks_override": "write kv_cache_memory_bytes",
    "num_scheduler_steps": "write num_decode_steps",
    "pipeline_parallel_size": "write tensor_parallel_size",
    "data_parallel_size": "write RayLLM(..., num_replicas=...)",
    "download_dir": "models from the hub go where HF_HOME says; cache_dir is for converted ones",
    "revision": "write it behind the model's name: model='org/name@revision'",
    "load_format": "the files say their format; leave it out",
    "hf_token": "set HF_TOKEN",
    "enable_lora": _ADAPTERS,
    "max_loras": _ADAPTERS,
    "max_lora_rank": _ADAPTERS,
    "max_cpu_loras": _ADAPTERS,
    "speculative_model": "write speculative_config",
    "num_speculative_tokens": "write speculative_config",
    "ngram_prompt_lookup_max": "write speculative_config",
    "ngram_prompt_lookup_min": "write speculative_config",
    "prompt_lookup_num_tokens": "write speculative_config",
}
HINTS = OTHER_ENGINES | {
    field.name: "it belongs to SamplingParams, which generate and chat take"
    for field in fields(SamplingParams)
    if field.name != "seed"
}
