"""vLLM still has what we touch beyond its public interface, by name and signature: a new release fails in one place.

Where a line fails, the module of the last column is what to read and mend. The tests on real engines say whether it then
does what is wanted.
"""

import dataclasses
import importlib
import inspect
from typing import Any

import pytest

pytest.importorskip("vllm")

# Each row has a module, a name in it, the parameters that are passed or taken, and where it is used.
CALLED = [
    ("vllm", "LLM.init_weight_transfer_engine", ["request"], "serve/engine.py"),
    ("vllm", "LLM.start_weight_update", [], "serve/engine.py"),
    ("vllm", "LLM.update_weights", ["request"], "serve/engine.py"),
    ("vllm", "LLM.finish_weight_update", [], "serve/engine.py"),
    ("vllm", "LLM.collective_rpc", ["method", "args", "kwargs"], "serve/engine.py"),
    ("vllm", "LLM.reset_prefix_cache", [], "serve/engine.py"),
    ("vllm", "LLM.generate", ["prompts", "sampling_params", "use_tqdm"], "serve/engine.py"),
    ("vllm.sampling_params", "SamplingParams.clone", [], "serve/engine.py"),
    (
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._get_prompt_logprobs_dict",
        ["hidden_states", "num_scheduled_tokens"],
        "serve/hooks/continuation_scores.py",
    ),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._sample", ["logits"], "serve/hooks/seeded_draws.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._bookkeeping_sync", [], "serve/hooks/seeded_draws.py"),
    (
        "vllm.v1.core.kv_cache_manager",
        "KVCacheManager.get_computed_blocks",
        ["request"],
        "serve/hooks/continuation_scores.py",
    ),
    (
        "vllm.v1.core.kv_cache_coordinator",
        "KVCacheCoordinator.find_longest_cache_hit",
        ["block_hashes", "max_cache_hit_length"],
        "serve/hooks/continuation_scores.py",
    ),
    (
        "vllm._custom_ops",
        "rotary_embedding",
        ["positions", "query", "key", "head_size", "cos_sin_cache", "is_neox"],
        "serve/hooks/rotary_on_cpu.py",
    ),
    (
        "vllm.distributed.weight_transfer.factory",
        "WeightTransferEngineFactory.register_engine",
        ["name", "module_path_or_cls", "class_name"],
        "serve/plugin.py",
    ),
    (
        "vllm.distributed.weight_transfer.base",
        "WeightTransferEngine.__init__",
        ["config", "vllm_config", "device", "model"],
        "serve/switch/backend.py",
    ),
    ("vllm.distributed.weight_transfer.base", "WeightTransferEngine.parse_update_info", [], "serve/switch/backend.py"),
    ("vllm.model_executor.model_loader.reload", "initialize_layerwise_reload", ["model"], "serve/switch/reload.py"),
    (
        "vllm.model_executor.model_loader.reload.layerwise",
        "finalize_layerwise_processing",
        ["model", "model_config"],
        "serve/switch/reload.py",
    ),
    ("vllm.model_executor.model_loader.reload.layerwise", "get_layerwise_info", ["layer"], "serve/switch/trace.py"),
    (
        "vllm.model_executor.model_loader.reload.meta",
        "restore_layer_on_meta",
        ["layer", "info"],
        "serve/switch/trace.py",
    ),
    (
        "vllm.model_executor.model_loader.reload.layerwise",
        "_layerwise_process",
        ["layer", "info"],
        "serve/switch/reload.py",
    ),
    (
        "vllm.model_executor.model_loader.reload.meta",
        "materialize_layer",
        ["layer", "info"],
        "serve/switch/reload.py",
    ),
    ("vllm.engine.arg_utils", "EngineArgs.create_model_config", [], "serve/prefixes.py"),
    (
        "vllm.model_executor.layers.fused_moe.modular_kernel",
        "FusedMoEExperts.process_weights_after_loading",
        ["layer"],
        "serve/switch/experts.py",
    ),
    ("vllm.distributed.parallel_state", "get_pp_group", [], "serve/switch/backend.py"),
    ("vllm.transformers_utils.config", "register_config_parser", ["config_format"], "serve/text_part.py"),
    (
        "vllm.transformers_utils.config",
        "HFConfigParser.parse",
        ["model", "trust_remote_code", "kwargs"],
        "serve/text_part.py",
    ),
    ("vllm.model_executor.model_loader", "register_model_loader", ["load_format"], "serve/text_part.py"),
    (
        "vllm.model_executor.model_loader.default_loader",
        "DefaultModelLoader.get_all_weights",
        ["model_config", "model"],
        "serve/text_part.py",
    ),
    ("vllm.config.utils", "replace", ["dataclass_instance"], "serve/text_part.py"),
    ("vllm.config.model", "ModelConfig.get_vocab_size", [], "serve/engine.py"),
]

