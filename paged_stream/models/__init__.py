"""Decoder-only models: declarative configuration, one decoder, checkpoint loading."""
