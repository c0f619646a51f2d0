"""The server: Flower's FedAvg, wrapped in a defense."""

from functools import partial

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits_app.task import Net, initial_model, root_data, test, test_data
from fedsieve.flower import Defended

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train for as many rounds as the run's configuration says."""
    config = context.run_config
    model, nodes = initial_model(), int(config["min-nodes"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    if config["defense"] != "stock":
        strategy = Defended(
            strategy,
            defense=str(config["defense"]),
            root=root_data(),
            module=model,
            out=str(config["out"]) or None,
            local={
                "epochs": int(config["local-epochs"]),
                "learning_rate": float(config["learning-rate"]),
                "batch_size": int(config["batch-size"]),
            },
        )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(config["num-server-rounds"]),
        timeout=float(config["round-timeout"]),
        evaluate_fn=partial(evaluate, *test_data()),
    )
    if config["model"]:
        torch.save(result.arrays.to_torch_state_dict(), str(config["model"]))


def evaluate(x: torch.Tensor, y: torch.Tensor, server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Loss and accuracy of the global model on the server's test set."""
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(model, x, y)
    return MetricRecord({"loss": loss, "accuracy": accuracy})
