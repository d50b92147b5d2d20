"""This module decides whether a node waits for memory: that of a replica that was killed takes seconds to come back.

A replica that does not start for lack of free memory where another one ended a moment ago is no fault of the node. The node
then gets no replica for a while, and longer each time. Times are seconds of any one clock, which the caller reads.
"""

from dataclasses import dataclass

from serve.last_words import lacks_memory

FIRST_SECONDS = 2.0  # the length of the first wait; each further one is twice as long
TRIES = 6  # a node waits at most so often in a row, which is two minutes in all
RECENT_SECONDS = 120.0  # a replica ended a moment ago if it was not longer ago than this


@dataclass(slots=True)
class _Node:
    ended: float = float("-inf")  # when a replica ended here
    tries: int = 0  # how often the node has waited in a row
    until: float = float("-inf")  # when the wait is over


class Patience:
    """Remembers of each node when replicas ended there, and how long it waits."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}

    def ended(self, node_id: str, now: float) -> None:
        """Take in that a replica ended, which may have held memory of the node."""
        self._nodes.setdefault(node_id, _Node()).ended = now

    def started(self, node_id: str) -> None:
        """Take in that a replica started, which ends a series of waits."""
        self._nodes.setdefault(node_id, _Node()).tries = 0

    def wait(self, node_id: str, reason: str, began: float, now: float) -> float | None:
        """Take in that a replica did not start, and let the node wait if another one's memory was not free yet.

        Replicas that began before the node's last wait was over are one try with the one that made it wait.

        Args:
            node_id: the node where it did not start.
            reason: the replica's last words.
            began: when its start began.
            now: the time.

        Returns:
            The seconds that the node waits; None where the failure is the node's or the engine's.
        """
        node = self._nodes.setdefault(node_id, _Node())
        if lacks_memory(reason) and began < node.until:
            return max(0.0, node.until - now)
        is_recent = began - node.ended <= RECENT_SECONDS
        if not lacks_memory(reason) or not (is_recent or node.tries) or node.tries >= TRIES:
            node.tries = 0
            return None
        seconds = FIRST_SECONDS * (1 << node.tries)
        node.tries += 1
        node.until = max(node.until, now + seconds)
        return seconds

    def waits(self, node_id: str, now: float) -> bool:
        """Tell whether a node gets no replica now."""
        return node_id in self._nodes and now < self._nodes[node_id].until
