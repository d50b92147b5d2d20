"""The λ switch inside a vLLM worker: a weight-transfer backend that makes the weights instead of receiving them.

vLLM's weight-transfer API lets a trainer push new weights into a running engine. Here nothing is pushed: the update says
only `{"lam": "0.35"}`, and each rank computes its weights from its parents. Where the parents are is configured through
vLLM's `additional_config` (`serve.plugin.ParentsConfig`), because the backend is made during `load_model`, before any
message can reach it and before the KV cache takes what memory is left.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.parallel_state import get_pp_group
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.logger import init_logger

import serve.text_part  # noqa: F401 a rank loads its weights through what it registers
from contract.errors import InputError
from contract.points import role
from merge.checkpoint import open_checkpoint
from merge.file_states import check_unchanged
from merge.interpolate import tensor_rules
from merge.line import Line
from merge.model_sizes import sizes_of
from merge.pair import Pair, put_together
from merge.text_part import only_text, text_part
from serve.hooks.continuation_scores import ContinuationHead
from serve.hooks.seeded_draws import SeededDraws
from serve.machine import hardware, host_memory
from serve.needs import needs
from serve.numa import bind_to_node
from serve.plugin import CONFIG_KEY, RESIDENT
from serve.settings import available_cores, threads_of_rank
from serve.switch.recorder import UntraceableError
from serve.switch.reload import ReloadRoute, Route
from serve.switch.resident import ResidentRoute
from serve.switch.tiers import RELOAD, Room, tier_for

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig

logger = init_logger(f"vllm.{__name__}")  # vLLM's handlers print what is below its own name


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """There is nothing to tell at the start: the parents are known from `additional_config`."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The point to move to, by its canonical name."""

    lam: str


class InterpolationEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """Each vLLM worker has one backend. If a switch raises, its weights are half-written, and it must not score again."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(
        self, config: "WeightTransferConfig", vllm_config: "VllmConfig", device: torch.device, model: torch.nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        parents = vllm_config.additional_config[CONFIG_KEY]
        # The driver has checked the pair; a worker reads the headers again only to know where each tensor is.
        base = open_checkpoint(parents["base"], "base")
        aligned = {role(name): open_checkpoint(path, role(name)) for name, path in parents["aligned"].items()}
        pair = put_together({"base": base} | aligned, Line.from_json(parents["line"]))
        self._files = pair.files
        part = text_part(pair.shaped)
        names = part.names if part else {}
        whole, pair = pair, only_text(pair)
        rules = tensor_rules(pair, _settle(device, vllm_config, parents["ranks"]))
        self.digest = ""
        self.tier = ""
        self.reason = ""  # why there is no resident route
        self._routes: dict[str, Route] = {
            RELOAD: ReloadRoute(pair, rules, model, vllm_config.model_config, device, names)
        }
        if parents["tier"] == RELOAD:
            self.reason = "--parents reload"
        else:
            room = _room(device, vllm_config, parents["ranks"], whole)

            def choose_tier(tensors: int, factors: int) -> str:
                return tier_for(parents["tier"], tensors, replace(room, factor_bytes=factors))

            try:
                dtype = vllm_config.model_config.dtype
                resident = ResidentRoute(pair, rules, model, device, choose_tier, dtype, names)
            except InputError:
                raise  # the place that was asked for is too small
            except Exception as error:  # vLLM's loader, fed with tensors it did not expect, may raise anything
                self.reason = str(error) if isinstance(error, UntraceableError) else f"{type(error).__name__}: {error}"
            else:
                self._routes[RESIDENT], self.tier = resident, resident.tier
        self._route = self._routes.get(RESIDENT, self._routes[RELOAD])
        check_unchanged(self._files)  # what was copied or mapped is of the files whose headers were read

    def use(self, route: str, only: bool) -> None:
        """Switch through `route` from now on; `only` gives up the other one and its memory."""
        self._route = self._routes[route]
        if only:
            self._routes = {route: self._route}

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Do nothing: there is nobody to connect to."""

    def start_weight_update(self) -> None:
        """Do nothing: a switch is one update."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Make θ(λ) live in this rank.

        Raises:
            PairError: somebody wrote to a parent's files after they were opened.
        """
        self.digest = self._route.switch(update_info.lam)
        # What was read is of the files that were opened if they are the same now. A file may be written to at any time.
        if self._route.reads != "not at all":
            check_unchanged(self._files, are_mapped=self._route.reads == "mapped")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Update as the base class does, which synchronises through an API that CPU builds of PyTorch lack."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def finish_weight_update(self) -> None:
        """Do nothing: a switch is one update."""

    def shutdown(self) -> None:
        """Do nothing: what the backend holds lives no longer than the model."""


