"""A Flower federation on loopback: a SuperLink with TLS and node authentication, and SuperNodes with keys of their own;
or a SuperLink that simulates the nodes.
"""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from keys import certificates, node_key
from processes import Processes, free_port, until

BIN = Path(sys.executable).parent
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass
class Node:
    """One SuperNode: its name here, the id that the SuperLink gave to its key, its process."""

    name: str
    id: int
    config: str
    process: "subprocess.Popen[bytes] | None" = None


class SuperLink:
    """Use it as a context: whatever happens, its processes are ended; keys, logs and configuration stay in ``folder``.

    Args:
        folder: For all files; must not exist.
        environment: Of the processes.
        simulation: Simulates the nodes, and is not protected; otherwise it has TLS and admits known keys only.
    """

    def __init__(self, folder: Path, environment: dict[str, str], *, simulation: bool = False) -> None:
        self.folder = folder.resolve()
        self.processes = Processes({**environment, **QUIET, "PATH": f"{BIN}:{environment['PATH']}"})
        self.port = free_port()
        self.log = self.folder / "superlink.log"
        self.simulation = simulation

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.processes.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.processes.end()

    def _start(self) -> None:
        """The SuperLink, and the configuration by which `flwr` finds it."""
        (self.folder / "cli").mkdir(parents=True)
        command = ["flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)]
        if self.simulation:
            command += ["--insecure", "--simulation"]
            trust = "insecure = true"
        else:
            certificates(self.folder)
            command += ["--enable-supernode-auth"]
            for option, file in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")):
                command += [f"--ssl-{option}", str(self.folder / file)]
            trust = f'root-certificates = "{self.folder}/ca.crt"'
        (self.folder / "cli" / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{self.port}"\n{trust}\n'
        )
        superlink = self._background(command, "superlink")

        def up() -> bool:
            if superlink.poll() is not None:
                raise RuntimeError(f"the SuperLink ended:\n{self.log.read_text()[-2000:]}")
            return "Uvicorn running" in self.log.read_text()

        until(up, 60, "the SuperLink answers")

    def _background(self, command: list[str], name: str) -> "subprocess.Popen[bytes]":
        home = {"FLWR_HOME": str(self.folder / name)}
        return self.processes.start(
            [str(BIN / command[0]), *command[1:]], self.folder / f"{name}.log", self.folder, home
        )

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """A `flwr` command's answer."""
        command = [str(BIN / "flwr"), *arguments, "--format", "json"]
        return dict(json.loads(self.processes.run(command, self.folder, {"FLWR_HOME": str(self.folder / "cli")})))

    def node(self, name: str, config: str, *, register: bool = True) -> Node:
        """Make a key, tell the SuperLink of it unless not to ``register``, and start the SuperNode."""
        key = self.folder / f"{name}.key"
        node_key(key)
        number = int(self.flwr("supernode", "register", f"{key}.pub")["node-id"]) if register else 0
        node = Node(name, number, config)
        self.start(node)
        return node

    def start(self, node: Node) -> None:
        """Start a SuperNode, or start it anew with the key that it had."""
        command = ["flower-supernode", "--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())]
        command += ["--root-certificates", str(self.folder / "ca.crt"), "--node-config", node.config]
        command += ["--auth-supernode-private-key", str(self.folder / f"{node.name}.key")]
        node.process = self._background(command, node.name)

    def kill(self, node: Node) -> None:
        """End a SuperNode and its client at once."""
        assert node.process is not None
        self.processes.kill(node.process)
        node.process = None

    def online(self) -> set[int]:
        """Ids of the nodes that the SuperLink counts as online."""
        nodes = self.flwr("supernode", "list")["nodes"]
        return {int(node["node-id"]) for node in nodes if node["status"] == "online"}

    def run(self, app: Path, *, nodes: int | None = None, **config: object) -> int:
        """Start a run of the app; returns its id.

        Args:
            app: Folder of the app.
            nodes: How many nodes a simulation has.
            **config: The run's configuration, by the app's names, with `_` for `-`.
        """
        values = " ".join(f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in config.items())
        options = ["--federation-config", f"num-supernodes={nodes}"] if nodes else []
        return int(self.flwr("run", str(app), "here", "--run-config", values, *options)["run-id"])

    def status(self, run: int) -> str:
        """What the SuperLink says of a run: "running", "finished:completed", ..."""
        return str(self.flwr("list", "--run-id", str(run))["runs"][0]["status"])

    def wait(self, run: int, seconds: float) -> str:
        """Wait until a run has ended; returns its status."""
        until(lambda: self.ended(run), seconds, f"the end of run {run}")
        return self.status(run)

    def ended(self, run: int) -> bool:
        """Whether the ServerApp of a run has reported its end."""
        return re.search(rf"Finished task \d+ of run {run}\b", self.log.read_text(errors="replace")) is not None

    def messages(self, run: int) -> str:
        """What the ServerApp of a run has logged."""
        home = {"FLWR_HOME": str(self.folder / "cli")}
        return self.processes.run([str(BIN / "flwr"), "log", str(run), "here", "--show"], self.folder, home)

    def kill_server_app(self) -> None:
        """End the ServerApp's process at once; the SuperLink goes on."""
        for pid, command in self.processes.ours():
            if "flwr-serverapp" in command:
                self.processes.kill_id(pid)
