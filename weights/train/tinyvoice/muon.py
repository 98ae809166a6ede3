"""Muon (Jordan et al. 2024) for the matrices of a network, AdamW for the rest, as one optimiser.

A matrix moves by its momentum with all singular values near one, so that no direction waits for the strong ones. Scaled by
0.2 sqrt(longer side) (arXiv 2502.16982) its steps are as large as those of AdamW at the same rate.
"""
import torch


def orthogonal(matrix, rounds=5):
    """The nearest matrix with singular values near one, by Newton-Schulz iteration: [M, N] -> [M, N]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


class Muon(torch.optim.AdamW):
    """`matrices` are stepped by Muon, convolutions as [outputs, inputs * width]; `others`, parameters or groups of them, by AdamW at
    `pace` of Muon's rate where a group has none of its own."""

    def __init__(self, matrices, others, lr, betas, weight_decay, momentum=0.95, pace=1.0):
        self.matrices, self.momentum = list(matrices), momentum
        others = list(others)
        groups = others if isinstance(others[0], dict) else [{"params": others}]
        groups = [{"pace": pace, **group} for group in groups] + [{"params": self.matrices, "muon": True}]
        super().__init__(groups, lr, betas=betas, weight_decay=weight_decay)

    def __setstate__(self, state):
        for of_parameter in state["state"].values():
            of_parameter.setdefault("step", torch.zeros(()))      # AdamW looks for it in all of them
        super().__setstate__(state)

    @torch.no_grad()
    def step(self):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        super().step()
        self.param_groups = groups
        for group in groups:
            if not group.get("muon"):
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - self.momentum)
                update = orthogonal(parameter.grad.lerp(state["momentum"], self.momentum).flatten(1))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)
