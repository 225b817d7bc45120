"""Noise schedules, timesteps and solvers, as float64 tables of numpy."""
