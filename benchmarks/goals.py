"""The goals that the benchmarks compare their figures with. Each is a row of the table, measured or not."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        part: Part of the benchmarks that measures it.
        what: What is measured.
        text: The goal in words.
        limit: The number in it.
        at_least: Whether the figure has to be at least the limit instead of at most.
    """

    part: str
    what: str
    text: str
    limit: float
    at_least: bool = False

    def met_by(self, value: float) -> bool:
        """Whether a figure, in the unit of the limit, meets the goal; NaN meets none."""
        return value >= self.limit if self.at_least else value <= self.limit


# Every part, in the order in which they run, with its heading.
PARTS = {
    "gpu": "On a GPU",
    "rounds": "Rounds on two cores",
    "detectors": "Detectors on two cores",
    "rules": "Aggregators, n = 100, d about 10^6, f = 20",
    "growth": "Growth and memory",
    "startup": "Start-up",
    "records": "Records",
    "pairs": "Against the obvious way",
}

# What exponents may be: of rules that pass over the matrix, of those that sort its columns (n log n grows like
# n^1.2 at these n), and of those with inner products of all pairs of clients.
LINEAR, SORTING, PAIRS = 1.15, 1.35, 2.1


def _gpu(what: str, text: str, limit: float, at_least: bool = False) -> Goal:
    return Goal("gpu", what, text, limit, at_least)


GOALS = {
    "gpu mean": _gpu("fashion-mnist/cnn, 100 clients, mean: a round", "<= 6 ms", 6),
    "gpu sieve": _gpu("fashion-mnist/cnn, 100 clients, sieve: a round", "<= 12 ms", 12),
    "gpu skymask": _gpu("fashion-mnist/cnn, 100 clients, skymask: a round", "<= 14 ms", 14),
    "gpu mean 2500": _gpu("the same with mean: 2,500 rounds", "<= 15 s", 15),
    "gpu sieve 2500": _gpu("the same with sieve: 2,500 rounds", "<= 30 s", 30),
    "gpu skymask 2500": _gpu("the same with skymask: 2,500 rounds", "<= 35 s", 35),
    "gpu cifar sieve": _gpu("cifar10/resnet20, 100 clients x 5 steps, sieve: a round", "<= 250 ms", 250),
    "gpu cifar skymask": _gpu("cifar10/resnet20, 100 clients x 5 steps, skymask: a round", "<= 250 ms", 250),
    "gpu cifar sieve 500": _gpu("the same with sieve: 500 rounds", "<= 125 s", 125),
    "gpu cifar skymask 500": _gpu("the same with skymask: 500 rounds", "<= 125 s", 125),
    "gpu sweep": _gpu("several experiments at once (sweep), cells an hour", ">= 3 x one after the other", 3, True),
    "gpu memory": _gpu("skymask, n = 1,000, resnet20: peak memory on the GPU", "<= 24 GB", 24),
    "round plain": Goal("rounds", "fashion-mnist/cnn, 100 clients, mean: a round", "<= 1.15 x a plain loop", 1.15),
    "round flower": Goal("rounds", "the same round in Flower's simulation", "<= 0.3 x Flower", 0.3),
    "har mean": Goal("rounds", "HAR/logistic regression, 30 clients, mean: a round", "<= 5 ms", 5),
    "har sieve": Goal("rounds", "HAR/logistic regression, 30 clients, sieve: a round", "<= 20 ms", 20),
    "har skymask": Goal("rounds", "HAR/logistic regression, 30 clients, skymask: a round", "<= 20 ms", 20),
    "masks": Goal("detectors", "skymask's mask stage, n = 101, d = 139,960, 20 steps", "<= 1.5 x its floor", 1.5),
    "sieve": Goal("detectors", "sieve's part of the same round", "<= 0.5 x version e8e215f", 0.5),
    "byzfl": Goal("rules", "every rule that ByzFL has too", "<= 1/3 of ByzFL's", 1 / 3),
    "rule seconds": Goal("rules", "every rule", "<= 2 s", 2),
    "rule passes": Goal("rules", "rules without sorting or pairs", "<= 3 passes", 3),
    "growth d": Goal("growth", "exponent of d, every defense", f"<= {LINEAR}", LINEAR),
    "growth n": Goal("growth", "exponent of n, linear rules", f"<= {LINEAR}", LINEAR),
    "growth n sorting": Goal("growth", "exponent of n, rules that sort columns", f"<= {SORTING}", SORTING),
    "growth n pairs": Goal("growth", "exponent of n, rules with pairwise terms", f"<= {PAIRS}", PAIRS),
    "skymask memory": Goal("growth", "skymask, n = 1,000, resnet20: peak memory", "<= 24 GB", 24),
    "registered": Goal(
        "growth", "1,000,000 registered clients, 100 a round: peak memory", "<= 1.25 x that of 1,000", 1.25
    ),
    "help": Goal("startup", "fedsieve --help", "<= 0.5 s", 0.5),
    "list": Goal("startup", "fedsieve list", "<= 0.5 s", 0.5),
    "overhead": Goal("startup", "fedsieve run without its rounds", "<= 2 s", 2),
    "record bytes": Goal("records", "a round of 100 clients on disk", "<= 3 kB", 3000),
    "record load": Goal("records", "2,500 rounds of 100 clients: loaded", "<= 1 s", 1),
}
