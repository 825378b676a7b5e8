"""The small model: frozen public encoders and a detector trained here."""
