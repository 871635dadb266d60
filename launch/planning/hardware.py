"""Machines to plan for: peak rates from data sheets, or measured on this one."""

import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil
import torch

from data_shards.settings import InputError
from trainer.dry_run import Collective, Operation
from trainer.processor import multiplies_bf16


@dataclass(frozen=True)
class Machine:
    """The resources of one rank. Times are lower bounds: nothing runs faster than its peak."""

    name: str
    rates: dict[str, float]
    """Operations a second of dense matrix products, by `trainer.dry_run.Precision`."""
    memory: float
    """Bytes of the rank's memory."""
    bandwidth: float
    """Bytes a second that are read from that memory or written to it."""
    link: float
    """Bytes a second that a rank sends to another of its node."""
    network: float
    """Bytes a second that a rank sends to another node."""
    source: str
    ranks: int = 8
    """Ranks in a node."""
    kernel: float = 5e-6
    """Seconds that any operation takes at least; the usual order of magnitude on a GPU."""
    latency: float = 5e-6
    """Seconds that a message takes at least; the usual order of magnitude between GPUs."""

    def compute_seconds(self, operations: Iterable[Operation], started: bool = True) -> float:
        """The sum of the operations' times, each bounded by products or memory (a roofline).

        With `started`, each is also bounded by the start of a kernel.
        """
        least = self.kernel if started else 0.0
        return sum(
            max(o.flops / self.rates[o.precision], o.bytes / self.bandwidth, least)
            for o in operations
        )

    def communication_seconds(self, calls: Iterable[Collective], world: int) -> float:
        """The sum of the collectives' times, as rings through the slowest link."""
        if world == 1:
            return 0.0
        speed = self.link if world <= self.ranks else self.network
        hops = (world - 1).bit_length()  # small messages go by trees
        return sum(call.sent(world) / speed + hops * self.latency for call in calls)


MACHINES = {
    "a100": Machine(
        "a100",
        {"fp32": 19.5e12, "tf32": 156e12, "bf16": 312e12},
        memory=80e9,
        bandwidth=2.039e12,
        link=300e9,
        network=25e9,
        source="NVIDIA A100 80GB SXM and DGX A100 data sheets (one 200 Gb/s adapter a GPU)",
    ),
    "h100": Machine(
        "h100",
        {"fp32": 67e12, "tf32": 494e12, "bf16": 989e12},
        memory=80e9,
        bandwidth=3.35e12,
        link=450e9,
        network=50e9,
        source="NVIDIA H100 SXM and DGX H100 data sheets (one 400 Gb/s adapter a GPU)",
    ),
    "h200": Machine(
        "h200",
        {"fp32": 67e12, "tf32": 494e12, "bf16": 989e12},
        memory=141e9,
        bandwidth=4.8e12,
        link=450e9,
        network=50e9,
        source="NVIDIA H200 SXM and DGX H200 data sheets (one 400 Gb/s adapter a GPU)",
    ),
}
THIS = "this"


def machine(name: str, threads: int, workers: int) -> Machine:
    """The machine called `name`; ``this`` is measured, in seconds, with `threads` a worker.

    Raises InputError for an unknown name.
    """
    if name == THIS:
        return measure(threads, workers)
    if name not in MACHINES:
        known = ", ".join([THIS, *MACHINES])
        raise InputError(f"no machine is called {name!r}: give --machine one of {known}")
    return MACHINES[name]


def measure(threads: int, workers: int) -> Machine:
    """Measures this machine for `workers` ranks of `threads` CPU threads, one rank running."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fp32 = _products(torch.float32)
        # where bf16 would be imitated, training computes in fp32
        rates = {"fp32": fp32, "bf16": _products(torch.bfloat16) if multiplies_bf16() else fp32}
        bandwidth, kernel = _copies(), _smallest()
    finally:
        torch.set_num_threads(before)
    link, latency = _loopback()
    return Machine(
        THIS,
        {**rates, "tf32": rates["fp32"]},
        memory=psutil.virtual_memory().total / workers,
        bandwidth=bandwidth,
        ranks=workers,
        link=link,
        network=link,
        kernel=kernel,
        latency=latency,
        source=f"measured here with {threads} threads; messages through the loopback device",
    )


def _best(work: Callable[[], object], times: int) -> float:
    """The shortest of several runs of `work`, seconds; the first, which warms up, is left out."""
    durations = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        work()
        durations.append(time.perf_counter() - begun)
    return min(durations[1:])


def _products(dtype: torch.dtype, side: int = 1024) -> float:
    a, b = torch.ones(side, side, dtype=dtype), torch.ones(side, side, dtype=dtype)
    return 2 * side**3 / _best(lambda: a @ b, 10)


def _copies(size: int = 2**26) -> float:
    a, b = torch.ones(size), torch.ones(size)
    return 2 * 4 * size / _best(lambda: b.copy_(a), 3)


def _smallest(times: int = 1000) -> float:
    a = torch.ones(1)
    return _best(lambda: [a.add_(1) for _ in range(times)], 3) / times


def _loopback(size: int = 2**26) -> tuple[float, float]:
    """Bytes a second, and seconds a small message, between two sockets on this machine."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0] as far,
    ):
        for end in (near, far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        content = bytes(size)

        def send() -> None:
            sender = threading.Thread(target=near.sendall, args=(content,))
            sender.start()
            _receive(far, size)
            sender.join()

        def there_and_back() -> None:
            near.sendall(b"1")
            _receive(far, 1)
            far.sendall(b"1")
            _receive(near, 1)

        return size / _best(send, 3), _best(there_and_back, 20) / 2


def _receive(end: socket.socket, size: int) -> None:
    buffer = bytearray(2**20)
    while size:
        size -= end.recv_into(buffer, min(size, len(buffer)))
