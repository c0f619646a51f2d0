"""An attack and a defense for FedSieve in a package of their own."""
