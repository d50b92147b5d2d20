"""vLLM still has what we touch beyond its public interface, by name and signature: a new release fails in one place.

Where a line fails, the module of the last column is what to read and mend. The tests on real engines say whether it then
does what is wanted. Names and signatures do not tell what is inside: run as a script, this file prints the source of
all that is touched, so that two releases can be compared (CONTRIBUTING.md says how).
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

LAYERS, LOADER = "vllm.model_executor.layers", "vllm.model_executor.model_loader.default_loader"
RUNNER, EXECUTOR = "vllm.v1.worker.gpu_model_runner", "vllm.v1.executor.multiproc_executor"
AUTHENTICATE = "vllm.entrypoints.serve.middleware.authenticate"
PLUGIN = "vllm.plugins.endpoint_plugins.interface"
TRANSFER = "vllm.distributed.weight_transfer.base"
SCORES, BACKEND, V1 = "serve.hooks.continuation_scores", "serve.switch.backend", "serve.hooks.v1_runner"
# fmt: off
BACKEND_CALLS = [
    "__init__", "init_transfer_engine", "start_weight_update", "receive_weights", "update_weights", "finish_weight_update",
    "shutdown",
]
# fmt: on
SERVER, ENDPOINT = "serve/http/server.py", "serve/http/endpoint.py"

CORE = "serve/core_requests.py"
# fmt: off
CORE_REQUEST = [
    "request_id", "prompt_token_ids", "sampling_params", "arrival_time", "mm_features", "pooling_params", "lora_request",
    "cache_salt", "data_parallel_rank",
]
# fmt: on

# Each row has a module, a name in it, the parameters that are passed or taken, and where it is used.
CALLED = [
    ("vllm", "LLM.init_weight_transfer_engine", ["request"], "serve/engine.py"),
    ("vllm", "LLM.start_weight_update", [], "serve/engine.py"),
    ("vllm", "LLM.update_weights", ["request"], "serve/engine.py"),
    ("vllm", "LLM.finish_weight_update", [], "serve/engine.py"),
    ("vllm", "LLM.collective_rpc", ["method", "args", "kwargs"], "serve/engine.py"),
    ("vllm", "LLM.reset_prefix_cache", ["reset_connector"], "serve/engine.py"),
    ("vllm", "LLM.generate", ["prompts", "sampling_params", "use_tqdm"], "serve/engine.py"),
    ("vllm.v1.engine.core_client", "InprocClient.add_request", ["request"], CORE),
    ("vllm.v1.engine.core_client", "InprocClient.get_output", [], CORE),
    ("vllm.v1.engine.core_client", "InprocClient.abort_requests", ["request_ids"], CORE),
    ("vllm.v1.engine", "EngineCoreRequest", CORE_REQUEST, CORE),
    (
        "vllm.v1.worker.gpu_model_runner",
        "GPUModelRunner._get_prompt_logprobs_dict",
        ["hidden_states", "num_scheduled_tokens"],
        "serve/hooks/v1_runner.py",
    ),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._sample", ["logits"], "serve/hooks/v1_runner.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner._bookkeeping_sync", [], "serve/hooks/v1_runner.py"),
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
    (
        "vllm.model_executor.utils",
        "replace_parameter",
        ["layer", "param_name", "new_tensor"],
        "serve/switch/experts.py",
    ),
    (f"{LAYERS}.vocab_parallel_embedding", "VocabParallelEmbedding", [], "serve/switch/packing.py"),
    (f"{LAYERS}.vocab_parallel_embedding", "ParallelLMHead", [], "serve/switch/packing.py"),
    (f"{LAYERS}.linear", "UnquantizedLinearMethod.process_weights_after_loading", ["layer"], "serve/switch/packing.py"),
    ("vllm.entrypoints.cli.serve", "make_arg_parser", ["parser"], SERVER),
    ("vllm.entrypoints.cli.serve", "validate_parsed_serve_args", ["args"], SERVER),
    ("vllm.entrypoints.launchers.api_server.entry", "run_server", ["args"], SERVER),
    ("vllm.utils.argparse_utils", "FlexibleArgumentParser.parse_args", ["args"], SERVER),
    ("vllm.engine.arg_utils", "AsyncEngineArgs.from_cli_args", ["args"], SERVER),
    ("vllm.engine.arg_utils", "EngineArgs.create_engine_config", ["usage_context", "headless"], "serve/multinode.py"),
    (EXECUTOR, "MultiprocExecutor.__init__", ["vllm_config", "monitor_workers"], "serve/multinode.py"),
    (EXECUTOR, "MultiprocExecutor.start_worker_monitor", ["inline"], "serve/multinode.py"),
    ("vllm.distributed.weight_transfer.base", "WeightTransferInitRequest", ["init_info"], ENDPOINT),
    ("vllm.distributed.weight_transfer.base", "WeightTransferUpdateRequest", ["update_info"], ENDPOINT),
    (AUTHENTICATE, "AuthenticationMiddleware.__init__", ["app", "tokens"], ENDPOINT),
    (AUTHENTICATE, "AuthenticationMiddleware.verify_token", ["headers"], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.generate", ["prompt", "sampling_params", "request_id"], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.pause_generation", ["mode"], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.resume_generation", [], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.reset_prefix_cache", [], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.collective_rpc", ["method", "args"], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.init_weight_transfer_engine", ["request"], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.start_weight_update", [], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.update_weights", ["request"], ENDPOINT),
    ("vllm.v1.engine.async_llm", "AsyncLLM.finish_weight_update", [], ENDPOINT),
]

# Each row has a module, a function in it, and what vLLM calls in its place, or before or after it.
REPLACED = [
    (RUNNER, "GPUModelRunner._get_prompt_logprobs_dict", f"{V1}:V1Runner._after_step"),
    (RUNNER, "GPUModelRunner._sample", f"{V1}:V1Runner._sample"),
    (RUNNER, "GPUModelRunner._bookkeeping_sync", f"{V1}:V1Runner._note"),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager.get_computed_blocks", f"{SCORES}:limit_prefix_reads"),
    ("vllm.v1.core.kv_cache_coordinator", "KVCacheCoordinator.find_longest_cache_hit", f"{SCORES}:limit_prefix_reads"),
    *((TRANSFER, f"WeightTransferEngine.{name}", f"{BACKEND}:InterpolationEngine.{name}") for name in BACKEND_CALLS),
    ("vllm.transformers_utils.config", "HFConfigParser.parse", "serve.text_part:TextPartParser.parse"),
    (LOADER, "DefaultModelLoader.__init__", "serve.text_part:TextPartLoader.__init__"),
    (LOADER, "DefaultModelLoader.get_all_weights", "serve.text_part:TextPartLoader.get_all_weights"),
    (PLUGIN, "EndpointPlugin.attach_router", "serve.http.endpoint:LambdaEndpoint.attach_router"),
    (PLUGIN, "EndpointPlugin.init_state", "serve.http.endpoint:LambdaEndpoint.init_state"),
]

# Each row has a module, a class, what its source must still set or read, and where it is used.
READ = [
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.discard_request_mask", "serve/hooks/v1_runner.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.query_start_loc", "serve/hooks/v1_runner.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.input_batch", "serve/hooks/v1_runner.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.requests", "serve/hooks/v1_runner.py"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "self.intermediate_tensors", "serve/switch/backend.py"),
    ("vllm.v1.core.kv_cache_manager", "KVCacheManager", "self.coordinator", "serve/hooks/continuation_scores.py"),
    ("vllm.v1.core.sched.scheduler", "Scheduler", "self.kv_cache_manager", "serve/hooks/continuation_scores.py"),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch", "self.generators", "serve/hooks/v1_runner.py"),
    ("vllm.v1.worker.gpu_input_batch", "InputBatch", "self.sampling_metadata", "serve/hooks/v1_runner.py"),
    ("vllm.v1.sample.metadata", "SamplingMetadata", "all_greedy", "serve/hooks/v1_runner.py"),
    ("vllm.v1.outputs", "SamplerOutput", "sampled_token_ids", "serve/hooks/seeded_draws.py"),
    ("vllm.v1.engine.llm_engine", "LLMEngine", "self.output_processor", "serve/engine.py"),
    ("vllm.v1.engine.llm_engine", "LLMEngine", "self.engine_core", CORE),
    ("vllm.v1.engine", "EngineCoreOutputs", "outputs:", CORE),
    ("vllm.v1.engine", "EngineCoreOutput", "prefill_stats:", CORE),
    ("vllm.v1.engine", "EngineCoreOutput", "def finished", CORE),
    ("vllm.v1.engine", "EngineCoreOutput", "request_id: str", CORE),
    ("vllm.v1.metrics.stats", "PrefillStats", "num_cached_tokens: int", CORE),
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


def ours(place: str, name: str) -> Any:
    """Return what vLLM calls in the place of its own function; what hooks into a scheduler is made where that is."""
    module, _, path = place.partition(":")
    found = find(module, path)
    if path != "limit_prefix_reads":
        return found.__get__(object())  # `self` is then given
    manager = SimpleNamespace(get_computed_blocks=None, coordinator=SimpleNamespace(find_longest_cache_hit=None))
    found(SimpleNamespace(kv_cache_manager=manager))
    return {**vars(manager), **vars(manager.coordinator)}[name.partition(".")[2]]


@pytest.mark.parametrize(("module", "name", "place"), REPLACED, ids=[row[1] for row in REPLACED])
def test_what_vllm_calls_takes_all_that_vllm_may_give(module: str, name: str, place: str) -> None:
    theirs, taken = inspect.signature(find(module, name)), inspect.signature(ours(place, name))
    kinds = {one.name: one.kind for one in theirs.parameters.values()}
    given = [one for one, kind in kinds.items() if kind.name not in ("VAR_POSITIONAL", "VAR_KEYWORD")][1:]
    named = [one for one in given if kinds[one].name == "KEYWORD_ONLY"]
    try:
        taken.bind(*[None for one in given if one not in named], **dict.fromkeys(named))
        taken.bind(**dict.fromkeys(given))
    except TypeError as error:
        pytest.fail(f"vLLM's {name}{theirs} may be given more than {place}{taken} takes: {error}", pytrace=False)


def test_our_backend_leaves_nothing_of_vllms_undone() -> None:
    from serve.switch.backend import InterpolationEngine

    assert InterpolationEngine.__abstractmethods__ == frozenset()


source_of = functools.cache(inspect.getsource)  # that of a large class is looked for in its whole module


@pytest.mark.parametrize(("module", "name", "text", "used_in"), READ, ids=[f"{row[1]} {row[2]}" for row in READ])
def test_what_is_read_is_there(module: str, name: str, text: str, used_in: str) -> None:
    sources = [source_of(kind) for kind in find(module, name).__mro__[:-1] if kind.__module__.startswith("vllm")]
    assert any(text in source for source in sources), f"{module}.{name} has no {text}: see {used_in}"


def test_arguments_of_an_engine_have_their_names() -> None:
    from vllm.engine.arg_utils import EngineArgs

    assert sorted(set(ARGUMENTS) - {field.name for field in dataclasses.fields(EngineArgs)}) == []


def test_sources_tell_the_names_of_all_arguments() -> None:
    """They are read where an import would take too long, and must neither refuse an argument nor let one through."""
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    from serve.vllm_arguments import _named_in_sources, unknown_arguments

    known = {field.name for field in dataclasses.fields(EngineArgs)} | set(inspect.signature(LLM.__init__).parameters)
    assert sorted(_named_in_sources() ^ known) in ([], ["kwargs"])  # further arguments of LLM are those of EngineArgs
    assert unknown_arguments({"seed", "sed", "max_num_seqs"}) == [
        "--engine sed: vLLM has no such argument: did you mean seed?"
    ]


def test_parameters_of_a_request_have_their_names() -> None:
    from vllm import SamplingParams

    assert sorted(set(SAMPLING) - set(SamplingParams.__struct_fields__)) == []


def test_a_request_to_the_core_wants_nothing_that_it_is_not_given() -> None:
    from vllm.v1.engine import EngineCoreRequest

    parameters = inspect.signature(EngineCoreRequest).parameters.values()
    assert {one.name for one in parameters if one.default is inspect.Parameter.empty} <= set(CORE_REQUEST)


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


def sources() -> Iterator[str]:
    """Yield the source of all that is touched, each under its name."""
    for module, name in sorted({(row[0], row[1]) for row in [*CALLED, *REPLACED, *READ]}):
        yield f"# {module}.{name}\n{inspect.getsource(inspect.unwrap(find(module, name)))}"


if __name__ == "__main__":
    print("\n".join(sources()))
