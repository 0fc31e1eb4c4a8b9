"""Names on the Hugging Face hub: which are, and how a failed download ends."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import smalti
from smalti.formats.hub import fetch, may_be_on_hub


def test_a_path_with_a_local_parent_is_not_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert may_be_on_hub("user/name")
    assert not any(map(may_be_on_hub, ("runs/photos", "./name", "/name", "name", "a/b/c", tmp_path / "name")))
    for load in (smalti.load, smalti.load_prior):
        with pytest.raises(FileNotFoundError, match="runs/photos: is not a folder"):
            load("runs/photos")


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no connection\n  at all"), None])
def test_a_failed_download_names_the_model(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error or AssertionError

    if error:
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    name, reason = ("user/name", "no connection at all") if error else ("user/na me", "na me")  # no valid name
    with pytest.raises(FileNotFoundError, match=f"^{name}: is no local directory, .* Hugging Face hub .*{reason}"):
        fetch(name, "config.json")
