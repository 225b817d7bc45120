"""The pair in torch."""
