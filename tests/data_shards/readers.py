"""What a reading process does; light to import, for a process is started for each."""

import numpy as np

from data_shards.orders.block_order import BlockOrder
from data_shards.storage.dataset import ShardDataset

WINDOW = 2


def reader(url, settings, samples, seed, queue):
    """A process of its own that reads an epoch in blocks."""
    dataset = ShardDataset.open(url, settings)
    order = BlockOrder(np.arange(samples), dataset.shard[:samples], WINDOW, seed)
    seen = []
    for first in range(0, samples, 12):
        dataset.files.need(order.shards_ahead(first))
        own = order.at(np.arange(first, min(first + 12, samples)))
        assert all(image is not None for image in dataset.images(own))
        seen += own.tolist()
    queue.put(sorted(seen) == list(range(samples)))
