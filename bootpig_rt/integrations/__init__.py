"""Pairs inside of tools that people already use: each file imports the tool that it is for."""
