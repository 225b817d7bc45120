"""Reference self-attention in eager torch: the oracle of every faster version."""
