"""The gate decides who is served at which λ, without an engine."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from serve.http.gate import FailedMoveError, Gate


def play(scene: Callable[[Gate, list[str]], Awaitable[None]]) -> list[str]:
    """Run a scene on a gate that stands at 0; return what happened, in order."""
    seen: list[str] = []

    async def main() -> None:
        gate = Gate()
        await gate.move("0", lambda _: asyncio.sleep(0))
        await asyncio.wait_for(scene(gate, seen), 10)

    asyncio.run(main())
    return seen


async def request(gate: Gate, seen: list[str], name: str, done: asyncio.Event) -> None:
    async with gate.admitted() as lam:
        seen.append(f"{name} at {lam}")
        await done.wait()
        assert gate.lam == lam
    seen.append(f"{name} done")


def switching(seen: list[str]) -> Callable[[str], Awaitable[None]]:
    async def switch(lam: str) -> None:
        seen.append(f"to {lam}")
        await asyncio.sleep(0.01)
        seen.append(f"live {lam}")

    return switch


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_is_in_flight_finishes_first_and_new_ones_wait() -> None:
    async def scene(gate: Gate, seen: list[str]) -> None:
        done, free = asyncio.Event(), asyncio.Event()
        free.set()
        old = asyncio.create_task(request(gate, seen, "old", done))
        await settle()
        move = asyncio.create_task(gate.move("0.5", switching(seen)))
        await settle()
        new = asyncio.create_task(request(gate, seen, "new", free))
        await settle()
        assert seen == ["old at 0"]
        done.set()
        await asyncio.gather(old, move, new)

    assert play(scene) == ["old at 0", "old done", "to 0.5", "live 0.5", "new at 0.5", "new done"]


def test_moves_take_turns() -> None:
    async def scene(gate: Gate, seen: list[str]) -> None:
        await asyncio.gather(*(gate.move(lam, switching(seen)) for lam in ("0.1", "0.2", "0.2", "0.1")))

    assert play(scene) == ["to 0.1", "live 0.1", "to 0.2", "live 0.2", "to 0.1", "live 0.1"]


def test_after_a_failed_move_nothing_is_admitted() -> None:
    async def scene(gate: Gate, seen: list[str]) -> None:
        async def fail(lam: str) -> None:
            await asyncio.sleep(0.01)
            raise RuntimeError("out of memory")

        free = asyncio.Event()
        move = asyncio.create_task(gate.move("0.5", fail))
        await settle()
        waiting = asyncio.create_task(request(gate, seen, "waiting", free))
        for attempt in (move, waiting, gate.move("0.7", switching(seen)), request(gate, seen, "new", free)):
            with pytest.raises(FailedMoveError, match=r"from λ = 0 to 0\.5 failed, restart .*out of memory"):
                await attempt
        assert gate.lam == "0"

    assert play(scene) == []


def test_a_move_that_is_broken_off_while_it_waits_changes_nothing() -> None:
    async def scene(gate: Gate, seen: list[str]) -> None:
        done = asyncio.Event()
        old = asyncio.create_task(request(gate, seen, "old", done))
        await settle()
        move = asyncio.create_task(gate.move("0.5", switching(seen)))
        await settle()
        move.cancel()
        await settle()
        done.set()
        await request(gate, seen, "new", done)
        await old

    assert play(scene)[:2] == ["old at 0", "new at 0"]


def test_a_move_that_is_broken_off_while_it_switches_is_a_failed_one() -> None:
    async def scene(gate: Gate, seen: list[str]) -> None:
        move = asyncio.create_task(gate.move("0.5", switching(seen)))
        await settle()
        move.cancel()
        await settle()
        with pytest.raises(FailedMoveError):
            await request(gate, seen, "new", asyncio.Event())

    assert play(scene) == ["to 0.5"]


def test_requests_are_counted() -> None:
    async def scene(gate: Gate, seen: list[str]) -> None:
        await gate.move("0", switching(seen))
        counts = [gate.requests]
        done = asyncio.Event()
        done.set()
        for name in ("one", "two"):
            await request(gate, seen, name, done)
            counts.append(gate.requests)
        await gate.move("1", switching(seen))
        seen.append(str([*counts, gate.requests]))

    assert play(scene)[-1] == "[0, 1, 2, 2]"


def test_moves_are_counted() -> None:
    """A move away and back can be seen, and a move to the current λ is no move."""

    async def scene(gate: Gate, seen: list[str]) -> None:
        counts = [gate.moves]
        for lam in ("0", "1", "0"):
            await gate.move(lam, switching(seen))
            counts.append(gate.moves)
        seen.append(str(counts))

    assert play(scene)[-1] == "[1, 1, 2, 3]"
