"""This module starts vLLM's own OpenAI-compatible server over a pair, and makes its arguments."""

import argparse
import dataclasses
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

from contract.errors import InputError
from contract.points import by_name
from merge.checkpoint import open_checkpoint
from merge.file_states import FileState
from merge.heads import engine_parent
from merge.line import Line
from serve.plugin import BACKEND, END_WITH_PARENT, WORKER_EXTENSION, ParentsConfig, register
from serve.prefixes import shares_prefixes
from serve.reference import References
from serve.settings import available_cores, cores_by_rank, installed_device
from serve.verify import way
from serve.vllm_arguments import first_lines

# vLLM flags that lambdasweep sets itself or cannot work with, and why; each must be left at its default.
_REFUSED = {
    "model_tag": "the pair is given by RUN, or --base and --aligned",
    "model": "the pair is given by RUN, or --base and --aligned",
    "weight_transfer_config": "it is how λ moves",
    "worker_extension_cls": "it is how λ moves",
    "additional_config": "it is how λ moves",
    "load_format": "safetensors only",
    "config_format": "it follows from the checkpoints",
    "hf_overrides": "it would serve another model than θ(λ); what config.json says is the parents'",
    "hf_config_path": "it would serve another model than θ(λ); what config.json says is the parents'",
    "quantization": "quantised parents cannot be interpolated",
    "trust_remote_code": "code from a checkpoint is never run",
    "enable_lora": "an adapter does not belong to any λ",
    "speculative_config": "a draft model does not move with λ",
    "data_parallel_size": "one engine moves; start several servers",
    "api_server_count": "one process admits requests",
    "enable_elastic_ep": "one engine moves",
    "headless": "one process admits requests",
    "grpc": "the λ is named in HTTP headers",
}


@dataclass(frozen=True, slots=True)
class Serving:
    """This says what to serve. `defaults` are arguments of vLLM that hold where no flag says otherwise."""

    base: Path
    aligned: Path | Mapping[str, Path]  # paths by name where there are several
    line: Line  # the line between the parents
    lam: str  # the canonical point that is served first
    parents: str  # one of serve.switch.tiers.CHOICES
    name: str
    flags: tuple[str, ...]  # flags of `vllm serve`
    defaults: dict[str, Any] = field(default_factory=dict)
    files: Mapping[Path, FileState] = field(default_factory=dict)  # the parents' weight files as they were opened first


