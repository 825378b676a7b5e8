"""Models behind one protocol: see `segmenter` for the protocol and `registry` for the names."""
