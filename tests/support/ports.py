"""This finds ports for servers that a test starts."""

import random
import socket
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Return different ports of this machine that nobody listens on now, and that the system gives nobody unasked.

    A port that the system chose may be given to another process's connection before the server that the test starts
    listens on it. These ports lie below the range that it chooses from, and above those that Ray gives its workers.
    """
    lowest_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, max(lowest_given, 32_768))
        with socket.socket() as one:
            if port not in found and one.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
    return found
