"""How a pair is made: data of the small world, trainer and evaluation. Needs the `train` extra."""
