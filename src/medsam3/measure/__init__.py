"""Measures of outlines, objects and presence, and their confidence intervals."""
