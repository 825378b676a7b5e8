"""Evaluation: metrics, the benchmark over data sets, and its report."""
