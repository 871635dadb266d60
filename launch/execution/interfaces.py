"""What each process of a Ray cluster does first; which network its host shares with the others."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from launch.machine.surroundings import prepare_environment


def prepare_host() -> None:
    """Ray calls it in every process, before the process knows what it is for."""
    prepare_environment()
    choose_interface()


def choose_interface() -> None:
    """Tells gloo which interface the other hosts reach this one by.

    Left alone, gloo takes the address that the host's name resolves to: often 127.0.0.1, at which
    no other host finds it. What the host's own environment says stays.
    """
    import ray

    name = interface_of(ray.util.get_node_ip_address(), psutil.net_if_addrs())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str, interfaces: Mapping[str, Sequence[Any]]) -> str | None:
    """The interface that has an IP address, such as psutil's ``net_if_addrs`` lists them."""
    for name, own in interfaces.items():
        if any(entry.address.partition("%")[0] == address for entry in own):
            return name
    return None
