"""The gate decides at which λ a request is served: those in flight finish on their λ, and new ones wait for the next.

It is plain asyncio on one event loop, and it knows no engine.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class FailedMoveError(Exception):
    """A move failed half-way, so that nothing may be answered from these weights."""


class Gate:
    """Admits requests at the current λ.

    Attributes:
        lam: canonical λ; "" before the first move.
        moves: how often the weights have moved to another λ.
        requests: how many requests have been admitted.
        failure: why nothing is admitted any more, or "".
    """

    def __init__(self) -> None:
        self.lam = ""
        self.moves = 0
        self.requests = 0
        self.failure = ""
        self._open = True
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._moving = asyncio.Lock()

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[str]:
        """Wait for a move under way, then hold the λ that is yielded in place.

        Raises:
            FailedMoveError: a move failed.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._open or self.failure)
            self._check()
            self._in_flight += 1
            self.requests += 1
        try:
            yield self.lam
        finally:
            self._in_flight -= 1
            async with self._changed:
                self._changed.notify_all()

    async def move(self, lam: str, switch: Callable[[str], Awaitable[None]]) -> None:
        """Let what is in flight finish, switch, and admit again. Moves take turns, in the order they were asked for.

        Args:
            lam: canonical λ.
            switch: makes it live; after an exception the gate stays shut.

        Raises:
            FailedMoveError: this move or one before it failed.
        """
        async with self._moving:
            self._check()
            if lam == self.lam:
                return
            self._open = False
            try:
                async with self._changed:
                    await self._changed.wait_for(lambda: not self._in_flight)
                await self._switch(lam, switch)
            finally:
                self._open = True
                async with self._changed:
                    self._changed.notify_all()

    async def _switch(self, lam: str, switch: Callable[[str], Awaitable[None]]) -> None:
        try:
            await switch(lam)
        except BaseException as error:
            self.failure = f"the move from λ = {self.lam} to {lam} failed, restart the server: {error!r}"
            if isinstance(error, Exception):
                raise FailedMoveError(self.failure) from error
            raise
        self.lam = lam
        self.moves += 1

    def _check(self) -> None:
        if self.failure:
            raise FailedMoveError(self.failure)
