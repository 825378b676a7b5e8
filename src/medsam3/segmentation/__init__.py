"""Volumes and videos: from prompts to masks that hold together from slice to slice, in bounded memory."""
