"""FedSieve in a real federation: the server's part of a round inside Flower (https://flower.ai).

:class:`Defended` wraps a Flower strategy, so that the defenses of this package decide about the replies of real nodes.
"""

try:
    import flwr.serverapp.strategy  # noqa: F401
except ImportError as error:
    raise ImportError(f"fedsieve.flower needs Flower, pip install 'fedsieve[flower]': {error}") from error

from fedsieve.flower.recording import RoundDecision
from fedsieve.flower.red_team import attack_mod
from fedsieve.flower.strategy import Defended

__all__ = ["Defended", "RoundDecision", "attack_mod"]
