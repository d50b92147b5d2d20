"""A server takes the start-up check as an engine in one process does; real ones take it in other tests."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve.verify import Probe, Verdict, Way, journey

pytest.importorskip("vllm")


def test_a_server_asks_afresh_what_was_remembered_while_its_loop_goes_on() -> None:
    from serve.http.endpoint import LambdaEndpoint

    asked: list[tuple[str, bool]] = []

    class Endpoint(LambdaEndpoint):
        """Its engine is right: it answers with the point that it is at."""

        at = "0"

        async def _switch(self, lam: str) -> None:
            self.at = lam

        async def _probe(self) -> Probe:
            return (float(self.at),)

    async def call(*_: Any, **__: Any) -> None: ...

    def afresh(point: str) -> Probe:
        asked.append((point, threading.current_thread() is threading.main_thread()))
        return (1.0,)

    endpoint = Endpoint()
    endpoint._engine = SimpleNamespace(collective_rpc=call)
    endpoint._references = SimpleNamespace(afresh=afresh)  # type: ignore[assignment]
    going = journey({"reload": "why"}, Way("0", {"1": Path("aligned")}, "0.35"), {"1": (1.000002,)}, {"1"})
    assert asyncio.run(endpoint._travel(going)) == Verdict("reload", "why")
    assert asked == [("1", False)]


def test_a_move_to_two_points_is_refused() -> None:
    from serve.http.endpoint import asked_lambda

    assert asked_lambda(b'{"lam": "0.50"}', [""]) == "0.5"
    with pytest.raises(ValueError, match="the key 'lam' stands twice in one object"):
        asked_lambda(b'{"lam": "0", "lam": "1"}', [""])
