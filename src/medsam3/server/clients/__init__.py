"""Dialects: what programs of others ask, answered by the same sessions and readers as everything else."""
