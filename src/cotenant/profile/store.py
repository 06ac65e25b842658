"""Profiles in one SQLite file that several processes may use at once.

Everything is keyed by the hash of the model file, the variant's shape, the share of the device and the
digest of the device's fingerprint. Model names are not stored: they belong to whoever reads.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import msgspec

from cotenant.clock import sleep, wall_time_s
from cotenant.domain import SoloProfile, Variant
from cotenant.profile.records import (
    DeviceFingerprint,
    DeviceRates,
    FeatureRecord,
    PairRecord,
    SoloRecord,
    shape_key,
    variant_of,
)

SCHEMA_VERSION = 1
WAIT_S = 10.0
"""How long a write waits for another process's (s)."""

SCHEMA = (
    """CREATE TABLE device (digest TEXT PRIMARY KEY, fingerprint BLOB NOT NULL, overhead_ns INTEGER)""",
    """CREATE TABLE solo (
        source TEXT, shape TEXT, share REAL, device TEXT,
        median_ns INTEGER NOT NULL, spread_ns INTEGER NOT NULL, n_samples INTEGER NOT NULL,
        quantiles BLOB NOT NULL, samples BLOB NOT NULL, measured_at_s REAL NOT NULL,
        PRIMARY KEY (source, shape, share, device)) WITHOUT ROWID""",
    """CREATE TABLE corun (
        victim TEXT, victim_shape TEXT, aggressor TEXT, aggressor_shape TEXT, device TEXT,
        ratio REAL NOT NULL, n_samples INTEGER NOT NULL, measured_at_s REAL NOT NULL,
        PRIMARY KEY (victim, victim_shape, aggressor, aggressor_shape, device)) WITHOUT ROWID""",
)

ADDED = (
    """CREATE TABLE IF NOT EXISTS feature (
        source TEXT, shape TEXT, share REAL, device TEXT, record BLOB NOT NULL, measured_at_s REAL NOT NULL,
        PRIMARY KEY (source, shape, share, device)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS rates (device TEXT PRIMARY KEY, rates BLOB NOT NULL) WITHOUT ROWID""",
)
"""Tables that came later: an older cotenant, of the same schema version, does not look at them."""

_QUANTILES = msgspec.json.Decoder(tuple[tuple[float, int], ...])
_SAMPLES = msgspec.json.Decoder(tuple[int, ...])
_FEATURES = msgspec.json.Decoder(FeatureRecord)
_RATES = msgspec.json.Decoder(DeviceRates)


class ProfileStoreError(ValueError):
    """The store cannot be used; the message names the file and says what to do."""


