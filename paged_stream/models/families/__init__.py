"""One module per family; a module that is put here is found. See docs/adding-a-model.md."""
