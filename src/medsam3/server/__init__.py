"""A page to drop images on, and an HTTP API over sessions and segmentation; models run in processes of their own."""
