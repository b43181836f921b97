"""AdamW with float32 master weights, its schedule, and the norm of the gradient."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nvembed.errors import NumericsError
from nvembed.train.recipe import OptimizerSection
from nvembed.weights.adapter import BACKBONE_PREFIX


def learning_rate(step: int, peak: float, settings: OptimizerSection) -> float:
    """Return the learning rate of a step, counted from 0: it rises in the warm-up, then falls linearly to 0.

    The first step has ``peak / warmup_steps``; the last one is one step away from 0.
    Paper: Table 11 (50 steps of warm-up), appendix C (linear decay).
    """
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    return peak * (settings.steps - step) / (settings.steps - settings.warmup_steps)


class Optimizer:
    """AdamW over a model's trained parameters.

    Parameters in half precision have a float32 copy (the master), which is updated and rounded back; without
    it small steps would be lost in rounding. Gradients of all micro-batches are summed in the master's dtype.
    With ``offload``, masters and moments are in the host's memory, and gradients are copied there once per
    step. Matrices decay; vectors (norms, biases) do not.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], settings: OptimizerSection) -> None:
        self.settings = settings
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        self.masters = [_master(value, settings) for value in self.parameters]
        self._sums: dict[str, Tensor] = {}  # gradients of parameters that have a master
        groups = []
        for pooler in (False, True):
            for matrix in (False, True):
                chosen = [
                    master
                    for name, master in zip(self.names, self.masters, strict=True)
                    if (not name.startswith(BACKBONE_PREFIX)) is pooler and (master.ndim > 1) is matrix
                ]
                decay = settings.weight_decay if matrix else 0.0
                if chosen:
                    groups.append({"params": chosen, "weight_decay": decay, "pooler": pooler})
        self._adam = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.epsilon)

    def collect(self) -> None:
        """Move the parameters' gradients into the sums."""
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if parameter is master or parameter.grad is None:
                continue
            if name in self._sums:
                self._sums[name] += parameter.grad
            else:
                self._sums[name] = parameter.grad.to(master.dtype)
            parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """Return the summed gradient of every parameter; zeros for one without a gradient."""
        gradients: list[Tensor] = []
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if parameter is not master:
                if name not in self._sums:
                    self._sums[name] = torch.zeros_like(parameter, dtype=master.dtype)
                gradients.append(self._sums[name])
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return gradients

    def step(self, number: int) -> float:
        """Update the parameters and clear the gradients; return their norm before clipping.

        Raises:
            NumericsError: the norm is not finite; nothing was updated.
        """
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if parameter is not master and name in self._sums:
                master.grad = self._sums.pop(name).to(master.device)
        norm = nn.utils.clip_grad_norm_(self.masters, self.settings.max_grad_norm)
        size = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not size < float("inf"):
            raise NumericsError(
                f"the gradient's norm is {size}: the last saved state is untouched; lower the learning rate, "
                "or use float32"
            )
        for group in self._adam.param_groups:
            peak = self.settings.pooler_learning_rate if group["pooler"] else self.settings.learning_rate
            group["lr"] = learning_rate(number, peak, self.settings)
        self._adam.step()
        self._adam.zero_grad()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if parameter is not master:
                    parameter.copy_(master)
        return size

    def state(self) -> dict[str, Tensor]:
        """Return the tensors for resuming: masters and moments (``master.NAME``, ``exp_avg.NAME``, ...)."""
        tensors: dict[str, Tensor] = {}
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if parameter is not master:
                tensors[f"master.{name}"] = master.detach()
            for key, value in self._adam.state[master].items():
                tensors[f"{key}.{name}"] = value
        return tensors

    def empty_state(self) -> dict[str, Tensor]:
        """Return tensors with the names and shapes of ``state``, to be filled."""
        tensors: dict[str, Tensor] = {}
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if parameter is not master:
                tensors[f"master.{name}"] = torch.zeros_like(master)
            tensors[f"step.{name}"] = torch.tensor(0.0)
            tensors[f"exp_avg.{name}"] = torch.zeros_like(master)
            tensors[f"exp_avg_sq.{name}"] = torch.zeros_like(master)
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what ``state`` returned for the same parameters."""
        for name, parameter, master in zip(self.names, self.parameters, self.masters, strict=True):
            if parameter is not master:
                with torch.no_grad():
                    master.copy_(state[f"master.{name}"])
                    parameter.copy_(master)
            self._adam.state[master] = {
                key: state[f"{key}.{name}"].clone().to("cpu" if key == "step" else master.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}.{name}" in state
            }


def _master(parameter: nn.Parameter, settings: OptimizerSection) -> nn.Parameter:
    device = "cpu" if settings.offload else parameter.device
    there = parameter.device == torch.device(device)
    if not settings.master_weights or (there and parameter.dtype in (torch.float32, torch.float64)):
        return parameter
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return nn.Parameter(parameter.detach().to(device, dtype, copy=True))
