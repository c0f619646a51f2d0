"""DeepSight: clusters clients by what their models were trained on, rejects clusters trained on too few classes.

Rieger, Nguyen, Miettinen, Sadeghi. DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep Model
Inspection. NDSS 2022. Equations 6 to 12, Algorithms 1 to 3.

Variant: an update is labelled suspicious if its threshold exceedings are at most half the round's median. HDBSCAN's
outliers are clusters of one, in Algorithms 2 and 3. Probabilities are divided; some published codes divide logits.
Departs: 256 random inputs per seed, not 20,000. The paper leaves open how they are distributed and HDBSCAN's sizes:
here uniform in [0, 1), as in the published codes, and clusters of at least two with one neighbour. Without an output
bias, the sum of each class's weights stands in for it. Two biases with update 0 are at distance 0, one with update 0
and one without at 1. A ratio of probabilities counts e^100 at most. Local models predict with the global model's
running statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from fedsieve.core.angles import cosine_distances
from fedsieve.core.clipping import clipped_mean
from fedsieve.core.clustering import hdbscan
from fedsieve.core.defense import Aggregate, Network, ServerView, Updates
from fedsieve.core.direct import direct
from fedsieve.core.errors import MissingDataError, ParameterError
from fedsieve.core.layout import Layout, output_layer
from fedsieve.core.linalg import uniform_weights
from fedsieve.core.traits import Traits

_BATCH = 64  # inputs at a time on a CPU, whose caches then hold what the layers return


@direct("deepsight")
def deepsight(
    x: Float[Tensor, "n d"],
    global_params: Float[Tensor, " d"],
    layout: Layout,
    network: Network,
    generator: torch.Generator,
    seeds: int = 3,
    samples: int = 256,
    tau: float = 1 / 3,
    min_cluster_size: int = 2,
) -> Float[Tensor, " p"]:
    """Mean of the updates in clusters that were trained on enough classes, clipped to the median length.

    Rieger et al. 2022, algorithms 1 to 3.

    Args:
        x: Client updates, [n, d], n >= 1.
        global_params: The model from which the clients trained, [d].
        layout: Where the output layer and the running statistics lie in a row.
        network: Computes a model's logits.
        generator: Source of the random inputs.
        seeds: Number of sets of random inputs.
        samples: Inputs per set; the paper has 20,000.
        tau: A cluster is rejected if at least this share of it is suspicious; in (0, 1].
        min_cluster_size: Fewest clients in a cluster, at least 2.

    Returns:
        The aggregate of the parameters, [p]; 0 if no client is accepted.

    Raises:
        ParameterError: If a parameter is out of range, or the network cannot be run on random real numbers.

    >>> class Linear:  # three classes, two features
    ...     input_shape = (2,)
    ...
    ...     def logits(self, flat, x, /):
    ...         return x @ flat[:6].view(3, 2).T + flat[6:]
    >>> layout = Layout.of({"out.weight": torch.empty(3, 2), "out.bias": torch.empty(3)})
    >>> benign, malicious = [1.0] * 9, [9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0]  # moves the first class only
    >>> x = torch.tensor([malicious, malicious, benign, benign, benign])
    >>> deepsight(x, torch.zeros(9), layout, Linear(), torch.Generator().manual_seed(0))
    tensor([1., 1., 1., 1., 1., 1., 1., 1., 1.])
    """
    check_parameters(seeds, samples, tau, min_cluster_size)
    if layout.size != x.shape[1]:
        raise ParameterError(f"deepsight: x has {x.shape[1]} columns, layout has {layout.size} coordinates")
    order = torch.arange(len(x), device=x.device)
    accepted, _ = inspect(x, global_params, layout, network, generator, order, seeds, samples, tau, min_cluster_size)
    return clipped_mean(x[:, : layout.n_parameters], rows=accepted)[0]


def inspect(
    x: Float[Tensor, "n d"],
    global_params: Float[Tensor, " d"],
    layout: Layout,
    network: Network,
    generator: torch.Generator,
    order: Int[Tensor, " n"],
    seeds: int,
    samples: int,
    tau: float,
    min_cluster_size: int,
) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Which clients are accepted, and their scores: the share of classes without threshold exceeding.

    Args as in :func:`deepsight`; the clusterings take the rows in ``order``, so that the result does not depend on
    theirs where distances tie.
    """
    energies, biases = output_updates(x, layout)
    energy_shares = neups(energies)
    exceedings = threshold_exceedings(energy_shares)
    noises = [torch.rand((samples, *network.input_shape), generator=generator).to(x) for _ in range(seeds)]
    # the global model's running statistics: a client's must not decide
    differences = division_differences(network, global_params, x[:, : layout.n_parameters], noises)
    biases, shares, differences = (features[order].cpu() for features in (biases, energy_shares, differences))
    labels = torch.empty_like(order)
    labels[order] = ensemble(biases, shares, differences, min_cluster_size).to(order.device)
    accepted = accept_clusters(labels, suspicious_updates(exceedings), tau)
    return accepted, 1 - exceedings.to(x.dtype) / energy_shares.shape[1]


