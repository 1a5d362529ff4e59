"""The experiments of the StreamingLLM paper on any model and text: what a user can check."""
