"""The three stages of training: VAE, base (text to image, with reference rows), pair (BootPIG)."""
