"""Everything that decides a run's numbers: the experiment, and the registry of the components it names."""
