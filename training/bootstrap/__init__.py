"""From captions to shards of training samples: stages that draw, cut out, check and pair."""
