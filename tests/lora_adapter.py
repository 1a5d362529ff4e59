"""LoRA adapters of transformers' models, and what PEFT computes with them."""

from __future__ import annotations

import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D


class Adapter:
    """A random adapter of a transformers model.

    Args:
        chosen: ends of the names of modules that it changes; all projections by default.
        config: more of adapter_config.json.
    """

    def __init__(self, model, chosen="", rank=4, alpha=6, seed=1, **config):
        generator = torch.Generator().manual_seed(seed)
        self.rank, self.alpha, self.config = rank, alpha, config
        self.pairs, self.modules = {}, {}
        for name, module in model.named_modules():
            is_projection = isinstance(module, torch.nn.Linear | Conv1D) and name != "lm_head"
            if is_projection and name.endswith(chosen):
                rows, columns = module.weight.shape
                if isinstance(module, Conv1D):
                    rows, columns = columns, rows
                down = torch.randn(rank, columns, generator=generator)
                self.pairs[name] = down, torch.randn(rows, rank, generator=generator) / 10
                self.modules[name] = module

    def scaling(self, name):
        alpha = self.config.get("alpha_pattern", {}).get(name.rpartition(".")[2], self.alpha)
        return alpha / (math.sqrt(self.rank) if self.config.get("use_rslora") else self.rank)

    def save(self, folder, **tensors):
        """Write it as PEFT does.

        Args:
            tensors: in place of those of that name, or ``None`` for no such.
        """
        folder.mkdir(exist_ok=True)
        is_transposed = any(isinstance(module, Conv1D) for module in self.modules.values())
        config = {"peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "bias": "none"}
        config |= {"fan_in_fan_out": is_transposed, "init_lora_weights": True} | self.config
        (folder / "adapter_config.json").write_text(json.dumps(config))
        own = {
            f"base_model.model.{name}.lora_{part}.weight": tensor
            for name, pair in self.pairs.items()
            for part, tensor in zip("AB", pair, strict=True)
        }
        written = {name: tensor for name, tensor in (own | tensors).items() if tensor is not None}
        save_file(written, folder / "adapter_model.safetensors")
        return folder

    def apply(self):
        """Let the modules compute what PEFT's do; returns what takes that back."""
        hooks = [
            module.register_forward_hook(self._adds(*self.pairs[name], self.scaling(name)))
            for name, module in self.modules.items()
        ]
        return lambda: [hook.remove() for hook in hooks]

    @staticmethod
    def _adds(down, up, scaling):
        return lambda module, inputs, output: (
            output + F.linear(F.linear(inputs[0], down), up) * scaling
        )

    @torch.no_grad()
    def merge(self):
        """Change the modules' weights."""
        for name, module in self.modules.items():
            delta = self.delta(name)
            delta = delta.T if isinstance(module, Conv1D) else delta
            module.weight.copy_(module.weight.double() + delta)

    def delta(self, name):
        down, up = (tensor.double() for tensor in self.pairs[name])
        return self.scaling(name) * up @ down
