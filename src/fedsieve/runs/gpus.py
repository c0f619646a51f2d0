"""Which GPUs the processes of a sweep compute on, and whether several may compute on one at the same time."""

import os
from pathlib import Path

import torch

# Where NVIDIA's Multi-Process Service listens unless CUDA_MPS_PIPE_DIRECTORY says otherwise.
_USUAL = "/tmp/nvidia-mps"


def devices_of(device: str) -> list[str]:
    """The devices to share cells out to: all GPUs where ``cuda`` is asked for, without a number; else ``device``."""
    count = torch.cuda.device_count() if device == "cuda" else 0
    return [f"cuda:{k}" for k in range(count)] if count > 1 else [device]


def take_turns(device: str, jobs: int) -> bool:
    """Whether ``jobs`` processes on ``device`` would compute one after the other on some GPU.

    A GPU runs the kernels of one process at a time, unless NVIDIA's Multi-Process Service (MPS) is running.
    """
    if not device.startswith("cuda") or jobs <= len(devices_of(device)) or torch.version.hip:
        return False
    return not (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", _USUAL)) / "control").exists()
