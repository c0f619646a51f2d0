"""FedSieve in a notebook or a script: ``fedsieve.run`` runs an experiment, ``fedsieve.load`` reads what was run."""
