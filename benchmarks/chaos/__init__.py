"""Streams that live under faults, each compared with one to which nothing happened."""
