"""Names as papers print them, and the order in which tables and figures have them.

A component of another package keeps its own name and comes last: a user's own defense is the last row of a table.
"""

from collections.abc import Iterable, Mapping

# In the order of rows: without a defense, rules without root data, detectors, defenses with root data, ours.
DEFENSES = {
    "mean": "FedAvg",
    "fedavg": "FedAvg",
    "root-only": "Root data only",
    "fltrust": "FLTrust",
    "median": "Median",
    "trimmed-mean": "Trimmed mean",
    "geometric-median": "Geometric median",
    "krum": "Krum",
    "multi-krum": "Multi-Krum",
    "bulyan": "Bulyan",
    "sign-majority": "signSGD",
    "norm-clipping": "Norm clipping",
    "momentum": "Momentum",
    "weak-dp": "Weak DP",
    "sparsefed": "SparseFed",
    "flame": "FLAME",
    "deepsight": "DeepSight",
    "invariant": "Invariant Aggregator",
    "tolpegin": "Tolpegin et al.",
    "fldetector": "FLDetector",
    "skymask-nr": "SkyMask-NR",
    "skymask": "SkyMask",
    "sieve": "Sieve",
}
# In the order of columns: on data, on updates, backdoors, those made for one defense, those made of others.
ATTACKS = {
    "none": "No attack",
    "label-flip": "Label flip",
    "targeted-flip": "Targeted flip",
    "gaussian": "Gaussian",
    "sign-flip": "Sign flip",
    "free-rider": "Free rider",
    "copycat": "Copycat",
    "mimic": "Mimic",
    "ipm": "IPM",
    "lie": "LIE",
    "min-max": "Min-Max",
    "min-sum": "Min-Sum",
    "fang-trim": "Fang-Trim",
    "fang-krum": "Fang-Krum",
    "scaling": "Scaling",
    "dba": "DBA",
    "edge-case": "Edge case",
    "phrase": "Phrase",
    "lie-backdoor": "LIE backdoor",
    "norm-bounded-backdoor": "Norm-bounded backdoor",
    "adaptive-skymask": "Adaptive (SkyMask)",
    "adaptive-sieve": "Adaptive (Sieve)",
    "mixture": "Mixture",
    "split-layers": "Split layers",
    "fresh-identity": "Fresh identity",
    "sleeper": "Sleeper",
    "on-off": "On-off",
    "jitter": "Jitter",
}
DATASETS = {
    "digits": "Digits",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "har": "HAR",
    "sentiment140": "Sentiment140",
    "csv": "CSV",
    "npz": "NPZ",
    "images": "Images",
}


def named(component: str, names: Mapping[str, str]) -> str:
    """A component with its parameters, by the name that papers print; the stages of a chain are joined by a plus.

    >>> named("fldetector, median (window=5)", DEFENSES)
    'FLDetector + Median (window=5)'
    >>> named("my_rules:Best", DEFENSES)
    'my_rules:Best'
    >>> named("skymask, d = 2", DEFENSES)
    'SkyMask, d = 2'
    """
    name, bracket, parameters = component.partition(" (")
    stages = [stage.strip() for stage in name.split(",")]
    if not any(stage in names for stage in stages):
        return component
    chain = all(" " not in stage for stage in stages)
    return (" + " if chain else ", ").join(names.get(stage, stage) for stage in stages) + bracket + parameters


def distinct(components: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """:func:`named` of each; where two are alike, with their own names in brackets.

    >>> distinct(["mean", "fedavg", "krum"], DEFENSES)
    {'mean': 'FedAvg (mean)', 'fedavg': 'FedAvg (fedavg)', 'krum': 'Krum'}
    """
    found = {component: named(component, names) for component in components}
    texts = list(found.values())
    return {key: text if texts.count(text) == 1 else f"{text} ({key})" for key, text in found.items()}


def ordered(components: Iterable[str], names: Mapping[str, str]) -> list[str]:
    """Each component once, in the order of ``names``, variants of one by their parameters, others last.

    >>> ordered(["mine", "skymask (preset=code)", "skymask", "mean"], DEFENSES)
    ['mean', 'skymask', 'skymask (preset=code)', 'mine']
    """
    places = {name: k for k, name in enumerate(names)}

    def place(component: str) -> tuple[int, str]:
        stages = component.partition(" (")[0].split(",")
        return max(places.get(stage.strip(), len(places)) for stage in stages), component

    return sorted(dict.fromkeys(components), key=place)
