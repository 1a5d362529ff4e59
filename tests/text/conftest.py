"""The tiny checkpoints with byte-level tokenizers that the tests of models are built on."""

from tests.models.conftest import save, tiny_llama

__all__ = ["save", "tiny_llama"]
