"""Speed, quality and scale, measured side by side. Needs the extras `cpu`, `torch` and `bench`."""
