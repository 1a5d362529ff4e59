"""Engines on Ray behind the API of one. Ray is an extra and is imported when a pool starts."""
