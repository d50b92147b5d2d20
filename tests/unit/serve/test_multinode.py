"""An engine over several nodes gets an environment for its network."""

import pytest

from serve.multinode import network_environment


def test_nodes_talk_over_the_interface_of_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("VLLM_HOST_IP", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert network_environment("127.0.0.1") == dict(zip(names, ("127.0.0.1", "lo", "=lo"), strict=True))
    # This machine does not have the address.
    assert network_environment("203.0.113.7") == {"VLLM_HOST_IP": "203.0.113.7"}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert network_environment("127.0.0.1")["NCCL_SOCKET_IFNAME"] == "ib0"
