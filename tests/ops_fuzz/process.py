"""Runs `fuzz` on the library that the first argument names, in a process with its sanitizers."""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader

import torch  # noqa: F401  (the library needs it loaded)


def load_library(path: str) -> None:
    """Make the extension module at the path the one that `paged_stream` imports."""
    name = "paged_stream._C"
    loader = ExtensionFileLoader(name, path)
    spec = spec_from_loader(name, loader)
    assert spec
    sys.modules[name] = module = module_from_spec(spec)
    loader.exec_module(module)


if __name__ == "__main__":
    load_library(sys.argv.pop(1))
    from tests.ops_fuzz import fuzz

    fuzz.main()