def output_updates(x: Float[Tensor, "n d"], layout: Layout) -> tuple[Float64[Tensor, "n c"], Float64[Tensor, "n c"]]:
    """Per class, the sum of absolute updates of its output neuron (equation 7), and the update of its bias."""
    weight, bias = output_layer(layout)
    weights = x[:, weight.start : weight.stop].double().view(len(x), weight.shape[0], -1)
    energies = weights.abs().sum(dim=2)
    if bias is None:
        return energies, weights.sum(dim=2)
    biases = x[:, bias.start : bias.stop].double()
    return energies + biases.abs(), biases


def neups(energies: Float64[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
    """Normalised energy updates (equation 8): each class's share of the squared energy; 0 for an update of 0."""
    shares = (energies / energies.amax(dim=1, keepdim=True)).nan_to_num().square()
    return (shares / shares.sum(dim=1, keepdim=True)).nan_to_num()


def threshold_exceedings(shares: Float64[Tensor, "n c"]) -> Int[Tensor, " n"]:
    """Number of classes whose share exceeds max(0.01, 1 / c) times the largest share (equations 9 to 11)."""
    return (shares > max(0.01, 1 / shares.shape[1]) * shares.amax(dim=1, keepdim=True)).sum(dim=1)


def suspicious_updates(exceedings: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Algorithm 1's labels: updates with at most half the median number of threshold exceedings."""
    return exceedings <= exceedings.double().quantile(0.5) / 2


def division_differences(
    network: Network, start: Float[Tensor, " d"], x: Float[Tensor, "n p"], noises: Sequence[Float[Tensor, "k *shape"]]
) -> Float64[Tensor, "n s c"]:
    """Each class's probability in a local model over that in the global one, mean over the inputs (equation 6).

    A model whose output is NaN has the largest ratio in every class.

    Args:
        network: Computes a model's logits.
        start: The global model, [d].
        x: Updates of its first p coordinates, [n, p]; the others are those of the global model.
        noises: s sets of inputs.
    """
    inputs = torch.cat(list(noises))
    batches = torch.split(inputs, _BATCH if x.device.type == "cpu" else len(inputs))

    def log_probabilities(model: Tensor) -> Tensor:
        return torch.cat([network.logits(model, batch) for batch in batches]).double().log_softmax(dim=1)

    try:
        log_global = log_probabilities(start)
    except RuntimeError as error:  # tokens are integers
        raise ParameterError(
            f"deepsight runs models on random real numbers, and this model does not take them: {error}"
        ) from error
    means = []
    for row in x:
        model = start.clone()
        model[: len(row)] += row
        log_ratios = log_probabilities(model) - log_global
        ratios = log_ratios.nan_to_num(nan=torch.inf).clamp(max=100).exp()
        means.append(ratios.view(len(noises), -1, ratios.shape[1]).mean(dim=1))
    return torch.stack(means)


def apart(labels: Int[Tensor, " n"]) -> Float64[Tensor, "n n"]:
    """0 for two points of one cluster, 1 for all other pairs; an outlier (label -1) is a cluster of one."""
    together = (labels[:, None] == labels[None, :]) & (labels >= 0)
    return 1 - together.double().fill_diagonal_(1)


def ensemble(
    biases: Float64[Tensor, "n c"],
    shares: Float64[Tensor, "n c"],
    differences: Float64[Tensor, "n s c"],
    min_cluster_size: int,
) -> Int[Tensor, " n"]:
    """Algorithm 2: cluster by the mean of three clusterings' distances; the third is itself a mean over the seeds."""

    def votes(distances: Tensor) -> Tensor:
        return apart(hdbscan(distances, min_cluster_size))

    third = torch.stack([votes(distances(features)) for features in differences.unbind(dim=1)]).mean(dim=0)
    merged = (votes(cosine_distances(biases)) + votes(distances(shares)) + third) / 3
    return hdbscan(merged, min_cluster_size)


def distances(features: Float64[Tensor, "n c"]) -> Float64[Tensor, "n n"]:
    """Euclidean distances, computed without a Gram matrix, so that equal rows are at exactly 0."""
    return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")


def accept_clusters(labels: Int[Tensor, " n"], suspicious: Bool[Tensor, " n"], tau: float) -> Bool[Tensor, " n"]:
    """Algorithm 3: accept the clusters of which less than the share ``tau`` is suspicious; an outlier is one of one."""
    together = apart(labels) == 0
    return (together & suspicious).sum(dim=1) < tau * together.sum(dim=1)


def check_parameters(seeds: int, samples: int, tau: float, min_cluster_size: int) -> None:
    """Raise :class:`ParameterError` where a parameter is out of range."""
    if min(seeds, samples) < 1:
        raise ParameterError(f"deepsight: seeds and samples must be at least 1, got {seeds} and {samples}")
    if not 0 < tau <= 1:
        raise ParameterError(f"deepsight: tau must be in (0, 1], got {tau}")
    if min_cluster_size < 2:
        raise ParameterError(f"deepsight: min_cluster_size must be at least 2, got {min_cluster_size}")


@dataclass(frozen=True)
class DeepSight:
    """Mean of the clusters that were trained on enough classes, clipped to the median length.

    Attributes:
        seeds: Number of sets of random inputs on which predictions are compared.
        samples: Inputs per set; the paper has 20,000.
        tau: A cluster is rejected if at least this share of it is suspicious; in (0, 1].
        min_cluster_size: Fewest clients in a cluster, at least 2.
    """

    seeds: int = 3
    samples: int = 256
    tau: float = 1 / 3
    min_cluster_size: int = 2
    traits: ClassVar[Traits] = Traits(
        summary="Clusters clients by output layer and predictions, drops clusters trained on too few classes",
        paper="Rieger et al., DeepSight, NDSS 2022",
        needs=("network",),
        breaks_at="n <= 2m; benign data of fewer classes than the attackers'; attacks that reverse or scale "
        "all classes alike",
        cost="n * seeds * samples forward passes + O(nd)",
    )

    def __post_init__(self) -> None:
        check_parameters(self.seeds, self.samples, self.tau, self.min_cluster_size)

    def __call__(self, updates: Updates, view: ServerView, /) -> Aggregate:
        """See :class:`fedsieve.core.defense.Aggregator`."""
        if view.network is None:
            raise MissingDataError("deepsight needs to run the model, and the server can't")
        x, layout, order = updates.matrix, updates.layout, updates.client_ids.argsort()
        settings = (self.seeds, self.samples, self.tau, self.min_cluster_size)
        accepted, scores = inspect(x, view.global_params, layout, view.network, view.generator, order, *settings)
        mean, _ = clipped_mean(updates.parameters, rows=accepted)
        return Aggregate(mean, uniform_weights(accepted, x.dtype), accepted, scores)
