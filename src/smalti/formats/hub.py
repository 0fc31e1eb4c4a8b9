"""Downloads from and uploads to the Hugging Face hub.

`huggingface_hub` is imported on first use, because the import takes as long as reading a small model.
"""

from pathlib import Path
from typing import Any


def fetch(repository: str, name: str, **options: Any) -> Path:
    """Download one file of a model on the hub ("user/name"), or take it from the cache. Options: `hf_hub_download`."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, **options))


def upload(folder: Path, repository: str, *, message: str, private: bool | None, token: str | None) -> str:
    """Upload the files of a folder as one commit. A missing model repository is created. Returns the commit's URL."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    found = api.create_repo(repository, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=found, folder_path=folder, commit_message=message))
