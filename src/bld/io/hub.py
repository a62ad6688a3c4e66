"""The Hugging Face hub: models are exchanged as JSON, safetensors, text and PNGs; none of it is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from bld.errors import CheckpointError, SettingError

TEXT_ENCODER = "text_encoder"  # the folder of a model that holds one
LOADED = ["*.json", "*.safetensors", f"{TEXT_ENCODER}/*.txt"]  # the last: the words a text encoder knows
SHARED = [*LOADED, "README.md", "*.png"]
MESSAGE = "Share a binary latent diffusion model"  # of a commit


def download(
    hub_id: str, revision: str | None = None, token: str | None = None, local_files_only: bool = False
) -> Path:
    """The local copy of a hub repository's models: JSON, safetensors, and the text files of a text encoder.

    Args:
        hub_id: the repository, such as you/flowers.
        revision: its branch, tag or commit.
        token: what lets you into a private one; by default that of `hf auth login`.
        local_files_only: take the copy on this machine, and ask no network.

    Returns:
        The folder of the copy.

    Raises:
        CheckpointError: if there is no such repository, if it may not be read with this token, or if the hub cannot be
            reached and there is no copy.
    """
    if hub_id.count("/") > 1 or hub_id.startswith((".", "/")) or not hub_id:
        raise CheckpointError(f"There is no folder {hub_id}.")
    from huggingface_hub import snapshot_download

    at = f" at {revision}" if revision else ""
    with _one_sentence(f"There is no folder {hub_id}, and the hub did not give a model of that name{at}"):
        copy = snapshot_download(
            hub_id, revision=revision, token=token, allow_patterns=LOADED, local_files_only=local_files_only
        )
        return Path(copy)


class Address(str):
    """The address of a commit, or of a pull request.

    Attributes:
        revision: the branch that holds the commit, refs/pr/N of a pull request; None for the main branch.
    """

    revision: str | None = None


def refuse_name(repo_id: str) -> None:
    """Refuse, as `SettingError`, a name that no model can be shared under."""
    if repo_id.count("/") != 1:
        raise SettingError(f"A model is shared under a name such as you/flowers, not '{repo_id}'.")


def prepare(
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    license: str = "other",
) -> None:
    """Make the repository and the branch that `upload` writes into, where they are not there.

    Args:
        repo_id: the repository, such as you/flowers.
        private: whether it has to be private, as one that is made then is; else as the owner's settings on the hub say.
        token: what lets you write; by default that of `hf auth login`.
        revision: a branch, made if it is not there.
        create_pr: whether a pull request is to be opened; then no branch is made.
        license: of what is to be uploaded, as its README.md says.

    Raises:
        SettingError: for a name that is not of the form you/flowers, or a licence that the hub does not know.
        CheckpointError: if the hub refuses or cannot be reached, or if a repository that has to be private is not.
    """
    refuse_name(repo_id)
    from huggingface_hub import HfApi, ModelCard

    api = HfApi(token=token)
    with _one_sentence(f"The hub did not take {repo_id}"):
        try:
            ModelCard(f"---\nlicense: {json.dumps(license)}\n---\n").validate()
        except ValueError as error:
            raise SettingError(
                f"The hub knows no licence '{license}': name one of its identifiers, such as cc-by-4.0 or mit."
            ) from error
        api.create_repo(repo_id, private=private or None, exist_ok=True)  # False would overrule an organisation
        is_open = private and not api.model_info(repo_id).private  # what is there stays as it is
    if is_open:
        raise CheckpointError(
            f"{repo_id} is there already and public: make it private on the hub, or choose another name."
        )
    if revision is not None and not create_pr:
        with _one_sentence(f"The hub did not take {repo_id}"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)


def upload(
    folder: Path,
    repo_id: str,
    *,
    token: str | None = None,
    commit_message: str,
    revision: str | None = None,
    create_pr: bool = False,
) -> Address:
    """Put a folder's models, README and pictures into a repository of the hub that `prepare` has made ready.

    Args:
        folder: whose JSON, safetensors, README.md and PNGs are uploaded, with the words that a text encoder knows
            (text_encoder/*.txt), and nothing else.
        repo_id: the repository, such as you/flowers.
        token: what lets you write; by default that of `hf auth login`.
        commit_message: of the commit.
        revision: a branch of the repository.
        create_pr: whether to open a pull request instead of committing to the branch.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        CheckpointError: if the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _one_sentence(f"The hub did not take {repo_id}"):
        commit = HfApi(token=token).upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message.strip() or MESSAGE,  # the hub refuses an empty one
            revision=revision,
            create_pr=create_pr,
            allow_patterns=SHARED,
        )
    address = Address(commit.pr_url or commit.commit_url)
    address.revision = commit.pr_revision if create_pr else revision
    return address


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Whatever the hub's library raises, as one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The bases are of whatever library it connects with, whose other errors say that the hub was not reached; an upload
    # that breaks off is a RuntimeError.
    bases = HfHubHTTPError.__bases__
    refusals = cast("tuple[type[Exception], ...]", (*bases, HFValidationError, OSError, RuntimeError))
    try:
        yield
    except refusals as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = "the token is missing, wrong, or may not do this" if status in (401, 403) else type(error).__name__
        raise CheckpointError(f"{what} ({why}): check the name, the token and the connection.") from error
