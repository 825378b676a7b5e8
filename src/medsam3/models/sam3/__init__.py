"""SAM 3 at full size, with published weights."""
