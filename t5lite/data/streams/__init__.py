"""Endless, resumable streams of examples and rows."""
