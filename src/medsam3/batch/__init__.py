"""Segmenting many files on all cores of a machine, or on many machines: what there is, who does it, what came of it."""
