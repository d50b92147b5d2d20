"""This module gives vLLM's API server the route `/v1/lambda`, and names λ in every response.

vLLM finds it by the entry point `vllm.endpoint_plugins`. The middleware stands inside vLLM's own. Where vLLM asks for a
key, a request without a valid one does not get this far; on every other path that does something the middleware asks for
it.
"""

import asyncio
import itertools
import json
import time
from argparse import Namespace
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm import envs
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.logger import init_logger

from contract.errors import EngineError, GridError
from contract.json_objects import keys_once
from contract.points import named, parse_point
from merge.file_states import check_unchanged
from merge.line import Line
from serve.http.gate import FailedMoveError, Gate
from serve.plugin import CONFIG_KEY, RESIDENT
from serve.switch.tiers import RELOAD
from serve.verify import Journey, Probe, Verdict, journey, probe_request, read_probe, way

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

    from serve.reference import References

PATH = "/v1/lambda"
HEADER = "X-Lambdasweep-Lambda"
_READS = {"GET", "HEAD", "OPTIONS"}

logger = init_logger(f"vllm.{__name__}")  # vLLM's handlers print what is below its own name


class LambdaEndpoint:
    """The endpoint moves the server's engine between its parents. Each API server has one."""

    name = "lambdasweep"
    required_tasks = None  # every task of a model can be done at every λ

    def __init__(self) -> None:
        self._gate = Gate()
        self._engine: Any = None
        self._route = ""
        self._fallback = ""
        self._names: tuple[str, ...] = ()
        self._probes = itertools.count()

    def attach_router(self, app: FastAPI) -> None:
        app.add_middleware(LambdaMiddleware, gate=self._gate, keys=app.state.args.api_key or [envs.VLLM_API_KEY])
        app.add_api_route(PATH, self.show, methods=["GET"])
        app.add_api_route(PATH, self.move, methods=["POST"])

    async def init_state(self, engine_client: "EngineClient | None", state: State, args: Namespace) -> None:
        """Settle by which route λ moves, and go to the first λ. vLLM calls this before the first request."""
        self._engine = engine_client
        parents = args.additional_config[CONFIG_KEY]
        self._names = tuple(parents["aligned"])
        await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info={}))
        tiers = await self._engine.collective_rpc("interpolation_tier")
        slower = next((reason for _, reason in tiers if reason), "")
        routes = {RELOAD: slower} if slower else {RESIDENT: "", RELOAD: ""}
        aligned = {name: Path(path) for name, path in parents["aligned"].items()}
        on = way(Path(parents["base"]), aligned, Line.from_json(parents["line"]), Path(args.model))
        self._references: References = args.lambdasweep_references
        verdict = await self._travel(journey(routes, on, self._references.said, self._references.remembered))
        self._fallback = verdict.reason
        await self._engine.collective_rpc("interpolation_use", args=(verdict.route, True))
        tier = f" {'/'.join(sorted({tier for tier, _ in tiers}))}" if verdict.route == RESIDENT else ""
        self._route = verdict.route + tier
        await self._gate.move(parents["lam"], self._switch)
        check_unchanged(args.lambdasweep_files)  # ranks opened the parents long after they were looked at
        logger.info("λ = %s, route %s%s", self._gate.lam, self._route, f": {self._fallback}" if self._fallback else "")

    async def show(self) -> JSONResponse:
        if self._gate.failure:
            return problem(503, self._gate.failure)
        where = {"lam": self._gate.lam, "moves": self._gate.moves, "requests": self._gate.requests}
        return JSONResponse(where | {"route": self._route, "fallback": self._fallback})

    async def move(self, request: Request) -> JSONResponse:
        try:
            lam = asked_lambda(await request.body(), self._names)
        except (ValueError, GridError) as error:
            return problem(400, str(error))
        began = time.perf_counter()
        try:
            await self._gate.move(lam, self._switch)
        except FailedMoveError as error:
            return problem(503, str(error))
        return JSONResponse({"lam": lam, "seconds": round(time.perf_counter() - began, 3)})

    async def _switch(self, lam: str) -> None:
        """Make θ(λ) live. The gate holds requests back, but the engine may still work for a client that hung up."""
        await self._engine.pause_generation(mode="wait")  # also empties all caches
        if not await self._engine.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache")
        await self._engine.start_weight_update()
        await self._engine.update_weights(WeightTransferUpdateRequest(update_info={"lam": lam}))
        await self._engine.finish_weight_update()
        await self._engine.resume_generation()

    async def _travel(self, going: Journey) -> Verdict:
        """Do what a journey says, as `serve.engine.Engine` does."""
        answer: Probe | None = None
        while True:
            try:
                step = going.send(answer)
            except StopIteration as end:
                verdict: Verdict = end.value
                return verdict
            answer = None
            if step.kind == "use":
                await self._engine.collective_rpc("interpolation_use", args=(step.route, False))
            elif step.kind == "go":
                await self._switch(step.point)
            elif step.kind == "ask":
                answer = await asyncio.to_thread(self._references.afresh, step.point)
            else:
                answer = await self._probe()

    async def _probe(self) -> Probe:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        config = self._engine.model_config
        ids, parameters = probe_request(config.get_vocab_size(), config.max_model_len)
        if not await self._engine.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache")
        outputs = self._engine.generate(
            {"prompt_token_ids": ids},
            SamplingParams(**parameters, output_kind=RequestOutputKind.FINAL_ONLY),
            f"lambdasweep-probe-{next(self._probes)}",
        )
        *_, last = [output async for output in outputs]
        return read_probe(last)


class LambdaMiddleware:
    """Admits requests through the gate and names the λ they were admitted under."""

    def __init__(self, app: ASGIApp, gate: Gate, keys: Sequence[str | None]) -> None:
        self._app = app
        self._gate = gate
        keys = [key for key in keys if key]
        self._guard = AuthenticationMiddleware(app, keys) if keys else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope.get("method") in _READS:
            if self._gate.failure and scope["path"].endswith("/health"):
                await problem(503, "a move of λ failed: GET /v1/lambda says why")(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        elif self._guard and not self._guard.verify_token(Headers(scope=scope)):
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
        elif scope["path"].removeprefix(scope.get("root_path", "")) == PATH:
            await self._app(scope, receive, send)
        else:
            try:
                async with self._gate.admitted() as lam:

                    async def named(message: Message) -> None:
                        if message["type"] == "http.response.start":
                            MutableHeaders(scope=message)[HEADER] = lam
                        await send(message)

                    await self._app(scope, receive, named)
            except FailedMoveError as error:
                await problem(503, str(error))(scope, receive, send)


def asked_lambda(body: bytes, names: Collection[str]) -> str:
    """Return the canonical point of `{"lam": "0.7"}`; a number is taken as it is written, never through a binary float.

    Raises:
        ValueError, GridError: saying what is wrong.
    """
    example = json.dumps({"lam": named(dict.fromkeys(names, "0.7"))})
    try:
        value = json.loads(body, parse_float=str, parse_int=str, object_pairs_hook=keys_once)
    except ValueError as error:
        raise ValueError(f"the body is not JSON ({error}): send {example}") from None
    if not isinstance(value, dict) or value.keys() != {"lam"} or not isinstance(value["lam"], str):
        raise ValueError(f"send {example} and nothing else")
    return parse_point(value["lam"], names)


def problem(status: int, message: str) -> JSONResponse:
    """Return an error as the OpenAI API words it."""
    kind = "invalid_request_error" if status == 400 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
