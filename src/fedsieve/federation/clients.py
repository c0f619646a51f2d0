"""The clients' part of a round: local training of a whole cohort at once.

Every client starts from the global model and runs SGD on its own data. Two engines compute the same: ``vmap`` trains a
chunk of clients as one batched computation (``torch.func``), which is faster for small models and on a GPU; a loop over
clients with channels-last convolutions is faster on a CPU for convolutional networks. Model and device decide which one
runs and how many clients share a chunk; results agree to rounding. A batch that can't be computed for several clients
at once (a branch on data, random numbers) is computed client by client.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from math import ceil
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap

from fedsieve.core.errors import ParameterError
from fedsieve.core.loss import LossName
from fedsieve.core.memory import Memory
from fedsieve.core.rows import flattened, stacked
from fedsieve.core.seeding import stream
from fedsieve.federation.batches import Batches
from fedsieve.models.convolution import ByClient
from fedsieve.models.flat import FlatModel
from fedsieve.models.forward import seeded
from fedsieve.models.losses import LOSSES
from fedsieve.models.precision import Precision, computed_in

_CPU_CHUNK_FLOATS = 1 << 21  # the weights of one chunk stay in a CPU's cache; on a GPU it takes what memory there is
# On a CPU, batches of so few samples are not worth a pass of their own: clients that start from one model share it.
_FEW_SAMPLES, _SHARED_FLOATS = 4, 1 << 25
_FIRST = torch.zeros(1, dtype=torch.long)  # the batch of a client with one sample


@dataclass(frozen=True)
class ClientData:
    """One client's training samples ``x`` [k, ...] and their classes ``y`` [k], on the device that trains it."""

    x: Tensor
    y: Int[Tensor, " k"]


@dataclass(frozen=True)
class LocalTraining:
    """How every client trains: SGD, exactly as ``torch.optim.SGD`` does it.

    Attributes:
        learning_rate: β in the papers.
        batch_size: Samples per step; a client that has fewer uses all it has.
        steps: Batches per round, each drawn anew without replacement. Ignored if ``epochs`` is given.
        epochs: Passes over the client's data per round, the last batch of each possibly smaller.
        momentum: Of SGD; its buffer is empty at the start of every round.
        weight_decay: L2 penalty, added to the gradient after clipping.
        clip_norm: Largest Euclidean norm of a gradient; None does not clip.
        clip_value: Largest absolute value of each coordinate of a gradient, applied after ``clip_norm``; None does not
            clip.
        proximal: Weight of half the squared distance to the model training starts from, added to the loss after
            clipping: FedProx's mu (Li et al., MLSys 2020).
        loss: The loss to minimise; ``batch`` normalises over the batch instead of over the classes, as SkyMask's
            published code does (:func:`fedsieve.models.losses.batch_cross_entropy`).
        precision: In which the model's passes are computed, forward and backward.
    """

    learning_rate: float = 0.5
    batch_size: int = 32
    steps: int = 1
    epochs: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    proximal: float = 0.0
    loss: LossName = "cross-entropy"
    precision: Precision = "float32"

    def batches(self, n_samples: int, generator: torch.Generator) -> list[Int[Tensor, " _"]]:
        """The rows of each step's batch, for a client with ``n_samples`` samples."""
        if self.epochs is None:
            return [torch.randperm(n_samples, generator=generator)[: self.batch_size] for _ in range(self.steps)]
        return [
            batch
            for _ in range(self.epochs)
            for batch in torch.split(torch.randperm(n_samples, generator=generator), self.batch_size)
        ]

    def batch_sizes(self, n_samples: int) -> set[int]:
        """Sizes of the batches of a client with ``n_samples`` samples."""
        if self.epochs is None:
            return {min(n_samples, self.batch_size)}
        return {size for size in (min(n_samples, self.batch_size), n_samples % self.batch_size) if size}

    def as_many_steps(self, sizes: Sequence[int]) -> "LocalTraining":
        """The same settings with a fixed number of steps: that of the median of clients with ``sizes`` samples."""
        if self.epochs is None:
            return self
        return replace(self, epochs=None, steps=self.epochs * ceil(median(sizes) / self.batch_size))


