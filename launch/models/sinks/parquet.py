"""A Parquet file: an image a row, with its key, identity, camera and vector."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from launch.models.sinks.flat import FlatFile
from launch.models.sinks.interface import Made


class ParquetFile(FlatFile):
    """.parquet: a row group a shard, with the card in the file's metadata, too."""

    def write(self, made: Made, target: Path, card: dict[str, Any]) -> None:
        vector = pa.list_(pa.float32(), card["dimension"])
        columns = [(name, pa.string()) for name in ("id", "identity", "camera")]
        about = {key: json.dumps(value).strip('"') for key, value in card.items()}
        schema = pa.schema([*columns, ("vector", vector)], metadata=about)
        with pq.ParquetWriter(target, schema) as out:
            for _, rows in made.parts():
                numbers = pa.array(rows.vectors.ravel())
                vectors = pa.FixedSizeListArray.from_arrays(numbers, type=vector)
                texts = (rows.keys, rows.identities, rows.cameras)
                out.write_table(pa.table([*map(pa.array, texts), vectors], schema=schema))
