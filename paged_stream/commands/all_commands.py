"""The commands of ``paged-stream``, in the order of its help."""

from __future__ import annotations

from paged_stream.commands import (
    attention_map,
    batch,
    chat,
    dialogue,
    generate,
    info,
    lm_eval,
    models,
    perplexity,
    serve,
    streameval,
)

COMMANDS = (
    generate.COMMAND,
    chat.COMMAND,
    batch.COMMAND,
    serve.COMMAND,
    info.COMMAND,
    models.COMMAND,
    perplexity.COMMAND,
    streameval.COMMAND,
    dialogue.COMMAND,
    attention_map.COMMAND,
    lm_eval.COMMAND,
)
