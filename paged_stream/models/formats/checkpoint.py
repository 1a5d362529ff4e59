"""Filling a decoder's parameters from a model folder, one memory-mapped tensor at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import torch

from paged_stream.layers.blocks import Blocks
from paged_stream.layers.large_pages import zeros_in_large_pages
from paged_stream.models.decoder import Decoder
from paged_stream.models.family import Family, Weight
from paged_stream.models.formats.consolidated import ConsolidatedShard
from paged_stream.models.formats.files import ModelFiles
from paged_stream.models.formats.finite import Largest, remember_largest, remembered_largest
from paged_stream.models.formats.lora import merged
from paged_stream.models.formats.quantized_safetensors import QuantizedShard
from paged_stream.models.formats.shards import FLOAT_TYPES, PickledShard, SafetensorsShard, Shard
from paged_stream.models.formats.weight_files import checkpoint_paths
from paged_stream.models.model_config import ModelConfig
from paged_stream.models.sharding import WHOLE, Rank, part_of
from paged_stream.system.progress_bar import DELAY_SECONDS, progress_bar
from paged_stream.system.short_text import first_few, some

logger = logging.getLogger(__name__)

# Below, looking at all numbers takes less time than anybody notices.
SMALL_BYTES = 64 << 20
_HEAD = "lm_head.weight"
# Rows behind a vocabulary: it is rounded up to a number that many ranks can share.
_MOST_PADDING = 1024


class Checkpoint:
    """The weights of a model folder, which are known to fit a model.

    Args:
        whole: the whole model, whose parameters need no memory.
        stack: closes the files.

    Raises:
        ValueError: one error that names every tensor that is missing, unexpected or unfit; or a
            file that cannot be read.
    """

    def __init__(self, files: ModelFiles, family: Family, whole: Decoder, stack: ExitStack) -> None:
        self.whole = whole
        self._files = files
        self._family = family
        self._paths = weight_paths(files)
        shards = _open_all(files, self._paths, family, whole.config, stack)
        # By the names that the family uses: where to read, and under which name.
        self._sources = {
            family.rename(name): (shard, name) for shard in shards for name in shard.names
        }
        layout = dict(whole.named_parameters())
        if whole.config.tie_word_embeddings:
            embedding = family.embedding_name(whole.config)
            if embedding not in self._sources and _HEAD in self._sources:
                self._sources[embedding] = self._sources[_HEAD]
        if files.adapter is not None:
            self._sources = merged(self._sources, files.adapter, family.rename)
        problems = list(_problems(whole.config, family, layout, self._sources))
        if problems:
            raise ValueError(
                f"model={files.name!r}: weights in {files.place} do not fit config.json: "
                f"{first_few(problems, '; ')}"
            )

    @torch.inference_mode()
    def fill(self, decoder: Decoder, rank: Rank = WHOLE) -> None:
        """Copy every tensor into its slice, converting layout, dtype and device on the way.

        Args:
            decoder: of one rank. Parameters that it does not have were filled otherwise.

        Raises:
            ValueError: names a tensor with a number that is not finite, or that the decoder's dtype
                cannot hold.
        """
        config = self.whole.config
        parameters = dict(decoder.named_parameters())
        layout = dict(self.whole.named_parameters())
        parts = {name: part_of(config, name, len(like), rank) for name, like in layout.items()}
        for name, part in parts.items():
            if not part.rows and name in parameters:
                parameters[name].zero_()
        largest = self._unknown_largest(decoder.embedding.dtype)
        for weight in progress_bar(
            list(self._family.weights(config, layout)),
            desc="loading",
            unit=" tensors",
            delay=DELAY_SECONDS,
            disable=not logger.isEnabledFor(logging.INFO),
        ):
            if weight.target not in parameters:
                continue
            shard, name = self._sources[weight.source]
            tensor = shard.read(name)
            if largest is not None:
                self._note(largest, shard.name_in_file(name), tensor)
            if weight.transform is not None:
                tensor = weight.transform(tensor, config)
            part, parameter = parts[weight.target], parameters[weight.target]
            for mine, theirs in part.pieces(weight.start, weight.stop):
                piece = tensor[theirs]
                if part.columns is not None:
                    piece = piece[:, part.columns.start : part.columns.stop]
                parameter[mine].copy_(piece)
        if largest is not None and parameters.keys() == layout.keys():
            self._remember(largest.value)

    def block_parts(self, parameter: str) -> list[tuple[str, int]]:
        """Formats and numbers of rows of the blocks that make a parameter of the whole model, those
        of one format as one; none if any of it is held otherwise."""
        parts: list[tuple[str, int]] = []
        for weight in self._weights_of(parameter):
            shard, name = self._sources[weight.source]
            block_format = None if weight.transform else shard.block_format(name)
            if block_format is None:
                return []
            rows = weight.stop - weight.start
            if parts and parts[-1][0] == block_format:
                rows += parts.pop()[1]
            parts.append((block_format, rows))
        return parts

    def read_blocks(self, parameter: str) -> list[Blocks]:
        """The blocks that `block_parts` tells of.

        Raises:
            ValueError: a scale is no finite number; names the tensor.
        """
        pieces = []
        for weight in self._weights_of(parameter):
            shard, name = self._sources[weight.source]
            data = shard.read_blocks(name)[: weight.stop - weight.start]
            block_format = shard.block_format(name)
            assert block_format is not None
            pieces.append(Blocks(block_format, data))
            self._note(Largest(), shard.name_in_file(name), pieces[-1].scales())
        parts = [
            Blocks(block_format, _joined([piece.data for piece in same]))
            for block_format, same in groupby(pieces, key=lambda piece: piece.format)
        ]
        return parts

    def _weights_of(self, parameter: str) -> list[Weight]:
        layout = {parameter: self.whole.get_parameter(parameter)}
        return list(self._family.weights(self.whole.config, layout))

    def _remember(self, largest: float) -> None:
        num_bytes = sum(path.stat().st_size for path in self._paths)
        if self._files.checks is not None and num_bytes >= SMALL_BYTES:
            remember_largest(self._files.checks, self._paths, largest)

    def _unknown_largest(self, dtype: torch.dtype) -> Largest | None:
        """What looks at the tensors, if they have to be looked at."""
        limit = torch.finfo(dtype).max
        if self._files.checks is not None:
            known = remembered_largest(self._files.checks, self._paths)
            if known is not None and known <= limit:
                return None
        return Largest(limit)

    def _note(self, largest: Largest, name: str, tensor: torch.Tensor) -> None:
        try:
            low, high = tensor.aminmax()  # both are NaN if a number is
            largest.note(name, low.item(), high.item())
        except ValueError as error:
            raise ValueError(
                f"model={self._files.name!r}: weights in {self._files.place}: {error}"
            ) from None


def weight_paths(files: ModelFiles) -> list[Path]:
    """The files of a model's weights.

    Raises:
        ValueError: some are missing.
    """
    if files.gguf is None:
        return checkpoint_paths(files)
    from paged_stream.models.formats.gguf_split import part_paths  # brings gguf

    return part_paths(files.gguf)


def _open_all(
    files: ModelFiles, paths: list[Path], family: Family, config: ModelConfig, stack: ExitStack
) -> list[Shard]:
    if files.gguf is not None:
        from paged_stream.models.formats.gguf_shard import GGUFShard  # brings gguf

        return [GGUFShard(files.gguf, family, config)]
    shards = [_open(path, stack, config) for path in paths]
    quantization = files.quantization_config()
    return [QuantizedShard(shards, quantization)] if quantization else shards


def _open(path: Path, stack: ExitStack, config: ModelConfig) -> Shard:
    if path.suffix != ".safetensors":
        return PickledShard(path)
    if path.name.startswith("consolidated"):
        return ConsolidatedShard(path, stack, config)
    return SafetensorsShard(path, stack)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Rows one after the other, in memory that goes back to the system when it is packed."""
    if len(tensors) == 1:
        return tensors[0]
    rows = sum(map(len, tensors))
    joined = zeros_in_large_pages([rows, tensors[0].shape[1]], tensors[0].dtype)
    return torch.cat(tensors, out=joined)


