"""A Flower strategy whose aggregation is a defense of this package."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedsieve.aggregators.weighting import check_weighable
from fedsieve.core.errors import ParameterError
from fedsieve.core.escaping import shown
from fedsieve.flower.choosing import Chosen, Settings, local_of, server_of
from fedsieve.flower.judging import Judge
from fedsieve.flower.metrics import named, number
from fedsieve.flower.recording import RoundDecision, decided, recorded
from fedsieve.flower.replies import stacked
from fedsieve.flower.root import Rooted, samples
from fedsieve.flower.stepping import Sent, check_wrapped, evaluation, moved
from fedsieve.models.flat import FlatModel

LOG = logging.getLogger("flwr")


class Defended(Strategy):
    """A Flower strategy with a defense. Mutable, as Flower's strategies are: it holds the server's state.

    Whom to ask, what to tell them, and the evaluation stay the wrapped strategy's. The replies of a round are checked
    one by one; one that can't be used is dropped, named in the log with its reason, and does not touch the others. The
    defense makes an aggregate of the rest, from which the wrapped strategy takes its own step: it is given a single
    reply that holds the aggregate, so FedAvg returns it as it is, and FedAdam or FedAvgM step towards it. No exception
    leaves a round; where nothing can be decided, the model stays, and the log says why.

    Clients count alike, whatever numbers of samples they report, unless ``weighting`` is ``"samples"``.

    Args:
        strategy: The strategy to wrap.
        defense: A name from ``fedsieve list defenses``, a mapping with a name and parameters, a chain of them, or an
            aggregator, detector or pre-aggregator.
        root: The server's clean data: ``(x, y)``, a ``Dataset`` or ``DataLoader`` of pairs or of mappings, or a
            function that returns one; needs ``module``.
        module: The model that clients train, on the device on which the server shall train. Without it, a model is any
            named arrays: those of floating-point numbers are parameters, those whose names end in ``running_mean`` or
            ``running_var`` running statistics, and the others stay as they were sent.
        local: How clients train, which the server repeats on its root data: ``learning_rate``, ``batch_size``,
            ``steps`` or ``epochs``, and so on, as in :func:`fedsieve.root_data`. With ``epochs``, the server takes as
            many steps as the client of the median number of samples.
        assumed_malicious: Number of malicious nodes to assume, or their share of the nodes that are asked.
        server_learning_rate: Share of the aggregate that is added to the model, before the wrapped strategy's step.
        optimizer: Name or mapping of a server optimizer of this package, in place of that.
        weighting: ``"equal"``, or ``"samples"``: the mean that follows a detector counts clients by their samples.
        weight_cap: Largest number of samples that counts, for models and metrics, in medians.
        min_replies: Fewest usable replies with which the model is moved; by default one more than the malicious nodes
            that are assumed.
        seed: Decides the defense's random numbers; by default it is drawn, and kept in the checkpoint. Keep it secret.
        out: A run directory: records for ``fedsieve report``, and checkpoints. None keeps nothing.
        resume: Whether :meth:`start` goes on with the run in ``out``, if there is one. Otherwise that is an error.
        name_key: Under which a node may report its name, in its metrics or in another record.

    Attributes:
        strategy: The wrapped strategy.
        decisions: What was decided in each round since this object was made.

    Raises:
        FedSieveError: If a setting is wrong, or the defense lacks what it needs.
    """

    def __init__(
        self,
        strategy: Strategy,
        defense: Any = "sieve",
        *,
        root: Any = None,
        module: nn.Module | None = None,
        local: Mapping[str, Any] | None = None,
        assumed_malicious: int | float = 0.2,
        server_learning_rate: int | float = 1.0,
        optimizer: Any = None,
        weighting: str = "equal",
        weight_cap: int | float = 3.0,
        min_replies: int | None = None,
        seed: int | None = None,
        out: str | Path | None = None,
        resume: bool = True,
        name_key: str = "partition-id",
    ) -> None:
        if isinstance(strategy, Defended):
            raise ParameterError("strategy is defended already; name several defenses as a chain, such as 'sieve,krum'")
        check_wrapped(strategy)
        chosen = Chosen.of(defense)
        chosen.check_root(root is not None, module is not None)
        if module is not None and not isinstance(module, nn.Module):
            raise ParameterError(f"module must be a torch.nn.Module, got {shown(module)}")
        if local is not None and root is None:
            raise ParameterError("local= says how the server trains on its root data, and has no effect without root=")
        if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
            raise ParameterError(f"seed must be an integer in 0 to 2^63 - 1, got {shown(seed)}")
        settings = Settings(
            chosen,
            assumed_malicious,
            local_of(local),
            server_of(server_learning_rate, optimizer),
            weighting,
            weight_cap,
            min_replies,
        )
        if weighting == "samples":
            check_weighable(chosen.aggregator, chosen.name)
        rooted = None
        if module is not None and root is not None:
            rooted = Rooted(module, *samples(root), dict(local or {}))
        elif module is not None:
            FlatModel.of(module)
        self.strategy = strategy
        self.decisions: list[RoundDecision] = []
        self._judge = Judge(settings, module, rooted, seed, None if out is None else Path(out))
        self._resume, self._name_key = resume, name_key
        self._key = str(getattr(strategy, "weighted_by_key", "num-examples"))
        self._sent: Sent | None = None
        self._evaluating: dict[int, int] = {}
        self._before = 0  # rounds of before a restart, which Flower's loop does not count

    @property
    def nodes(self) -> tuple[int, ...]:
        """Node id of each client id of the records and metrics, which count from 0."""
        return tuple(self._judge.nodes)

    # --- training ----------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Whom to ask, and what to send: the wrapped strategy's choice, of which a note is kept.

        Raises:
            FedSieveError: If the arrays are no model that can be aggregated, or the defense's bound does not hold for
                the nodes of the first round.
        """
        judge = self._judge
        if judge.arrays is None:  # a loop of the app's own
            arrays, _ = judge.open(arrays, server_round, self.strategy, self._resume)
        assert judge.arrays is not None
        flat = judge.arrays.vector(arrays)
        messages = list(self.strategy.configure_train(server_round + self._before, arrays, config, grid))
        asked = judge.ask(message.metadata.dst_node_id for message in messages)
        judge.check(len(asked))
        self._sent = Sent(arrays, flat, asked)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Any]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check each reply, let the defense decide, and let the wrapped strategy step from the aggregate.

        Returns:
            The model, that which was sent where it stays; and the accepted clients' metrics, with ``accepted``,
            ``rejected``, ``dropped`` and ``silent`` (numbers of nodes), ``applied`` (1 or 0), and ``rejected-clients``,
            ``dropped-clients`` and ``silent-clients`` (lists of client ids, which :attr:`nodes` tells).
        """
        sent, self._sent = self._sent, None
        if sent is None or self._judge.arrays is None:
            LOG.error("fedsieve: aggregate_train was called without configure_train: nothing is aggregated")
            return None, None
        if not sent.asked:
            return None, None
        began = time.perf_counter()
        host = sent.flat.cpu()
        matrix, usable, dropped = stacked(list(replies), sent.asked, self._judge.arrays, host, self._key)
        for reply in usable:
            self._judge.call(reply.node, named(reply.content, self._name_key))
        read = time.perf_counter()
        state, updates, decision = self._judge.judge(sent.flat, matrix, usable, sent.asked)
        state, decision, model, metrics = moved(
            self.strategy,
            server_round + self._before,
            self._judge.arrays,
            sent,
            (state, decision),
            usable,
            self._key,
            self._judge.settings.weight_cap,
        )
        ended = time.perf_counter()
        told = {reply.node for reply in usable} | {d.node for d in dropped}
        silent = [node for node in sent.asked if node not in told]
        found = decided(state.round, [reply.node for reply in usable], decision, dropped, silent)
        lost = {sent.asked[d.node]: d.reason for d in reversed(dropped) if d.node is not None and d.node in sent.asked}
        for reply in usable:
            lost.pop(sent.asked[reply.node], None)  # its other reply counts
        seconds = {"read": round(read - began, 6), "defend": round(ended - read, 6)}
        record = recorded(state.round - 1, updates, decision, lost, seconds)
        self.decisions.append(found)
        names = dict(zip(self._judge.nodes, self._judge.names, strict=True))
        for line in found.lines(names):
            LOG.info("fedsieve: %s", line)
        self._judge.keep(state, model, record, self.strategy)
        metrics |= found.metrics(sent.asked)
        return model, MetricRecord(metrics)

    # --- evaluation --------------------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The wrapped strategy's."""
        messages = list(self.strategy.configure_evaluate(server_round + self._before, arrays, config, grid))
        self._evaluating = {message.metadata.dst_node_id: k for k, message in enumerate(messages)}
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Any]) -> MetricRecord | None:
        """The wrapped strategy's, of those replies that it can take, and no client counts for too many samples.

        Replies of nodes whose update this round's training rejected or dropped are left out.
        """
        last = self.decisions[-1] if self.decisions else None
        bad = {*last.rejected, *(d.node for d in last.dropped)} - {*last.accepted} if last else set()
        asked = {node: k for node, k in self._evaluating.items() if node not in bad}
        return evaluation(
            self.strategy, server_round + self._before, list(replies), asked, self._key, self._judge.settings.weight_cap
        )

    # --- the whole run -----------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log the defense, and the wrapped strategy's settings."""
        s = self._judge.settings
        LOG.info("\t├──> Defended by fedsieve:")
        LOG.info("\t│\t├── Defense: %s", s.chosen.name)
        LOG.info("\t│\t├── Malicious nodes assumed: %s", s.assumed_malicious)
        LOG.info("\t│\t└── Weighting: %s", s.weighting)
        self.strategy.summary()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        **more: Any,
    ) -> Result:
        """Run all rounds as Flower's strategies do; with ``out``, go on where a run of before has stopped.

        Args:
            grid: The nodes.
            initial_arrays: The model to start from; not used where a run goes on.
            num_rounds: Number of rounds, those of before a restart included.
            timeout: Seconds to wait for the replies of a round.
            train_config: What is told to nodes for training.
            evaluate_config: What is told to nodes for evaluation.
            evaluate_fn: Evaluates the model at the server; ``accuracy`` and ``loss`` in what it returns are recorded.
            **more: What Flower's own ``start`` takes beside that.

        Returns:
            The model, and the metrics of the rounds that were run now.

        Raises:
            FedSieveError: If the model can't be used, or the run directory.
        """
        judge = self._judge
        arrays, done = judge.open(initial_arrays, num_rounds, self.strategy, self._resume)
        self._before = done

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            assert evaluate_fn is not None
            found = evaluate_fn(server_round + done, arrays)
            if server_round:
                judge.score(*(number(found, name) for name in ("accuracy", "loss")))
            return found

        try:
            if done >= num_rounds:
                LOG.info("fedsieve: all %d rounds are done", num_rounds)
                result = Result()
                result.arrays = arrays
                return result
            if done:
                LOG.info("fedsieve: Flower counts from 1 again: its round 1 is round %d of %d", done + 1, num_rounds)
            rest, given = num_rounds - done, evaluate if evaluate_fn else None
            result = Strategy.start(self, grid, arrays, rest, timeout, train_config, evaluate_config, given, **more)
        finally:
            self._before = 0
            judge.close()
        r = result
        for metrics in (r.train_metrics_clientapp, r.evaluate_metrics_clientapp, r.evaluate_metrics_serverapp):
            counted = {k + done: v for k, v in metrics.items()}
            metrics.clear()
            metrics.update(counted)
        return result

    def close(self) -> None:
        """Release the run directory; :meth:`start` does so by itself."""
        self._judge.close()
