"""Puts the room of files together, for a registry process and for tests."""

from __future__ import annotations

from dataclasses import dataclass

from registry.access.door import Door
from registry.audit.trail import AuditTrail
from registry.files.codec import files_of_manifest
from registry.files.completion import Completion
from registry.files.data_keys import DataKeys
from registry.files.fetching import Fetching
from registry.files.garbage import Garbage
from registry.files.incidents import Incidents
from registry.files.objects import Objects
from registry.files.servicer import FileServicer, Rotation
from registry.files.sql import FileStore
from registry.files.sql_collection import CollectionStore
from registry.files.storage import Storage
from registry.files.turn import Turn
from registry.files.types import FileLimits
from registry.files.uploads import Uploads
from registry.seals import Seals
from runtime.clock import Clock
from runtime.database import Database


@dataclass(frozen=True, slots=True)
class Files:
    """What answers calls, and what is to run beside it: `collecting(files.garbage, …)`."""

    servicer: FileServicer
    garbage: Garbage


def compose_files(
    *,
    door: Door,
    database: Database,
    objects: Objects,
    seals: Seals,
    data_keys: DataKeys,
    trail: AuditTrail,
    rotation: Rotation,
    clock: Clock,
    limits: FileLimits,
) -> Files:
    store = FileStore(database, seals, trail)
    uploads = Uploads(store, objects, data_keys, clock, limits)
    garbage = Garbage(CollectionStore(database, trail), objects, Turn(database), clock, limits)
    servicer = FileServicer(
        door=door,
        uploads=uploads,
        completion=Completion(uploads, store, objects, data_keys, clock, limits),
        fetching=Fetching(store, objects, data_keys, limits, files_of_manifest),
        storage=Storage(store),
        garbage=garbage,
        rotation=rotation,
        incidents=Incidents(trail, clock),
        limits=limits,
    )
    return Files(servicer, garbage)
