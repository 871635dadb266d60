"""The interface that gloo is told of is the one that carries the host's address."""

from types import SimpleNamespace

import psutil
import pytest

from launch.config.cluster import ClusterSettings
from launch.execution.interfaces import interface_of

FOUND = {
    "lo": ["127.0.0.1", "::1"],
    "eth0": ["10.0.0.11", "fe80::1%eth0"],
    "ib0": ["10.0.0.1", "2001:db8::1"],
}
INTERFACES = {
    name: [SimpleNamespace(address=address) for address in own] for name, own in FOUND.items()
}


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.1", "ib0"), ("10.0.0.11", "eth0"), ("2001:db8::1", "ib0"), ("fe80::1", "eth0")],
)
def test_the_interface_with_the_address_is_found(address, name):
    assert interface_of(address, INTERFACES) == name


def test_an_address_that_no_interface_has_is_left_to_gloo():
    assert interface_of("10.0.0.2", INTERFACES) is None


def test_this_machine_has_its_loopback():
    assert interface_of("127.0.0.1", psutil.net_if_addrs()) == "lo"


@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_metrics_are_for_this_machine_unless_asked(address):
    assert ClusterSettings(address=address).driver_endpoint()["host"] == "127.0.0.1"
    opened = ClusterSettings(address=address, metrics_host="0.0.0.0")
    assert opened.metrics_endpoint(3)["host"] == "0.0.0.0"
