"""FedSieve: federated learning that survives malicious clients."""
