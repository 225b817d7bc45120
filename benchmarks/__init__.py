"""Speed and quality, measured side by side. Needs the extras `cpu`, `torch` and `bench`."""
