"""Checkpoints that appear whole or not at all, also on a full disk.

Lightning 2.6 writes a checkpoint to the system's temporary folder and moves it. Where that is another file system the
move is a copy onto the old file, and a full disk leaves a cut-off `last.ckpt` in place of the good one. Here the
temporary file lies beside its target, is synced to disk and then renamed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from pixelthink.errors import FileError, UserError
from pixelthink.files.atomic import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its target, syncs it and renames it; readers see the old file or the whole new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves a checkpoint. A path with a scheme, such as `s3://…`, is left to Lightning.

        Args:
            checkpoint: What to save.
            path: File to write; its folder is made if missing.
            storage_options: Only for paths with a scheme.

        Raises:
            FileError: the file cannot be written; one line. What was at `path` is still there, and nothing else.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        try:
            with atomic_file(target) as file:
                torch.save(checkpoint, file)
            sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            raise FileError(f"checkpoint {target} cannot be written: {write_failure(error, target.parent)}") from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Loads a checkpoint and compares its checksums, which torch writes and does not read.

        Raises:
            UserError: the file is no checkpoint, cut off, or has other bytes than were written; one line, which names
                the newest whole checkpoint beside it.
        """
        try:
            if "://" not in str(path) and (part := changed_part(Path(path))) is not None:
                raise RuntimeError(f"{part} has another checksum than was written")
            return super().load_checkpoint(path, *args, **kwargs)
        except FileNotFoundError:
            raise
        except Exception as error:  # torch raises a dozen kinds for a cut-off file, none of them its own
            reason = f": {str(error).splitlines()[0]}" if isinstance(error, UnpicklingError | RuntimeError) else ""
            whole = newest_whole(Path(path).parent, Path(path)) if "://" not in str(path) else None
            other = "" if whole is None else f"; the newest whole one beside it is {whole}: --ckpt_path {whole}"
            raise UserError(f"checkpoint {path} is damaged or no checkpoint{reason}{other}") from error


def changed_part(path: Path) -> str | None:
    """The first part of a checkpoint that has another checksum (CRC-32) than was written; None where all agree.

    Raises:
        FileNotFoundError: there is no such file.
        BadZipFile: it is no file of `torch.save`, or its end is missing.
    """
    with ZipFile(path) as file:
        return file.testzip()


def newest_whole(folder: Path, damaged: Path | None = None) -> Path | None:
    """The newest whole checkpoint file of a folder; `damaged`, known to be none, is not read again."""
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(OSError, BadZipFile):
            if path != damaged and path.is_file() and changed_part(path) is None:
                return path
    return None


def write_failure(error: BaseException, folder: Path) -> str:
    """Why writing to a folder failed, in words; libraries in other languages hide a full disk in texts of their own."""
    while isinstance(error, BaseException):
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if "No space left" in str(error):
            return "No space left on device"
        cause = error.__cause__ or error.__context__
        if cause is None:
            break
        error = cause
    statistics = os.statvfs(folder)
    if statistics.f_bavail * statistics.f_frsize < 1 << 20:
        return "No space left on device"
    return " ".join(str(error).split())


def replace_folder(target: Path, scratch: Path) -> None:
    """Replaces a folder or file by a new folder; on failure the old one is restored."""
    old = scratch.with_name(f"{scratch.name}-old")
    if target.exists():
        target.rename(old)
    try:
        scratch.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync_folder(target.parent)
    if old.is_file():
        old.unlink()
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
