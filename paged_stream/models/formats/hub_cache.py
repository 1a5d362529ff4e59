"""The Hugging Face hub's cache, which its library keeps: which models are there, removing them."""

from __future__ import annotations

from typing import NamedTuple


class CachedModel(NamedTuple):
    """A repository in the cache: its name, and the bytes that all its revisions take."""

    name: str
    num_bytes: int


def cached_models() -> list[CachedModel]:
    """Models in the hub's cache, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir().repos
    except CacheNotFound:
        return []
    models = (each for each in found if each.repo_type == "model")
    return sorted(CachedModel(each.repo_id, each.size_on_disk) for each in models)


def remove_model(name: str) -> int:
    """Remove a model from the cache, with all its revisions and files.

    Returns:
        The bytes that are free now.

    Raises:
        ValueError: it is not there.
    """
    from huggingface_hub import scan_cache_dir

    if name not in {model.name for model in cached_models()}:
        raise ValueError(
            f"{name!r} is no model in the cache; models list shows their names, and a model is "
            "removed with all its revisions and files"
        )
    cache = scan_cache_dir()
    revisions = [
        revision.commit_hash
        for each in cache.repos
        if each.repo_id == name and each.repo_type == "model"
        for revision in each.revisions
    ]
    strategy = cache.delete_revisions(*revisions)
    strategy.execute()
    return strategy.expected_freed_size
