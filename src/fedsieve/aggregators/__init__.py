"""Aggregators, one paper per file: n client updates of shape [n, d] to one update of shape [d].

Each file offers its mathematics as a plain function of a tensor, such as ``fedsieve.aggregators.krum.krum(x, f=2)``.
The class beside it is what an experiment uses: it also returns the clients' weights. It
aggregates parameters; the server combines running statistics (means and variances of normalisation layers). ``chain``
joins detectors, pre-aggregators and an aggregator.
"""
