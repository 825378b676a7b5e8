"""A server of `medsam3 serve` from Python: what `medsam3.segment`, `medsam3.Session` and the agent do, done there."""