def _problems(
    config: ModelConfig,
    family: Family,
    layout: dict[str, torch.nn.Parameter],
    sources: dict[str, tuple[Shard, str]],
) -> Iterator[str]:
    weights = {weight.source: weight for weight in family.weights(config, layout)}
    missing = sorted(weights.keys() - sources.keys())
    unexpected = sorted(
        name
        for name in sources.keys() - weights.keys()
        if not family.ignored(config, name) and not _is_zero_bias(name, *sources[name])
    )
    if missing:
        yield f"missing {some(missing)}"
    if unexpected:
        yield f"unexpected {some(unexpected)}"
    if config.tie_word_embeddings and not _is_tied(weights, sources):
        yield (
            "lm_head.weight is not the embedding, though config.json says so; set "
            "tie_word_embeddings to false there"
        )
    for name, weight in weights.items():
        if name not in sources:
            continue
        shard, stored = sources[name]
        shape, dtype = shard.describe(stored)
        target = layout[weight.target]
        expected = [weight.stop - weight.start, *target.shape[1:]]
        actual = shape_after(weight, shape, config)
        if dtype not in FLOAT_TYPES.values():
            yield f"{name} has dtype {dtype}, expected {', '.join(FLOAT_TYPES.values())}"
        elif actual != expected and not _is_padded(weight, actual, expected):
            after = f" after {weight.transform.__name__}" if weight.transform else ""
            yield f"{name} has shape {shape}, expected {expected}{after}"


def _is_zero_bias(name: str, shard: Shard, stored: str) -> bool:
    """Whether a tensor adds nothing: tools that quantise write biases for models without."""
    is_bias = name.endswith("_proj.bias") and isinstance(shard, QuantizedShard)
    return is_bias and not shard.read(stored).any()


def _is_padded(weight: Weight, actual: list[int] | None, expected: list[int]) -> bool:
    """Whether a table of tokens has a few rows behind the vocabulary, which are left out."""
    if weight.target not in ("embedding.weight", "head.weight") or not actual:
        return False
    return actual[1:] == expected[1:] and 0 < actual[0] - expected[0] < _MOST_PADDING


def _is_tied(weights: dict[str, Weight], sources: dict[str, tuple[Shard, str]]) -> bool:
    """Whether a head that the checkpoint holds although it is tied, is the embedding."""
    embedding = next((w.source for w in weights.values() if w.target == "embedding.weight"), None)
    if _HEAD not in sources or _HEAD in weights or embedding not in sources:
        return True
    head, other = (shard.read(name) for shard, name in (sources[_HEAD], sources[embedding]))
    return torch.equal(head, other.to(head.dtype))


def shape_after(weight: Weight, shape: list[int], config: ModelConfig) -> list[int] | None:
    """Shape of a tensor once it is transformed, ``None`` if that is impossible."""
    if weight.transform is None:
        return shape
    try:
        tensor = weight.transform(torch.empty(shape, device="meta"), config)
    except (RuntimeError, IndexError):
        return None
    return list(tensor.shape)
