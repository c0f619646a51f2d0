"""Which clients were rejected how often, whether anybody knows who is malicious or not."""

from collections import Counter
from typing import Any

from fedsieve.core.records import RoundRecord, decided

# Clients that are counted one by one, as long as a run has no more; so many of them are named.
_COUNTED, _NAMED = 10_000, 20


class Rejections:
    """Counts of the records that are added one at a time."""

    def __init__(self) -> None:
        self._took_part, self._all = 0, 0
        self._decided = False
        self._rounds: Counter[int] | None = Counter()
        self._rejected = Counter[int]()

    def add(self, record: RoundRecord) -> None:
        """Add the next round."""
        self._took_part += len(record.clients)
        rejected = (record.rejected or ()) if decided(record) else ()
        self._decided |= decided(record)
        self._all += len(rejected)
        if self._rounds is not None:
            self._rounds.update(record.clients)
            self._rejected.update(rejected)
            if len(self._rounds) > _COUNTED:
                self._rounds, self._rejected = None, Counter()

    def result(self) -> dict[str, Any]:
        """The results of the rounds so far; see :func:`fedsieve.core.metrics.summarize`."""
        rounds, rejected = self._rounds or Counter[int](), self._rejected
        most: list[int] = sorted(rejected, key=lambda client: (-rejected[client], client))[:_NAMED]
        return {
            "client_rounds_rejected": self._all if self._decided else None,
            "share_rejected": self._all / self._took_part if self._decided and self._took_part else None,
            "most_rejected": [
                {"client": client, "rounds_rejected": rejected[client], "rounds": rounds[client]} for client in most
            ],
        }
