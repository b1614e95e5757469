"""The archive: results fetched from the provider into a storage of one's own."""

from worker.archive.address import Address, parse
from worker.archive.store import Part, StorageError, Store, open_store

__all__ = ["Address", "Part", "StorageError", "Store", "open_store", "parse"]