class ProfileStore:
    """The profiles of every device that used this file. Thread-safe; every call blocks for a short while.

    Every method raises ProfileStoreError when the file turns out damaged, locked or not writable.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    def __enter__(self) -> ProfileStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- solo -----------------------------------------------------------------------------------------

    def put_solo(self, record: SoloRecord, device: DeviceFingerprint) -> None:
        """Store a profile; replaces an earlier one of the same key."""
        profile = record.profile
        row = (
            record.source,
            shape_key(profile.variant),
            profile.share,
            device.digest,
            profile.median_ns,
            profile.spread_ns,
            profile.n_samples,
            msgspec.json.encode(profile.quantiles_ns),
            msgspec.json.encode(record.samples_ns),
            wall_time_s(),
        )
        with self._explained(), self._lock:
            self._know(device)
            self._db.execute(f"INSERT OR REPLACE INTO solo VALUES ({','.join('?' * len(row))})", row)

    def get_solo(
        self, source: str, variant: Variant, device: DeviceFingerprint, share: float = 1.0
    ) -> SoloRecord | None:
        """The stored profile, under the asker's model name; None when this was never measured."""
        with self._explained(), self._lock:
            row = self._db.execute(
                "SELECT median_ns, spread_ns, n_samples, quantiles, samples FROM solo "
                "WHERE source = ? AND shape = ? AND share = ? AND device = ?",
                (source, shape_key(variant), share, device.digest),
            ).fetchone()
            if row is None:
                return None
            median_ns, spread_ns, n_samples, quantiles, samples = row
            profile = SoloProfile(
                variant=variant,
                share=share,
                median_ns=median_ns,
                spread_ns=spread_ns,
                n_samples=n_samples,
                quantiles_ns=_QUANTILES.decode(quantiles),
            )
            return SoloRecord(source=source, profile=profile, samples_ns=_SAMPLES.decode(samples))

    # --- co-runs --------------------------------------------------------------------------------------

    def put_pair(self, record: PairRecord, device: DeviceFingerprint) -> None:
        """Store a slowdown; replaces an earlier one of the same key."""
        row = (
            record.victim_source,
            shape_key(record.victim),
            record.aggressor_source,
            shape_key(record.aggressor),
            device.digest,
            record.ratio,
            record.n_samples,
            wall_time_s(),
        )
        with self._explained(), self._lock:
            self._know(device)
            self._db.execute(f"INSERT OR REPLACE INTO corun VALUES ({','.join('?' * len(row))})", row)

    def pairs(self, models: dict[str, str], device: DeviceFingerprint) -> list[PairRecord]:
        """Stored slowdowns among `models` (name -> source hash), under these names. Two names of one source
        both get its rows."""
        names: dict[str, list[str]] = {}
        for name, source in models.items():
            names.setdefault(source, []).append(name)
        with self._explained(), self._lock:
            rows = self._db.execute(
                "SELECT victim, victim_shape, aggressor, aggressor_shape, ratio, n_samples FROM corun "
                "WHERE device = ? ORDER BY 1, 2, 3, 4",
                (device.digest,),
            ).fetchall()
        return [
            PairRecord(
                victim_source=victim,
                victim=variant_of(victim_name, victim_shape),
                aggressor_source=aggressor,
                aggressor=variant_of(aggressor_name, aggressor_shape),
                ratio=ratio,
                n_samples=n_samples,
            )
            for victim, victim_shape, aggressor, aggressor_shape, ratio, n_samples in rows
            for victim_name in names.get(victim, ())
            for aggressor_name in names.get(aggressor, ())
        ]

    # --- the device -----------------------------------------------------------------------------------

    def put_overhead(self, overhead_ns: int, device: DeviceFingerprint) -> None:
        """Store the span from a decision to the report of its end, less the time in the lane."""
        with self._explained(), self._lock:
            self._know(device)
            self._db.execute(
                "UPDATE device SET overhead_ns = ? WHERE digest = ?", (overhead_ns, device.digest)
            )

    def overhead(self, device: DeviceFingerprint) -> int | None:
        """The stored overhead (ns), None when it was never measured."""
        with self._explained(), self._lock:
            row = self._db.execute(
                "SELECT overhead_ns FROM device WHERE digest = ?", (device.digest,)
            ).fetchone()
        return None if row is None else row[0]

    # --- features -------------------------------------------------------------------------------------

    def put_features(self, record: FeatureRecord, device: DeviceFingerprint) -> None:
        """Store what was measured of a variant; replaces an earlier record of the same key."""
        key = (record.source, shape_key(record.variant), record.share, device.digest)
        row = (*key, msgspec.json.encode(record), wall_time_s())
        with self._explained(), self._lock:
            self._know(device)
            self._db.execute("INSERT OR REPLACE INTO feature VALUES (?, ?, ?, ?, ?, ?)", row)

    def get_features(
        self, source: str, variant: Variant, device: DeviceFingerprint, share: float = 1.0
    ) -> FeatureRecord | None:
        """The stored record, under the asker's model name; None when there is none."""
        with self._explained(), self._lock:
            row = self._db.execute(
                "SELECT record FROM feature WHERE source = ? AND shape = ? AND share = ? AND device = ?",
                (source, shape_key(variant), share, device.digest),
            ).fetchone()
            return None if row is None else msgspec.structs.replace(_FEATURES.decode(row[0]), variant=variant)

    def put_rates(self, rates: DeviceRates, device: DeviceFingerprint) -> None:
        """Store what the device can do."""
        with self._explained(), self._lock:
            self._know(device)
            self._db.execute(
                "INSERT OR REPLACE INTO rates VALUES (?, ?)", (device.digest, msgspec.json.encode(rates))
            )

    def get_rates(self, device: DeviceFingerprint) -> DeviceRates | None:
        """What the device can do; None when it was never measured."""
        with self._explained(), self._lock:
            row = self._db.execute("SELECT rates FROM rates WHERE device = ?", (device.digest,)).fetchone()
            return None if row is None else _RATES.decode(row[0])

    # --- inside ---------------------------------------------------------------------------------------

    def _know(self, device: DeviceFingerprint) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO device VALUES (?, ?, NULL)", (device.digest, msgspec.json.encode(device))
        )

    def _prepare(self) -> None:
        self._use_wal()
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            n_tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if found == 0 and n_tables == 0:
                for statement in SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif found != SCHEMA_VERSION:
                raise ProfileStoreError(
                    f"profile store {self.path} has schema version {found}, but this cotenant reads "
                    f"{SCHEMA_VERSION}: move it away and run `cotenant profile`, or give another --store"
                )
            for statement in ADDED:
                self._db.execute(statement)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _use_wal(self) -> None:
        """SQLite does not wait for locks on this switch, so several processes starting at once retry."""
        for attempt in range(100):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or attempt == 99:
                    raise
                sleep(0.02)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a mistake of ours, such as use after close
        except (sqlite3.OperationalError, OSError) as error:
            raise ProfileStoreError(
                f"profile store {self.path} cannot be used: {error}; check the folder's permissions, free "
                "space and other users of the file, or give another --store"
            ) from error
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            raise ProfileStoreError(
                f"profile store {self.path} is damaged: {error}; delete it and run `cotenant profile` again"
            ) from error
