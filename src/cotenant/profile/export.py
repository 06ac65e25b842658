"""The profiles and slowdowns of a scenario as one small JSON file, to be committed beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from cotenant.domain import ModelSpec, SoloProfile
from cotenant.profile.pairs import Pair
from cotenant.profile.records import (
    DeviceFingerprint,
    PairRecord,
    SoloRecord,
    StoredProfiles,
    shape_key,
    variant_of,
)

FORMAT = 1


class VariantEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured variant. Spans in us; `quantiles_us` maps levels, as text, to spans."""

    shape: str
    share: float
    median_us: float
    spread_us: float
    n: int
    quantiles_us: dict[str, float]
    samples_us: tuple[float, ...]


class ModelEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the scenario; `source` is the hash of its file."""

    source: str
    spec: ModelSpec
    variants: tuple[VariantEntry, ...]


class PairEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One slowdown, by model names of this file, with the shapes it was measured at."""

    victim: str
    victim_shape: str
    aggressor: str
    aggressor_shape: str
    ratio: float
    n: int


class ScenarioProfile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a simulator must know of the device and the models of a scenario."""

    format: int
    device: DeviceFingerprint
    dispatch_overhead_us: float
    models: tuple[ModelEntry, ...]
    pairs: tuple[PairEntry, ...] = ()

    @property
    def overhead_ns(self) -> int:
        """`dispatch_overhead_us` in ns."""
        return round(self.dispatch_overhead_us * 1000)

    def records(self) -> list[SoloRecord]:
        """The solo records under the names of this file."""
        return [_record(model, entry) for model in self.models for entry in model.variants]

    def profiles(self, specs: Sequence[ModelSpec] | None = None) -> StoredProfiles:
        """A reader over the records; `specs` (of the scenario at hand) replace the recorded ones."""
        return StoredProfiles(specs or [model.spec for model in self.models], self.records())

    def ratios(self) -> list[Pair]:
        """The pairs as they were measured, under the names of this file."""
        return [
            Pair(
                variant_of(pair.victim, pair.victim_shape),
                variant_of(pair.aggressor, pair.aggressor_shape),
                pair.ratio,
            )
            for pair in self.pairs
        ]

    def slowdown(self) -> Mapping[tuple[str, str], float]:
        """(victim, aggressor) by model name -> factor, at least 1.0: less is noise."""
        return {(pair.victim, pair.aggressor): max(1.0, pair.ratio) for pair in self.pairs}


def scenario_profile(
    device: DeviceFingerprint,
    specs: Sequence[ModelSpec],
    records: Sequence[SoloRecord],
    pairs: Sequence[PairRecord] = (),
    overhead_ns: int = 0,
) -> ScenarioProfile:
    """Gather what was measured. Raises KeyError for a spec of which no variant was measured."""
    of_model: dict[str, list[SoloRecord]] = {}
    for record in records:
        of_model.setdefault(record.profile.variant.model, []).append(record)
    return ScenarioProfile(
        format=FORMAT,
        device=device,
        dispatch_overhead_us=_us(overhead_ns),
        models=tuple(
            ModelEntry(
                source=of_model[spec.name][0].source,
                spec=spec,
                variants=tuple(_entry(record) for record in of_model[spec.name]),
            )
            for spec in specs
        ),
        pairs=tuple(
            PairEntry(
                victim=pair.victim.model,
                victim_shape=shape_key(pair.victim),
                aggressor=pair.aggressor.model,
                aggressor_shape=shape_key(pair.aggressor),
                ratio=round(pair.ratio, 4),
                n=pair.n_samples,
            )
            for pair in pairs
        ),
    )


def to_json(profile: ScenarioProfile) -> str:
    """The profile as text, one line per variant and pair, so that changes can be reviewed."""
    head = [
        f'"format": {profile.format}',
        f'"device": {_line(profile.device)}',
        f'"dispatch_overhead_us": {profile.dispatch_overhead_us}',
    ]
    models = []
    for model in profile.models:
        variants = ",\n   ".join(_line(entry) for entry in model.variants)
        models.append(
            f'{{"source": {_line(model.source)},\n  "spec": {_line(model.spec)},'
            f'\n  "variants": [\n   {variants}]}}'
        )
    pairs = ",\n ".join(_line(pair) for pair in profile.pairs)
    body = ",\n".join([*head, '"models": [\n ' + ",\n ".join(models) + "]", f'"pairs": [\n {pairs}]'])
    return "{" + body + "}\n"


def from_json(text: str | bytes, name: str = "the profile") -> ScenarioProfile:
    """Read what `to_json` wrote. `name` is the file, for messages. Raises ValueError."""
    try:
        profile = msgspec.json.decode(text, type=ScenarioProfile)
        if profile.format != FORMAT:
            raise ValueError(f"it has format {profile.format}, this cotenant reads {FORMAT}")
        for record in profile.records():
            if record.profile.median_ns <= 0 or not record.samples_ns or record.samples_ns[0] <= 0:
                raise ValueError(f"{record.profile.variant.label} has no spans above 0")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} cannot be read: {error}; measure it again with `cotenant profile`"
        ) from error
    return profile


def load_profile(path: Path) -> ScenarioProfile:
    """Read the file. Raises ValueError naming it, OSError when it cannot be opened."""
    return from_json(path.read_bytes(), str(path))


def _line(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _us(ns: int) -> float:
    return round(ns / 1000, 1)


def _entry(record: SoloRecord) -> VariantEntry:
    profile = record.profile
    return VariantEntry(
        shape=shape_key(profile.variant),
        share=profile.share,
        median_us=_us(profile.median_ns),
        spread_us=_us(profile.spread_ns),
        n=profile.n_samples,
        quantiles_us={str(level): _us(span) for level, span in profile.quantiles_ns},
        samples_us=tuple(_us(span) for span in record.samples_ns),
    )


def _record(model: ModelEntry, entry: VariantEntry) -> SoloRecord:
    profile = SoloProfile(
        variant=variant_of(model.spec.name, entry.shape),
        share=entry.share,
        median_ns=round(entry.median_us * 1000),
        spread_ns=round(entry.spread_us * 1000),
        n_samples=entry.n,
        quantiles_ns=tuple((float(level), round(us * 1000)) for level, us in entry.quantiles_us.items()),
    )
    return SoloRecord(
        source=model.source, profile=profile, samples_ns=tuple(round(us * 1000) for us in entry.samples_us)
    )
