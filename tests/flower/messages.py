"""Flower's messages without a SuperLink."""

from importlib import import_module

from flwr.app import Message, RecordDict

RUN, SERVER = 1, 1


def as_a_server() -> None:
    """Let this process make messages: from Flower 1.41 or so, it must be a server's that has a run."""
    try:
        identity = import_module("flwr.supercore.task_identity").TaskIdentity
    except ImportError:
        return
    identity.run_id, identity.task_id, identity.node_id = RUN, 1, SERVER


def sent_to(node: int, content: RecordDict, kind: str = "train") -> Message:
    """What the server sends to a node."""
    as_a_server()
    return Message(content, dst_node_id=node, message_type=kind)
