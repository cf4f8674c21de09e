"""Presets and overlays: values, no logic."""
