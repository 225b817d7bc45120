"""Suites of the 3-D world: held-out models, nouns and drawings among look-alikes, in true views."""
