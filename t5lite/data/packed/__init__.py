"""Caches of prepared and packed rows."""