# Each row has a module, a class, what its source must still set or read, and where it is used.
READ = [
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.discard_request_mask", "serve/hooks/seeded_draws.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.query_start_loc", "serve/hooks/continuation_scores.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.input_batch", "serve/hooks/continuation_scores.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.requests", "serve/hooks/continuation_scores.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.intermediate_tensors", "serve/switch/backend.py"),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "self.coordinator", "serve/hooks/continuation_scores.py"),
    ("vllm.v1.core.sched.scheduler", "Scheduler", "self.kv_cache_manager", "serve/hooks/continuation_scores.py"),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch", "self.generators", "serve/hooks/seeded_draws.py"),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch", "self.sampling_metadata", "serve/hooks/seeded_draws.py"),
    ("vllm.v1.sample.metadata", "SamplingMetadata", "all_greedy", "serve/hooks/seeded_draws.py"),
    ("vllm.v1.outputs", "SamplerOutput", "sampled_token_ids", "serve/hooks/seeded_draws.py"),
    ("vllm.v1.engine.llm_engine", "LLMEngine", "self.output_processor", "serve/engine.py"),
    ("vllm.v1.engine.output_processor", "OutputProcessor", "tokenizer=self.tokenizer", "serve/engine.py"),
    ("vllm.config.vllm", "VllmConfig", "additional_config.compute_hash()", "serve/plugin.py"),
    (
        "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method",
        "UnquantizedFusedMoEMethod",
        "self.moe_kernel.fused_experts",
        "serve/switch/experts.py",
    ),
]

# fmt: off
ARGUMENTS = [
    "additional_config", "block_size", "compilation_config", "config_format", "distributed_executor_backend", "dtype",
    "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "hf_overrides", "kv_cache_memory_bytes",
    "load_format", "master_addr", "master_port", "max_model_len", "max_num_batched_tokens", "max_num_seqs", "model",
    "nnodes", "node_rank", "pipeline_parallel_size", "seed", "skip_tokenizer_init", "tensor_parallel_size",
    "weight_transfer_config", "worker_extension_cls",
]
SAMPLING = [
    "detokenize", "extra_args", "ignore_eos", "logprobs", "max_tokens", "prompt_logprobs", "seed", "skip_clone",
    "skip_special_tokens", "stop", "stop_token_ids", "temperature", "top_k", "top_p",
]
ENVIRONMENT = [
    "VLLM_API_KEY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_BATCH_INVARIANT", "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_ENABLE_RESPONSES_API_STORE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_HOST_IP", "VLLM_LOGGING_LEVEL",
    "VLLM_LOGGING_STREAM",
    "VLLM_NO_USAGE_STATS", "VLLM_PLUGINS", "VLLM_SERVER_DEV_MODE", "VLLM_USE_FLASHINFER_SAMPLER",
    "VLLM_USE_RUST_FRONTEND", "VLLM_USE_V2_MODEL_RUNNER",
]
# fmt: on


def find(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize(("module", "name", "parameters", "used_in"), CALLED, ids=[row[1] for row in CALLED])
def test_what_is_called_takes_what_it_is_given(module: str, name: str, parameters: list[str], used_in: str) -> None:
    signature = inspect.signature(find(module, name))
    missing = [parameter for parameter in parameters if parameter not in signature.parameters]
    assert not missing, f"{module}.{name}{signature} lacks {missing}: see {used_in}"


@pytest.mark.parametrize(("module", "name", "text", "used_in"), READ, ids=[f"{row[1]} {row[2]}" for row in READ])
def test_what_is_read_is_there(module: str, name: str, text: str, used_in: str) -> None:
    sources = [
        inspect.getsource(kind) for kind in find(module, name).__mro__[:-1] if kind.__module__.startswith("vllm")
    ]
    assert any(text in source for source in sources), f"{module}.{name} has no {text}: see {used_in}"


def test_arguments_of_an_engine_have_their_names() -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert sorted(set(ARGUMENTS) - {field.name for field in dataclasses.fields(EngineArgs)}) == []


def test_parameters_of_a_request_have_their_names() -> None:
    from vllm import SamplingParams

    assert sorted(set(SAMPLING) - set(SamplingParams.__struct_fields__)) == []


def test_variables_of_the_environment_have_their_names() -> None:
    from vllm import envs

    assert sorted(set(ENVIRONMENT) - set(envs.environment_variables)) == []


def test_a_reload_remembers_what_was_there_before_the_first_load() -> None:
    from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo

    assert "restore_metadata" in {field.name for field in dataclasses.fields(LayerReloadingInfo)}


def test_the_registry_of_weight_transfer_backends_is_a_mapping() -> None:
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    assert isinstance(WeightTransferEngineFactory._registry, dict)


def test_what_a_rank_reads_is_in_vllms_configs() -> None:
    """`serve/switch/backend.py` plans a GPU's memory by the sizes, and sees there who binds a rank to processors."""
    from vllm.config import CacheConfig, ModelConfig, ParallelConfig, SchedulerConfig

    read = {
        CacheConfig: {"gpu_memory_utilization", "kv_cache_memory_bytes"},
        ModelConfig: {"max_model_len", "dtype"},
        ParallelConfig: {"tensor_parallel_size", "pipeline_parallel_size", "numa_bind"},
        SchedulerConfig: {"max_num_batched_tokens", "max_num_seqs"},
    }
    for config, names in read.items():
        assert names <= {field.name for field in dataclasses.fields(config)}, config.__name__
