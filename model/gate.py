"""The gate: eight experts and their weights for every token.

Sigmoid scores; a bias that only chooses, never weighs; 8 groups of which the 4 with the best two experts
stay; top 8 of those; weights renormalised and scaled. DeepSeek-V3, arXiv 2412.19437, section 2.1.2. Knows
nothing of where experts live.

Letters: T rows  D hidden  E experts  G groups  K experts per token
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import gate_rows
from kernels.compiled import IS_COMPILED
from kernels.rows import matmul_rows
from kernels.topk import ranking, topk_lowest
from model.config import ModelConfig


class Gate:
    """The gate of one layer. weight_DE and bias_E are fp32 whatever the model's dtype."""

    def __init__(self, config: ModelConfig, weight_DE: Tensor, bias_E: Tensor) -> None:
        self._config = config
        self._weight_DE = weight_DE
        self._bias_E = bias_E

    def choose(self, h_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(weights_TK fp32, experts_TK int64); experts ascend, which fixes the order of the combine sum."""
        config = self._config
        logits_TE = matmul_rows(h_TD.float(), self._weight_DE)
        if IS_COMPILED and logits_TE.is_cpu:
            return gate_rows.choose(
                logits_TE,
                self._bias_E,
                num_groups=config.num_expert_groups,
                num_kept=config.num_kept_groups,
                num_chosen=config.num_experts_per_token,
                normed=config.norm_topk_prob,
                scale=config.routed_scaling_factor,
            )
        scores_TE = torch.sigmoid(logits_TE)
        choice_TE = scores_TE + self._bias_E
        if config.num_kept_groups < config.num_expert_groups:
            choice_TE = self._keep_groups(choice_TE)
        experts_TK = topk_lowest(choice_TE, config.num_experts_per_token)
        weights_TK = scores_TE.gather(1, experts_TK)
        if config.norm_topk_prob:
            weights_TK /= weights_TK.sum(-1, keepdim=True).add_(1e-20)
        return weights_TK.mul_(config.routed_scaling_factor), experts_TK

    def _keep_groups(self, choice_TE: Tensor) -> Tensor:
        """choice_TE, in place, with every expert outside the kept groups at -inf."""
        config = self._config
        choice_TGE = choice_TE.view(len(choice_TE), config.num_expert_groups, -1)
        best_two_TG = torch.topk(choice_TGE, 2, sorted=False).values.sum(-1)
        left_TG1 = ranking(best_two_TG)[:, config.num_kept_groups :, None]
        choice_TGE.scatter_(1, left_TG1.expand(-1, -1, choice_TGE.shape[-1]), float("-inf"))
        return choice_TE
