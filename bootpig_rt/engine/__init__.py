"""The loop that draws: requests join, step and leave."""
