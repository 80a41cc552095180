"""A local stand-in for the Hugging Face hub: huggingface_hub's functions with their signatures; nothing is sent."""

import shutil
from types import SimpleNamespace
from unittest.mock import create_autospec

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

import zoo.repository


class Hub:
    """Repositories are folders of ``root``; ``calls`` records what was asked for."""

    def __init__(self, root, monkeypatch):
        self.root, self.calls = root, []
        for name in ("create_repo", "upload_folder"):
            double = create_autospec(getattr(HfApi, name), side_effect=getattr(self, name))
            monkeypatch.setattr(HfApi, name, double)
        double = create_autospec(huggingface_hub.snapshot_download, side_effect=self.snapshot_download)
        monkeypatch.setattr(zoo.repository, "snapshot_download", double)

    def create_repo(self, api, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, api.token))
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, api, *, repo_id, folder_path, revision, commit_message):
        self.calls.append(("upload", repo_id, revision, api.token))
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, *, revision, allow_patterns):
        self.calls.append(("download", repo_id, revision))
        if not (self.root / repo_id).is_dir():
            raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))
        found = self.root / "snapshots" / repo_id
        found.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            shutil.copy(self.root / repo_id / name, found)
        return str(found)
