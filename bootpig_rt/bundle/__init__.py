"""A pair built for a target: files, manifest, signature, `pair.json`. Owns the format."""
