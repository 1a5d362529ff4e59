"""Model folders, GGUF files and checkpoints: from bytes on disk to a filled decoder."""
