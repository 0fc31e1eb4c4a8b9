"""Files of the Hugging Face hub: fetched into its cache, and folders uploaded.

`huggingface_hub` is imported when somebody asks for the hub, because that takes as long as reading a small model.
"""

from pathlib import Path
from typing import Any


def fetch(repository: str, name: str, **options: Any) -> Path:
    """One file of a model on the hub ("user/name"), from the cache if it is there; options as `hf_hub_download`."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, **options))


def upload(folder: Path, repository: str, *, message: str, private: bool | None, token: str | None) -> str:
    """Upload the files of a folder as one commit of a model, which is made where there is none; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    found = api.create_repo(repository, private=private, exist_ok=True).repo_id
    return str(api.upload_folder(repo_id=found, folder_path=folder, commit_message=message))
