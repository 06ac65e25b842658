"""A folder of models and versions is read as it stands, and what is wrong in it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from cotenant.config import ConfigError, ServerConfig, load_scenario
from cotenant.domain import JobClass
from cotenant.experiment.load import replaying
from cotenant.repository import Repository, StoredModel, VersionPolicy, stocked


def version(folder: Path, name: str, number: int | str, file: str = "model.onnx") -> Path:
    """A version with a file that is no model: nothing here reads it."""
    path = folder / name / str(number) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def repository(folder: Path) -> Repository:
    return Repository(folder, ServerConfig())


def found(repository: Repository, name: str) -> StoredModel:
    return repository.find(name)


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (VersionPolicy(), (10,)),
        (VersionPolicy(latest=2), (3, 10)),
        (VersionPolicy(latest=9), (1, 3, 10)),
        (VersionPolicy(latest=None), (1, 3, 10)),
        (VersionPolicy(listed=(10, 1, 7)), (1, 10)),
    ],
)
def test_a_policy_chooses_versions_by_number(policy: VersionPolicy, chosen: tuple[int, ...]) -> None:
    assert policy.chosen((1, 3, 10)) == chosen


def test_versions_are_folders_with_whole_numbers(folder: Path, repository: Repository) -> None:
    for name in ("1", "10", "2"):
        version(folder, "m", name)
    for name in ("0", "01", "-1", "1.5", "latest", ".hidden", "9" * 19):
        version(folder, "m", name)
    (folder / "m" / "7").write_text("a file is no version")
    model = found(repository, "m")
    assert list(model.versions) == [1, 2, 10]
    assert model.chosen == (10,)
    assert model.versions[10].name == "m@10"
    assert Path(model.versions[10].source) == folder / "m" / "10" / "model.onnx"


def test_models_are_folders_whose_names_fit_a_url(folder: Path, repository: Repository) -> None:
    for name in ("a", "B.2_c-d", ".git", "..data", "has space", "m@1"):
        version(folder, name, 1)
    (folder / "README").write_text("a file is no model")
    assert repository.names() == ["B.2_c-d", "a"]
    for name in (".git", "m@1", "..", "a/1", "nope", ""):
        with pytest.raises(ConfigError, match="unknown model"):
            repository.find(name)


def test_a_config_says_how_a_model_is_served(folder: Path, repository: Repository) -> None:
    version(folder, "m", 1)
    version(folder, "m", 2)
    (folder / "m" / "labels.txt").write_text("cat\ndog\n")
    (folder / "m" / "config.toml").write_text(
        'slo_ms = 25\nclass = "protected"\nmax_batch = 4\nversions = "all"\nlabels = "labels.txt"\n'
        "buckets = {seq = [8, 16]}\n"
    )
    model = found(repository, "m")
    assert model.chosen == (1, 2)
    config = model.versions[1]
    assert (config.slo_ms, config.job_class, config.max_batch) == (25, JobClass.PROTECTED, 4)
    assert config.buckets == {"seq": (8, 16)}
    assert list(config.labels.values()) == [folder / "m" / "labels.txt"]
    assert repository.model("m@2") == model.versions[2]
    with pytest.raises(ConfigError, match="unknown model 'm@3'"):
        repository.model("m@3")


def test_without_a_config_a_model_is_best_effort(folder: Path, repository: Repository) -> None:
    version(folder, "m", 1)
    assert repository.model("m@1").job_class is JobClass.BEST_EFFORT


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("slo = 5", "unknown key 'slo'; did you mean 'slo_ms'"),
        ('name = "other"', "unknown key 'name'"),
        ('source = "zoo:echo"', "unknown key 'source'"),
        ("rate_per_s = 5", "unknown key 'rate_per_s'"),
        ("slo_ms = -1", "slo_ms must be greater than 0"),
        ('versions = "newest"', "versions must be {latest = N}"),
        ("versions = {latest = 0}", "versions latest must be a whole number"),
        ("versions = {newest = 1}", "unknown key 'newest'"),
        ("versions = []", "versions must be"),
        ("versions = [true]", "versions must be"),
        ('labels = "../../secret"', "leads out of the folder"),
        ("slo_ms = ", "cannot be read"),
    ],
)
def test_a_wrong_config_is_refused_by_key(
    folder: Path, repository: Repository, config: str, complaint: str
) -> None:
    version(folder, "m", 1)
    version(folder, "good", 1)
    (folder / "m" / "config.toml").write_text(config)
    with pytest.raises(ConfigError) as caught:
        repository.find("m")
    assert complaint in str(caught.value)
    scanned = dict(repository.scan())
    assert isinstance(scanned["m"], ConfigError)
    assert isinstance(scanned["good"], StoredModel)


def test_a_stamp_changes_with_any_file_and_with_the_config(folder: Path, repository: Repository) -> None:
    version(folder, "m", 1)
    version(folder, "m", 2)

    def stamps() -> list[object]:
        return [found(repository, "m").stamps[number] for number in (1, 2)]

    before = stamps()
    assert stamps() == before
    (folder / "m" / "1" / "weights.bin").write_bytes(b"more")
    after = stamps()
    assert after[0] != before[0]
    assert after[1] == before[1]
    (folder / "m" / "config.toml").write_text("slo_ms = 5")
    assert all(new != old for new, old in zip(stamps(), after, strict=True))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


EXPLICIT = '[repository]\npath = "models"\nmode = "explicit"\nload = ["b", "nope"]\n'


@pytest.mark.parametrize(
    ("text", "names", "failed"),
    [
        ('[repository]\npath = "models"\n', ["a@2", "b@1"], ["empty"]),
        ('[repository]\npath = "models"\nmode = "poll"\npoll_s = 1\n', ["a@2", "b@1"], ["empty"]),
        (EXPLICIT, ["b@1"], ["nope"]),
        (EXPLICIT + '[[model]]\nname = "c"\nsource = "zoo:echo"\n', ["c", "b@1"], ["nope"]),
    ],
)
def test_the_start_loads_what_the_mode_says(
    tmp_path: Path, folder: Path, text: str, names: list[str], failed: list[str]
) -> None:
    for name, number in (("a", 1), ("a", 2), ("b", 1)):
        version(folder, name, number)
    (folder / "empty").mkdir()
    stock = stocked(load_scenario(write(tmp_path / "server.toml", text)))
    assert [model.name for model in stock.scenario.models] == names
    assert list(stock.failed) == failed
    assert set(stock.stamps) == {name for name in names if "@" in name}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[repository]", "[repository] path is needed"),
        ('[repository]\npath = "nowhere"', "[repository] path names no folder"),
        ('[repository]\npath = ".."', "leads out of the folder"),
        ('[repository]\npath = "models"\nmode = "auto"', "must be one of none, explicit, poll"),
        ('[repository]\npath = "models"\nload = ["a"]', 'goes with mode = "explicit"'),
        ('[repository]\npath = "models"\nmode = "explicit"\nload = ["../a"]', "must be a list of names"),
        ('[repository]\npath = "models"\npoll_s = 0', "poll_s must be greater than 0"),
        ('[repository]\nfolder = "models"', "unknown key 'folder'"),
        ("repository = 3", "must be a table"),
        ('[device]\nmemory_mib = -1\n[repository]\npath = "models"', "memory_mib must be 0 or more"),
        ("", "needs at least one model, or a [repository]"),
    ],
)
def test_a_wrong_table_is_refused_by_key(tmp_path: Path, folder: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_scenario(write(tmp_path / "server.toml", text))
    assert complaint in str(caught.value)


def test_a_model_of_both_places_is_refused(tmp_path: Path, folder: Path) -> None:
    version(folder, "m", 1)
    text = '[repository]\npath = "models"\n[[model]]\nname = "m"\nsource = "zoo:echo"\n'
    with pytest.raises(ConfigError, match="'m' is also a model of the repository"):
        stocked(load_scenario(write(tmp_path / "server.toml", text)))


def test_a_repository_alone_is_no_load(tmp_path: Path, folder: Path) -> None:
    version(folder, "m", 1)
    scenario = load_scenario(write(tmp_path / "server.toml", '[repository]\npath = "models"\n'))
    with pytest.raises(ValueError, match=r"has no \[\[model\]\] to offer load to"):
        replaying(scenario, None, None, None)
