"""The vocabulary that every other module speaks, and pure functions that at least two methods need.

Axes: ``n`` clients in the round, ``m`` malicious among them, ``d`` coordinates of the flattened model.
Sign: ``update = local_params - global_params``; the server adds it.
"""
