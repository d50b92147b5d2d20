"""The part of a replica that spans nodes which is on another node than its engine: an actor that runs ranks and no more."""

import os

from contract.errors import EngineError
from ray_jobs.placement import Berth
from ray_jobs.process import last_words, settle_in
from ray_jobs.replica import SweepSpec


class Follower:
    """Runs inside a process of its own, for as long as the replica lives. Only `ping` may be called at the same time."""

    def __init__(self, spec: SweepSpec, berth: Berth, number: int) -> None:
        """`number` is that of this actor's seat."""
        self._cores = settle_in(spec.settings, berth, number)
        self._spec, self._berth, self._number = spec, berth, number

    def ping(self) -> int:
        """Answer with the process's id."""
        return os.getpid()

    def follow(self, ranks_on_node: int, port: int) -> None:
        """Run this node's ranks until the driver kills the actor.

        Raises:
            EngineError: they did not start, or one of them ended.
            PairError: a parent is not to be had on this machine, or is another one here.
        """
        from serve.engine import llm_arguments
        from serve.multinode import Span, follow

        spec = self._spec
        if spec.settings.device == "cpu":
            os.sched_setaffinity(0, self._cores)
        base, aligned = spec.open_parents()
        span = Span(len(self._berth), self._number, self._berth[0].node.address, port)
        try:
            follow(llm_arguments(base, aligned, spec.settings, spec.parents, ranks_on_node, spec.line, span))
        except EngineError as error:
            raise EngineError(f"{error} ({self._berth[self._number].node.address}){last_words()}") from error
