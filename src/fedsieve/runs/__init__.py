"""Runs experiments: run directories, checkpoints, locks; grids of experiments in worker processes or on Ray."""
