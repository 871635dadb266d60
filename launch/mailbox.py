"""Brings workers' records to the driver, in order, without blocking the workers."""

from typing import Any


class Mailbox:
    """A Ray actor: `post` from anywhere, `drain` from the driver."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []

    def post(self, record: dict[str, Any]) -> None:
        """Adds a record."""
        self._records.append(record)

    def drain(self) -> list[dict[str, Any]]:
        """Takes every record out."""
        records, self._records = self._records, []
        return records
