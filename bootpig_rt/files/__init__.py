"""Files that are wholly written or not there, and tensors in them."""
