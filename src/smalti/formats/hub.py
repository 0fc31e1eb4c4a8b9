"""Downloads from and uploads to the Hugging Face hub.

`huggingface_hub` is imported on first use, because the import takes as long as reading a small model.
"""

from pathlib import Path
from typing import Any


def may_be_on_hub(model: str | Path) -> bool:
    """Whether this can be a name on the hub, "user/name": it is not if there is a local directory "user"."""
    path = Path(model)
    return str(model).count("/") == 1 and not str(model).startswith((".", "/")) and not path.parent.exists()


def fetch(repository: str, name: str, **options: Any) -> Path:
    """Download one file of a model on the hub ("user/name"), or take it from the cache. Options: `hf_hub_download`.

    Raises:
        FileNotFoundError: no such repository or file, no access, or no connection.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, **options))
    except (OSError, ValueError) as error:  # ValueError: not a valid name
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{repository}: is no local directory, and {name} cannot be fetched from the Hugging Face hub ({reason})"
        ) from error


def upload(folder: Path, repository: str, *, message: str, private: bool | None, token: str | None) -> str:
    """Upload the files of a folder as one commit. A missing model repository is created. Returns the commit's URL."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    found = api.create_repo(repository, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=found, folder_path=folder, commit_message=message))
