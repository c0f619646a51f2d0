"""One experiment in Flower: clients that train exactly as those of the simulator do, and the server's defense.

As a script, it runs in Flower's simulation engine and writes what happened in each round to ``rounds.json``.

Usage: parity_app.py DEFENSE ATTACK FOLDER, in an environment with ``flwr[simulation]``.
"""

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from fedsieve.config.experiment import Experiment
from fedsieve.core.layout import Layout
from fedsieve.federation.simulation import Simulation
from fedsieve.flower import Defended, attack_mod

ROUNDS, CLIENTS = 5, 10
LOCAL = {"learning_rate": 0.2, "batch_size": 16, "steps": 3}
SERVER_RATE = 0.7
SEED = 4


@cache
def simulation(defense: str, attack: str) -> Simulation:
    """The same experiment in the simulator."""
    settings = {
        "dataset": "digits",
        "model": {"name": "mlp", "hidden": [16]},
        "partition": {"name": "dirichlet", "alpha": 1.0},
        "clients": CLIENTS,
        "malicious": 3,
        "attack": attack,
        "defense": defense,
        "rounds": ROUNDS,
        "seed": SEED,
        "local": LOCAL,
        "server": {"learning_rate": SERVER_RATE},
        "evaluate_every": ROUNDS,
    }
    return Simulation.of(Experiment.of(settings), Path("no such folder"), torch.device("cpu"))


def module_of(sim: Simulation) -> nn.Module:
    """The model before round 0."""
    module = copy.deepcopy(sim.trainer.model.module)
    module.load_state_dict(sim.trainer.model.layout.unflatten(sim.initial.server.params), strict=False)
    return module


def defended(sim: Simulation) -> Defended:
    """The same defense for a Flower server that knows nothing but its own data."""
    e = sim.experiment
    usual = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    return Defended(
        usual,
        defense=e.defense.name,
        root=(sim.holdings.root.x, sim.holdings.root.y),
        module=module_of(sim),
        assumed_malicious=e.assumed_malicious,
        server_learning_rate=SERVER_RATE,
        seed=SEED,
        local=LOCAL,
    )


def train(defense: str, attack: str, folder: Path, message: Message, context: Context) -> Message:
    """Train as client ``partition-id`` of the simulator does in this round."""
    sim, k = simulation(defense, attack), int(context.node_config["partition-id"])
    (folder / "nodes").mkdir(exist_ok=True)
    name = folder / "nodes" / str(context.node_id)
    if not name.exists():
        name.write_text(str(k))
    content, layout = message.content, sim.trainer.model.layout
    params = layout.flatten({n: torch.from_numpy(a.numpy()) for n, a in content["arrays"].items()})
    data = {k: sim.holdings.clients[k]}  # those of malicious clients are poisoned where the attack poisons data
    update = sim.trainer.updates(params, data, int(content["config"]["server-round"]) - 1)[0]
    arrays = ArrayRecord(layout.unflatten(params + update))
    metrics = MetricRecord({"num-examples": len(data[k].y)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def client_app(defense: str, attack: str, folder: Path) -> ClientApp:
    """A ClientApp, malicious where the simulator's client is; by a mod, unless the data are all that is malicious."""
    sim, mods = simulation(defense, attack), []
    if attack not in ("none", "label-flip"):
        bad = [int(i) for i in sim.holdings.malicious]
        mods = [
            attack_mod(attack, i_am_testing=True, malicious=bad, knowledge="full", shared=folder / "attack", seed=SEED)
        ]
    app = ClientApp(mods=mods)
    app.train()(partial(train, defense, attack, folder))
    return app


@dataclass(frozen=True)
class Round:
    """What happened in one round.

    Attributes:
        accepted: Clients whose update went into the model, ascending.
        params: The model after the round, [d].
    """

    accepted: list[int]
    params: list[float]


def in_the_simulator(defense: str, attack: str) -> list[Round]:
    """The rounds of the simulator."""
    found = []
    for state, record in simulation(defense, attack).rounds():
        lost = {*(record.rejected or ()), *record.screened}
        found.append(Round([k for k in record.clients if k not in lost], state.server.params.tolist()))
    return found


def in_flower(
    strategy: Defended, models: Sequence[ArrayRecord], layout: Layout, clients: Mapping[int, int]
) -> list[Round]:
    """The rounds of a Flower server.

    Args:
        strategy: What it ran.
        models: The model after each round.
        layout: Of the model.
        clients: The simulator's client of each node.
    """
    found = []
    for decision, arrays in zip(strategy.decisions, models, strict=True):
        params = layout.flatten({name: torch.from_numpy(array.numpy()) for name, array in arrays.items()})
        found.append(Round(sorted(clients[node] for node in decision.accepted), params.tolist()))
    return found


def in_the_engine(defense: str, attack: str, folder: Path) -> list[Round]:
    """The rounds of Flower's simulation engine, whose nodes have random ids."""
    sim, models = simulation(defense, attack), []
    strategy, app = defended(sim), ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        def note(server_round: int, arrays: ArrayRecord) -> None:
            if server_round:
                models.append(arrays)

        initial = ArrayRecord(module_of(sim).state_dict())
        strategy.start(grid=grid, initial_arrays=initial, num_rounds=ROUNDS, evaluate_fn=note)

    run_simulation(
        server_app=app,
        client_app=client_app(defense, attack, folder),
        num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    clients = {int(path.name): int(path.read_text()) for path in (folder / "nodes").iterdir()}
    return in_flower(strategy, models, sim.trainer.model.layout, clients)


if __name__ == "__main__":
    import parity_app  # by name, so that the processes of the engine find what they are sent

    folder = Path(sys.argv[3])
    found = parity_app.in_the_engine(*sys.argv[1:3], folder)
    (folder / "rounds.json").write_text(json.dumps([asdict(each) for each in found]))