def serve(serving: Serving) -> None:
    """Run the server until it is told to stop. The process must not have imported vLLM yet.

    Raises:
        InputError: vLLM flags that cannot be used.
    """
    os.environ |= {
        # All processes of vLLM load the plugins that this names: ours, and those that the user named.
        "VLLM_PLUGINS": ",".join(filter(None, [os.environ.get("VLLM_PLUGINS"), "lambdasweep"])),
        "VLLM_SERVER_DEV_MODE": "0",  # its routes change weights behind our back
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
        "VLLM_ENABLE_RESPONSES_API_STORE": "0",  # stored responses go on after the request is over
        "VLLM_USE_RUST_FRONTEND": "0",
        END_WITH_PARENT: "1",
        "VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1"),
    }
    import uvloop

    # vLLM goes on without a plugin that it does not find or cannot load, and would serve a parent.
    import serve.http.endpoint  # noqa: F401

    if not entry_points(group="vllm.endpoint_plugins", name="lambdasweep"):
        raise InputError("this installation of lambdasweep has no endpoint plugin: install it again")
    from vllm.entrypoints.launchers.api_server.entry import run_server

    args = arguments(serving)
    check_start(args)
    if installed_device() == "cpu" and not shares_prefixes(vars(args)):
        args.enable_prefix_caching = False
    ranks = args.tensor_parallel_size * args.pipeline_parallel_size
    if ranks > 1 and installed_device() == "cpu":  # otherwise vLLM wants a NUMA node for each rank
        cores = available_cores()
        bound = cores_by_rank(cores, ranks, max(1, len(cores) // ranks))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bound)
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # see serve.start.process_environment
    aligned = by_name(serving.aligned)
    on = way(serving.base, {name: Path(path) for name, path in aligned.items()}, serving.line, Path(args.model))
    args.lambdasweep_references = References(engine_arguments(args), on, installed_device())  # for the endpoint
    args.lambdasweep_files = serving.files  # for the endpoint, too
    uvloop.run(run_server(args))


def check_start(args: argparse.Namespace) -> None:
    """Refuse what could not start, before anything is loaded.

    Args:
        args: what `arguments` returned.

    Raises:
        InputError: vLLM's own configuration refuses the flags, or the address is taken.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    problems = [*_address_problems(args.host, args.port)] if args.uds is None else []
    try:
        AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except Exception as error:  # pydantic's, vLLM's, Python's
        problems.append(f"vLLM says: {first_lines(error)}")
    if problems:
        raise InputError("the server cannot start with these flags after --", problems)


def _address_problems(host: str, port: int) -> Iterator[str]:
    try:
        # As vLLM binds it: a name is one of IPv4, no name is every address, and a port that is winding down is free.
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        yield f"{host}:{port} cannot be listened on ({error.strerror}): give another --port, or --host"


def arguments(serving: Serving) -> argparse.Namespace:
    """Return the arguments of vLLM's server.

    Raises:
        InputError: naming every flag that cannot be used.
    """
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.entrypoints.cli.serve import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from serve.text_part import text_arguments

    register()
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))

    def refuse(message: str) -> NoReturn:
        raise InputError("the flags after -- cannot be used", [f"vllm serve says: {message}"])

    parser.error = refuse  # the parser's own would print hundreds of lines of usage
    untouched = parser.parse_args([])
    args: argparse.Namespace = parser.parse_args(list(serving.flags))
    problems = [
        f"--{name.replace('_', '-')} cannot be used: {why}"
        for name, why in _REFUSED.items()
        if getattr(args, name, None) != getattr(untouched, name, None)
    ]
    if args.pipeline_parallel_size > 1 and installed_device() == "cpu":
        problems.append("--pipeline-parallel-size cannot be used: vLLM's server has no buffers between stages on a CPU")
    if problems:
        raise InputError("the flags after -- cannot be used", problems)
    for name, value in serving.defaults.items():
        if getattr(args, name) == getattr(untouched, name):
            setattr(args, name, value)
    if args.host is None and args.uds is None:
        args.host = "127.0.0.1"  # vLLM's own default is every address of the machine
    args.served_model_name = args.served_model_name or [serving.name]
    paths = by_name(serving.aligned)
    # The aligned model's tokenizer and chat template are served, unless vLLM cannot start with that checkpoint.
    candidates = [*paths.values()] if serving.line.has_aligned_shapes else [*paths.values(), serving.base]
    started, flags = engine_parent([open_checkpoint(str(path), "parent") for path in candidates])
    args.model = args.model_tag = str(candidates[started])
    if started and args.tokenizer is None and (Path(candidates[0]) / "tokenizer.json").is_file():
        args.tokenizer = str(candidates[0])
    if flags:
        args.hf_overrides = flags | dict(args.hf_overrides or {})
    args.load_format = "safetensors"
    for name, value in text_arguments(Path(args.model)).items():
        setattr(args, name, value)
    args.api_server_count = None  # this process is the only one
    args.weight_transfer_config = WeightTransferConfig(backend=BACKEND)
    args.worker_extension_cls = WORKER_EXTENSION
    parents = {
        "base": str(serving.base),
        "aligned": {name: str(path) for name, path in paths.items()},
        "tier": serving.parents,
    }
    args.additional_config = ParentsConfig(
        {
            **parents,
            "line": serving.line.to_json(),
            "ranks": args.tensor_parallel_size * args.pipeline_parallel_size,
            "lam": serving.lam,
        }
    )
    validate_parsed_serve_args(args)
    return args


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a server's arguments say of its engine, as arguments of `vllm.LLM`, where they are not the defaults."""
    from vllm.engine.arg_utils import EngineArgs

    defaults = EngineArgs(model=args.model)
    names = [field.name for field in dataclasses.fields(EngineArgs)]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {
        name: value
        for name, value in given.items()
        if value != getattr(defaults, name) and isinstance(value, str | int | float | bool | list | dict)
    }
