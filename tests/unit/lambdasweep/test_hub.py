"""In `export --push-to` huggingface_hub talks to a hub on this machine, and a push that is half done is noticed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.errors import InputError, LambdasweepError
from lambdasweep.exchange.hub import check_hub, push
from tests.support.command_line import Result
from tests.support.hub import Hub, Repository, local_hub

REPO = "tester/half-way"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with local_hub() as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in (
        ("model-00001-of-00001.safetensors", b"weights" * 99),
        ("config.json", b"{}"),
        ("empty", b""),
    ):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def said(line: str) -> None:
    assert REPO in line


@pytest.mark.parametrize("public", [False, True])
def test_a_push_is_one_commit_of_every_file_and_private_unless_told(hub: Hub, folder: Path, public: bool) -> None:
    check_hub(REPO, public)
    assert hub.repositories == {}
    assert push(folder, REPO, public, said) == f"{hub.url}/{REPO}/commit/{1:040x}"
    there = hub.repositories[REPO]
    assert there.private is not public
    assert there.commits == 1
    assert {name: content for name, (content, _) in there.files.items()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert there.files["model-00001-of-00001.safetensors"][1]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loses": "config.json"}, "config.json is missing on the hub"),
        ({"changes": "config.json"}, "config.json has another content on the hub"),
        ({"changes": "model-00001-of-00001.safetensors"}, "safetensors has another content on the hub"),
    ],
)
def test_what_arrived_is_held_against_what_was_sent(hub: Hub, folder: Path, wrong: dict[str, str], says: str) -> None:
    for name, value in wrong.items():
        setattr(hub, name, value)
    with pytest.raises(LambdasweepError, match="is not what was pushed") as caught:
        push(folder, REPO, False, said)
    assert says in str(caught.value)
    assert f"hf upload {REPO} {folder} . --private" in str(caught.value)


@pytest.mark.parametrize("fails", ["repos/create", "preupload", "lfs/objects/batch", "PUT", "commit", "tree"])
def test_a_push_that_breaks_says_so_and_shows_nothing_half(hub: Hub, folder: Path, fails: str) -> None:
    hub.fails = fails
    with pytest.raises(LambdasweepError, match="was not pushed") as caught:
        push(folder, REPO, False, said)
    assert f"{folder} is whole" in str(caught.value)
    assert "\n" not in str(caught.value)
    if fails != "tree":
        assert not any(there.files for there in hub.repositories.values())


def test_export_pushes(hub: Hub, lambdasweep: Callable[..., Result], pair: tuple[Path, Path], tmp_path: Path) -> None:
    point = ["--base", pair[0], "--aligned", pair[1], "--lam", "0.5"]
    result = lambdasweep("export", *point, "--out", tmp_path / "out", "--push-to", REPO)
    assert (result.code, result.out.splitlines()[1]) == (0, f"pushed: {hub.url}/{REPO}/commit/{1:040x}")
    assert hub.repositories[REPO].private
    assert hub.repositories[REPO].files.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    again = lambdasweep("export", *point, "--out", tmp_path / "again", "--push-to", REPO)
    assert again.code == 2
    assert "holds" in again.problems[0]
    assert not (tmp_path / "again").exists()  # the hub was asked first
    alone = lambdasweep("export", *point, "--out", tmp_path / "again", "--public")
    assert (alone.code, alone.out) == (2, "")


def test_a_hub_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hub():
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(LambdasweepError, match="the hub does not answer"):
            check_hub(REPO, False)
        with pytest.raises(LambdasweepError, match="was not pushed"):
            push(folder, REPO, False, said)


@pytest.mark.parametrize(
    ("there", "public", "says"),
    [
        (Repository(private=False), False, "everybody can see it"),
        (Repository(private=True), True, "it is private"),
        (Repository(True, {"config.json": (b"{}", False)}), False, r"it holds 1 files \(config.json, …\)"),
    ],
)
def test_a_repository_that_is_there(hub: Hub, there: Repository, public: bool, says: str) -> None:
    hub.repositories[REPO] = there
    with pytest.raises(InputError, match=says):
        check_hub(REPO, public)
    hub.repositories[REPO] = Repository(not public, {".gitattributes": (b"", False)})
    check_hub(REPO, public)


def test_a_repository_that_became_public_meanwhile(hub: Hub, folder: Path) -> None:
    hub.repositories[REPO] = Repository(private=False)
    with pytest.raises(LambdasweepError, match="everybody can see it"):
        push(folder, REPO, False, said)


def test_nobody_is_logged_in(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(InputError, match="does not take the token"):
        check_hub(REPO, False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match="nobody is logged in"):
        check_hub(REPO, False)
    with pytest.raises(InputError, match="give ORG/NAME"):
        check_hub("half-way", False)
