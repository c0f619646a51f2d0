"""A Flower app: handwritten digits, a server that rejects malicious clients."""
