"""Corpora in ArrayRecord shards."""
