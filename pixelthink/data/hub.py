"""Data sets of the Hugging Face hub, downloaded with a resumable client and checked against the hub's own digests."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pixelthink.data.reading import read_json
from pixelthink.errors import FileError, UserError, brief
from pixelthink.files.atomic import write_atomically

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

RECORD = "downloaded_from.json"
"""Beside the files of a download: repository, commit and digests."""


@dataclass(frozen=True)
class Download:
    """What lies in a folder.

    Attributes:
        repo: `OWNER/NAME` of the data set.
        commit: The revision, as a commit hash.
        files: Digest of each file as the hub gives it: SHA-256 of large files, git's blob hash of small ones.
        sizes: Bytes of each file.
    """

    repo: str
    commit: str
    files: dict[str, str]
    sizes: dict[str, int]


def download(repo: str, folder: Path, revision: str = "main") -> Download:
    """Downloads a data set of the hub; the folder appears when all is there and every digest has been compared.

    Until then the files lie in `.FOLDER.download` beside it. A connection that breaks is taken up where it broke; after
    a kill, the same call asks only for the files that are not complete.

    Args:
        repo: `OWNER/NAME`.
        folder: Where to.
        revision: Branch, tag or commit.

    Returns:
        What lies there. Where the folder has this data set already, nothing is asked for, but every file's size and
        digest is compared with what was recorded.

    Raises:
        UserError: the folder holds something else, or another revision than a commit that was asked for.
        FileError: the hub cannot be reached, refuses, or gave a file that is not what it announced; that file is
            deleted, so that the same call asks for it again. Or a file of an earlier download is missing or has
            changed since; it stays as it is. One line that names repository and file.
    """
    if folder.exists():
        return _known(repo, folder, revision)
    scratch = folder.with_name(f".{folder.name}.download")
    try:
        commit, files = _announced(repo, revision)
        _fetch(repo, commit, scratch)
    except UserError:
        raise
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of the system
        raise FileError(f"hub: {repo} at {revision!r} cannot be downloaded: {brief(error, 300)}") from error
    digests = {file.path: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in files}
    made = Download(repo, commit, digests, {file.path: file.size for file in files})
    for name in made.files:
        if fault := _fault(made, name, scratch):
            (scratch / name).unlink(missing_ok=True)
            raise FileError(f"hub: {repo}: {name} {fault}; the same command asks for it again")
    shutil.rmtree(scratch / ".cache", ignore_errors=True)
    write_atomically(scratch / RECORD, json.dumps(asdict(made), indent=1))
    scratch.rename(folder)
    return made


def _known(repo: str, folder: Path, revision: str) -> Download:
    """What an earlier call has put into a folder, once it is found unchanged."""
    if not (folder / RECORD).is_file():
        raise UserError(f"{folder}: exists already and was not downloaded by this program; move it, or use --from")
    try:
        found = Download(**read_json(folder / RECORD))
        complete = bool(found.files) and found.files.keys() == found.sizes.keys()
    except (TypeError, AttributeError):
        complete = False
    if not complete:
        raise FileError(f"{folder / RECORD}: not the record of a download; move {folder} away to download it again")
    if found.repo != repo or (revision != "main" and not found.commit.startswith(revision)):
        raise UserError(f"{folder}: holds {found.repo} at {found.commit}; move it to get {repo} at {revision}")
    for name in found.files:
        if fault := _fault(found, name, folder):
            raise FileError(
                f"{folder / name} {fault}; put the file back as it was downloaded, or move {folder} away and give the "
                "same command again"
            )
    return found


def _announced(repo: str, revision: str) -> tuple[str, list[RepoFile]]:
    """Commit and files of a revision."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    commit = api.dataset_info(repo, revision=revision).sha
    if commit is None:
        raise FileError(f"hub: {repo}: the hub names no commit of {revision!r}")
    tree = api.list_repo_tree(repo, recursive=True, revision=commit, repo_type="dataset")
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    for file in files:
        if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
            raise FileError(f"hub: {repo}: file {file.path!r} would lie outside the folder")
    if not files:
        raise FileError(f"hub: {repo}: the data set has no files")
    return commit, files


def _fetch(repo: str, commit: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {"repo_type": "dataset", "revision": commit, "local_dir": folder}
    snapshot_download(repo, **options)


def _fault(made: Download, name: str, folder: Path) -> str | None:
    """What is wrong with a file of a download; None where size and digest are those of the hub."""
    path, size, expected = folder / name, made.sizes[name], made.files[name]
    if not path.is_file():
        return "is missing"
    if (found := path.stat().st_size) != size:
        return f"is damaged: it has {found} bytes, the hub says {size}"
    if len(expected) == hashlib.sha256().digest_size * 2:
        digest = hashlib.sha256()
    else:  # as git names its blobs
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        return f"is damaged: its digest is {digest.hexdigest()}, the hub says {expected}"
    return None
