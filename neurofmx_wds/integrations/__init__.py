"""Loaders in the form that other training frameworks expect. Each module needs its framework installed."""
