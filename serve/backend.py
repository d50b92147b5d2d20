"""The λ switch inside a vLLM worker: a weight-transfer backend that makes the weights instead of receiving them.

vLLM's weight-transfer API lets a trainer push new weights into a running engine. Here nothing is pushed: the update says
only `{"lam": "0.35"}`, and each rank computes its weights from the two parents. Where the parents are is configured through
`additional_config={"lambdasweep": {"base": …, "aligned": …}}`, because the backend is made during `load_model`, before
any message can reach it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from merge.checkpoint import open_checkpoint
from merge.pair import Pair
from serve.plugin import CONFIG_KEY
from serve.routes import ReloadRoute, Route

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing: the parents are known from `additional_config`."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The point to move to, as a canonical λ."""

    lam: str


class InterpolationEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """One per vLLM worker. If a switch raises, the weights are half-written and the worker must not score again."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: "WeightTransferConfig", vllm_config: "VllmConfig", device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        parents = vllm_config.additional_config[CONFIG_KEY]
        # The driver has checked the pair; a worker reads the headers again only to know where each tensor is.
        pair = Pair(open_checkpoint(parents["base"], "base"), open_checkpoint(parents["aligned"], "aligned"), ())
        self._route: Route = ReloadRoute(pair, model, vllm_config.model_config)

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Nothing: a switch is one update."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Make θ(λ) live in this rank."""
        self._route.switch(update_info.lam)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in the base class, which synchronises through an API that CPU builds of PyTorch lack."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """Nothing: see `start_weight_update`."""

    def shutdown(self) -> None:
        """Nothing is held beyond the model's own lifetime."""
