"""Server optimizers by name: those of ``torch.optim``, and Yogi."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Yogi(Optimizer):
    """FedYogi: Adam whose second moment changes by at most (1 - beta2) times the squared gradient in a step.

    Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan. Adaptive Federated Optimization. ICLR 2021.
    Algorithm 2; Zaheer et al., NeurIPS 2018. Without bias correction, as there.

    Args:
        params: Tensors to optimize.
        lr: Learning rate.
        betas: Decay of the first and of the second moment, each in [0, 1).
        eps: τ in the paper: added to the denominator; the second moment starts at its square.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-2, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-3
    ) -> None:
        if not (lr > 0 and eps > 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"lr and eps must be positive and betas in [0, 1), got {lr}, {eps} and {betas}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, from the gradients in ``grad``."""
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                state: dict[str, Any] = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.full_like(p, group["eps"] ** 2)
                m, v, square = state["exp_avg"], state["exp_avg_sq"], p.grad.square()
                m.lerp_(p.grad, 1 - first)
                v.sub_((1 - second) * torch.sign(v - square) * square)
                p.sub_(group["lr"] * m / (v.sqrt() + group["eps"]))


def optimizers() -> dict[str, type[Optimizer]]:
    """Every optimizer that needs a dense gradient and no closure, by name."""
    unfit = {"Optimizer", "LBFGS", "SparseAdam"}
    torchs = {n: c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, Optimizer)}
    return {n: c for n, c in torchs.items() if n not in unfit} | {"Yogi": Yogi}
