"""Requests and streams on one model: what runs them, and what users hold."""
