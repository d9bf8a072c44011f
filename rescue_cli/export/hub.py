"""Uploads a folder to the hub."""

from pathlib import Path
from typing import Any

from rescue_cli.errors import RescueError
from rescue_cli.export.check import RECORD


def push(folder: Path, repository: str, api: Any | None = None) -> str:
    """Uploads the folder; a repository that is not there yet is made, and is private.

    Args:
        api: A stand-in for `huggingface_hub.HfApi`, whose login and endpoint are used by default.

    Returns the address of the repository. Raises `RescueError`.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="rescue") if api is None else api
    try:
        created = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id,
            folder_path=str(folder),
            commit_message="Add the model",
            ignore_patterns=[RECORD],
        )
    except Exception as error:  # the hub's errors have no common base class
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise RescueError(
            f"--push {repository}: could not be uploaded ({reason}). {folder} is complete: log in "
            f"with `hf auth login`, then `hf upload {repository} {folder}`."
        ) from None
    return str(created)
