"""The clients. Nothing here knows which defense the server runs; `red_team` is for exercises and does nothing else."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits_app import red_team
from digits_app.task import Net, partition, train

app = ClientApp(mods=[red_team.mod])


@app.train()
def train_locally(message: Message, context: Context) -> Message:
    """Train the model that came on this node's samples, and send the result back."""
    torch.set_num_threads(1)
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    config, node = context.run_config, context.node_config
    x, y = partition(int(node["partition-id"]), int(node["num-partitions"]))
    x, y = red_team.poisoned(x, y, context)
    loss = train(
        model,
        x,
        y,
        epochs=int(config["local-epochs"]),
        learning_rate=float(config["learning-rate"]),
        batch_size=int(config["batch-size"]),
    )
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(y)})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)
