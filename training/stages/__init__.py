"""Stages of training: VAE, base (text to image, with reference rows), pair (BootPIG).

And what is made of a finished pair: a student of few steps, a control.
"""