@dataclass
class Trainer:
    """Trains cohorts of one model.

    Attributes:
        model: The architecture.
        settings: How each client trains.
        seed: Batches and dropout follow from (seed, round, client) alone.
        vectorize: Whether chunks of clients are trained as one computation; None chooses the faster way.
    """

    model: FlatModel
    settings: LocalTraining
    seed: int
    vectorize: bool | None = None
    _gpu_chunk: int | None = field(default=None, init=False, repr=False)
    _memory: Memory = field(default_factory=Memory, init=False, repr=False, compare=False)
    _ahead: dict[tuple[int, int, int], list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def updates(
        self,
        params: Float[Tensor, " d"],
        clients: Mapping[int, ClientData],
        round: int,
        personal: Mapping[int, Float[Tensor, " k"]] | None = None,
    ) -> Float[Tensor, "n d"]:
        """Train every client and return ``local_params - params`` [n, d], rows in the order of ``clients``.

        Args:
            params: The global model, [d].
            clients: Data by client id; the id decides the client's random numbers.
            round: Counts from 0; decides them too.
            personal: By client id, the BatchNorm values from which it starts, instead of those of ``params``.
        """
        ids, data = list(clients), [clients[i] for i in clients]
        plans = [self._plan(i, own.y.numel(), round) for i, own in zip(ids, data, strict=True)]
        result = self._memory.blank((len(ids), len(params)), params)
        # clients with equal batch sizes side by side, so that a chunk needs few separate computations
        order = sorted(range(len(ids)), key=lambda k: [batch.numel() for batch in plans[k]])
        while order:
            rows = order[: self._chunk(params, len(order))]
            if personal is None and self.shares(params.device):
                few = list(takewhile(lambda k: plans[k] and plans[k][0].numel() <= _FEW_SAMPLES, order))
                rows = few[: max(1, _SHARED_FLOATS // len(params))] or rows
            place = slice(rows[0], rows[0] + len(rows))
            # trained where they are wanted, if they are side by side there
            adjacent = rows == list(range(place.start, place.stop))
            begin = (result[place] if adjacent else params.new_empty(len(rows), len(params))).copy_(params)
            if personal is not None:
                begin[:, self.model.normalisation] = torch.stack([personal[ids[k]] for k in rows])
            members = [ids[k] for k in rows]
            batched = len(rows) > 1 or self.vectorized(params.device)  # for what is drawn where nothing should be
            try:
                with seeded(self._draws(members[0], round, 0), params.device) if batched else nullcontext():
                    local = self._train(begin, [data[k] for k in rows], [plans[k] for k in rows], members, round)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                self._gpu_chunk = len(rows) // 2
                continue
            local.sub_(params)
            if local is not begin or not adjacent:
                result[rows] = local
            order = order[len(rows) :]
        if params.device.type == "cuda":  # which computes while the CPU draws the batches that are probably next
            sizes = zip(ids, [len(own.y) for own in data], strict=True)
            self._ahead = {(round + 1, *of): self._plan(*of, round + 1) for of in sizes}
        return result

    def _plan(self, client: int, n_samples: int, round: int) -> list[Int[Tensor, " _"]]:
        """The batches of one client in one round."""
        if n_samples == 1:  # as most reference updates have: nothing is drawn
            return [_FIRST] * (self.settings.epochs or self.settings.steps)
        ahead = self._ahead.pop((round, client, n_samples), None)
        return ahead or self.settings.batches(n_samples, stream(self.seed, "batches", round, client))

    def _chunk(self, params: Float[Tensor, " d"], n: int) -> int:
        """Clients per chunk."""
        if not self.vectorized(params.device):
            return 1
        if params.device.type == "cpu":
            return max(1, _CPU_CHUNK_FLOATS // len(params))
        return min(n, self._gpu_chunk or n)

    def vectorized(self, device: torch.device) -> bool:
        """Whether chunks of clients are trained as one computation on ``device``."""
        # dropout needs a stream of its own per client, which a batched computation does not have
        if self.model.is_random or self.model.recurrent:
            return False
        if self.vectorize is not None:
            return self.vectorize
        return not (device.type == "cpu" and self.model.convolves)

    def shares(self, device: torch.device) -> bool:
        """Whether clients with few samples are trained in one pass as long as they have the same model."""
        return device.type == "cpu" and self.vectorize is None and self.model.convolves and self.model.is_sample_wise

    def _train(
        self,
        begin: Float[Tensor, "c d"],
        clients: Sequence[ClientData],
        plans: Sequence[Sequence[Int[Tensor, " _"]]],
        ids: Sequence[int],
        round: int,
    ) -> Float[Tensor, "c d"]:
        """The local models of one chunk of clients, each trained from its row of ``begin``."""
        s, n_parameters = self.settings, self.model.layout.n_parameters
        local = begin.clone() if s.proximal else begin
        velocity: Tensor | None = None
        data = Batches.of([(client.x, client.y) for client in clients])
        for step in range(max(len(plan) for plan in plans)):
            by_size: dict[int, list[int]] = defaultdict(list)
            for k, plan in enumerate(plans):
                if step < len(plan):
                    by_size[plan[step].numel()].append(k)
            for members in by_size.values():
                x, y = data.take(members, [plans[k][step] for k in members])
                rows = slice(None) if len(members) == len(clients) else members  # a slice copies nothing
                at = local[rows]
                if step == 0 and len(members) > 1 and x.shape[1] <= _FEW_SAMPLES and self.shares(x.device):
                    at = at[:1].expand_as(at)  # the model that all start from
                gradients, statistics = self._gradients(at, x, y, [ids[k] for k in members], round, step)
                if s.clip_norm is not None:
                    gradients = gradients * (s.clip_norm / (gradients.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
                if s.clip_value is not None:
                    gradients = gradients.clamp(-s.clip_value, s.clip_value)
                if s.proximal:
                    gradients = gradients + s.proximal * (local[rows] - begin[rows])[:, :n_parameters]
                if s.weight_decay:
                    gradients = gradients + s.weight_decay * local[rows, :n_parameters]
                if s.momentum:
                    velocity = torch.zeros_like(local[:, :n_parameters]) if velocity is None else velocity
                    velocity[rows] = gradients = s.momentum * velocity[rows] + gradients
                gradients.mul_(s.learning_rate)
                if isinstance(rows, slice):  # "-=" would write the result once more
                    local[:, :n_parameters].sub_(gradients)
                else:
                    local[rows, :n_parameters] -= gradients
                local[rows, n_parameters:] = statistics
        return local

    def _gradients(
        self, local: Float[Tensor, "c d"], x: Tensor, y: Int[Tensor, "c b"], ids: Sequence[int], round: int, step: int
    ) -> tuple[Float[Tensor, "c p"], Float[Tensor, "c r"]]:
        """Each client's gradient on its batch, and its running statistics after the batch."""
        if self.vectorized(local.device) or local.stride(0) == 0:
            try:
                return self.together(local, x, y)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # not decided for good here: a resumed run must take the same ways
                pass  # whatever is wrong with the model itself is said below
        rows = []
        for flat, xi, yi, client in zip(local, x, y, ids, strict=True):
            how = LOSSES[self.settings.loss], self._draws(client, round, step), self.settings.precision
            try:
                rows.append(self.model.gradient_and_statistics(flat, xi, yi, *how))
            except ParameterError as error:
                who = f"client {client}" if client >= 0 else "the root data"
                raise ParameterError(f"{error}, of {who} in round {round}") from error
        gradients, moved = zip(*rows, strict=True)
        return stacked(gradients), stacked(moved)

    def together(
        self, local: Float[Tensor, "c d"], x: Tensor, y: Int[Tensor, "c b"]
    ) -> tuple[Float[Tensor, "c p"], Float[Tensor, "c r"]]:
        """Each client's gradient and running statistics, as one computation; any error if that can't be."""
        self.model.constants_on(local.device)
        name = "train", self.settings.loss, self.settings.precision
        try:
            return self.model.replays(name, self._vmapped, local, x, y)  # type: ignore[return-value]
        except RuntimeError as error:
            if not self.model.wants_plain_memory(error):
                raise
            return self.together(local, x, y)

    def _vmapped(self, local: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        parameters, statistics = self.model.split(self.model.layout.unflatten(local))
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        loss = partial(self.model.training_loss, loss=LOSSES[self.settings.loss])
        # no torch.func.grad, which imports torch's compiler: a client's loss depends on its own parameters alone
        # of all clients' convolutions in tf32, cuDNN's are the fastest
        gpu = local.device.type == "cuda" and self.settings.precision == "float32"
        ours = self.model.rearranges and (gpu or local.stride(0) == 0)
        way = ByClient() if ours else nullcontext()
        with torch.enable_grad(), computed_in(self.settings.precision, local.device), way:
            losses, moved = vmap(loss)(leaves, statistics, x, y)
            gradients = torch.autograd.grad(losses.sum(), list(leaves.values()), materialize_grads=True)
        return flattened(gradients, local), flattened(moved.values(), local)

    def _draws(self, client: int, round: int, step: int) -> int:
        """The seed of the random numbers that a forward pass draws."""
        return stream(self.seed, f"dropout/{step}", round, client).initial_seed()
