"""Clients that train, the adversary, the server's part of a round, and the simulation of a federation."""
