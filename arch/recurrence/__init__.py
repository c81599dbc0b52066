"""Recurrences: each the formula, and a fast twin equal to it."""
