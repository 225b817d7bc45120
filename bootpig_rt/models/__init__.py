"""The pair in torch: explicit modules, and the folders that they are loaded from and saved to."""