class WorkerExtension:
    """These are the calls that the engine can make to each of its workers, by name, through vLLM's `collective_rpc`."""

    weight_transfer_engine: InterpolationEngine
    model_runner: Any
    device: torch.device
    interpolation_head: ContinuationHead
    interpolation_draws: SeededDraws

    def interpolation_tier(self) -> tuple[str, str]:
        """Return this rank's tier, or "" and why it has no resident route."""
        return self.weight_transfer_engine.tier, self.weight_transfer_engine.reason

    def interpolation_use(self, route: str, only: bool) -> None:
        self.weight_transfer_engine.use(route, only)

    def interpolation_digest(self) -> str:
        """Return the digest of the weights that are live in this rank."""
        return self.weight_transfer_engine.digest

    def interpolation_score_rows(self) -> None:
        """From now on, score what prompts ask for in their extra_args."""
        runner = self.model_runner
        self.interpolation_head = ContinuationHead(runner)
        # What a stage receives from the one before goes into buffers that vLLM makes in its first dummy run, of which there
        # is none on the CPU without compilation.
        if not get_pp_group().is_first_rank and runner.intermediate_tensors is None:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=self.device
            )

    def interpolation_rows(self) -> Any:
        """Return `ContinuationHead.take` of the last pipeline stage, which is the one that has an LM head."""
        return self.interpolation_head.take() if get_pp_group().is_last_rank else None

    def interpolation_hardware(self) -> str:
        """Return the kind of hardware that this rank computes on."""
        return hardware(self.device.type)

    def interpolation_seeds(self) -> None:
        """From now on, requests with a seed draw as `serve.hooks.seeded_draws` says."""
        self.interpolation_draws = SeededDraws(self.model_runner)

    def interpolation_draws_taken(self) -> Any:
        """Return `SeededDraws.take` of the last pipeline stage, which is the one that samples."""
        return self.interpolation_draws.take() if get_pp_group().is_last_rank else None


def _settle(device: torch.device, vllm_config: "VllmConfig", ranks: int) -> int | None:
    """Bind a GPU's rank to the processors beside the GPU; return how many threads it may use while it starts.

    They are counted here because PyTorch has one thread in this process: Ray gives no more to an actor without processors,
    and vLLM wants no more between steps. On a CPU the settings say how many it has, and None is returned.
    """
    if device.type != "cuda":
        return None
    threads = threads_of_rank(len(available_cores()), ranks)
    if not vllm_config.parallel_config.numa_bind:
        found: Any = torch.cuda.get_device_properties(device)
        address = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
        logger.info("%s", bind_to_node(address))
    return threads


def _room(device: torch.device, vllm_config: "VllmConfig", ranks: int, pair: Pair) -> Room:
    total, available = host_memory()
    if device.type == "cpu":
        return Room(total, available, ranks)
    free, device_total = torch.cuda.mem_get_info(device)
    cache, model, steps, parallel = (
        vllm_config.cache_config,
        vllm_config.model_config,
        vllm_config.scheduler_config,
        vllm_config.parallel_config,
    )
    need = needs(
        sizes_of(pair),
        model.max_model_len,
        steps.max_num_batched_tokens,
        steps.max_num_seqs,
        model.dtype.itemsize,
        parallel.tensor_parallel_size,
        parallel.pipeline_parallel_size,
    )
    return Room(
        total,
        available,
        ranks,
        device_total,
        free,
        cache.gpu_memory_utilization,
        cache.kv_cache_memory_bytes,
        need.request,
        need.step,
    )
