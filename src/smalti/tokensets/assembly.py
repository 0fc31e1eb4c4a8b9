"""The folder of a token data set: prepares it for shards, resumes an interrupted run, writes the manifest."""

import json
import tempfile
from pathlib import Path

from smalti.data import ImageSource
from smalti.formats.storage import Storage
from smalti.formats.token_set import MANIFEST, Shard, TokenManifest, read_manifest, write_manifest
from smalti.tokenizers import Tokenizer
from smalti.tokensets.shards import Plan, ShardNote, common

PLAN = "progress/plan.json"
TOKENIZER = "tokenizer"


def finished(storage: Storage, plan: Plan) -> TokenManifest | None:
    """The manifest of a complete set of this plan; None if there is no such set."""
    if not storage.exists(MANIFEST):
        return None
    manifest = read_manifest(storage)
    storage.remove("progress")  # remains if the process was killed right after it wrote the manifest
    return manifest if manifest.transform == plan.identity else None


def check_free(storage: Storage, force: bool) -> None:
    """Refuse a folder with files of other kinds than a token data set, before the work starts.

    Which token data set it holds, if any, is for `finished` and `prepare` to say: they know the plan.

    Raises:
        FileExistsError: there are files and `force` is off, or files that `force` does not delete.
    """
    if not (storage.exists(PLAN) or storage.exists(MANIFEST)):
        _replaceable(storage, force)


def prepare(storage: Storage, plan: Plan, tokenizer: Tokenizer, force: bool) -> None:
    """Prepare the folder: empty, or with the shards of an interrupted run of the same plan.

    Raises:
        FileExistsError: other files in the folder.
    """
    begun = json.loads(storage.read(PLAN)) if storage.exists(PLAN) else None
    if begun == plan.identity:
        return
    for name in _replaceable(storage, force):
        storage.remove(name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in ("config.json", "model.safetensors"):
            storage.write(f"{TOKENIZER}/{file}", (Path(folder) / file).read_bytes())
    storage.write(PLAN, json.dumps(plan.identity).encode())


def _replaceable(storage: Storage, force: bool) -> list[str]:
    """The files that a new set replaces; refused without `force`, and where one of them is no part of a set."""
    names = [name for name in storage.names() if not name.startswith(TOKENIZER + "/")]
    if names and not force:
        what = "another token data set" if PLAN in names or MANIFEST in names else "files"
        raise FileExistsError(f"{storage}: contains {what}; choose another folder, or replace it with force=True")
    strangers = [name for name in names if not name.startswith(("progress/", "tokens-")) and name != MANIFEST]
    if strangers:
        raise FileExistsError(f"{storage}: contains {strangers[0]}, which is not part of a token data set")
    return names


def shard_notes(storage: Storage) -> dict[int, ShardNote]:
    """Finished shards by number; a shard without its file is not finished."""
    notes = {}
    for name in storage.names("progress"):
        if name == PLAN:
            continue
        content = json.loads(storage.read(name))
        note = ShardNote(**{**content, "shard": Shard(**content["shard"])})
        if storage.exists(note.shard.file):
            notes[int(Path(name).stem)] = note
    return notes


def finish(storage: Storage, plan: Plan, source: ImageSource) -> TokenManifest:
    """Write the manifest and remove the files of the unfinished set.

    Raises:
        ValueError: no image could be read.
    """
    notes = [note for _, note in sorted(shard_notes(storage).items())]
    filled = [note for note in notes if note.shard.rows]
    unreadable = {key: reason for note in notes for key, reason in note.unreadable.items()}
    if not filled:
        raise ValueError(
            f"{plan.data}: none of the {len(source)} images can be read: {next(iter(unreadable.values()))}"
        )
    manifest = TokenManifest(
        fingerprint=plan.fingerprint,
        vocab_size=plan.vocab_size,
        grids=common([note.grids for note in filled]),
        image_size=common([note.image_size for note in filled]),
        transform=plan.identity,
        source=plan.data,
        shards=[note.shard for note in notes],
        unreadable=unreadable,
        class_names=list(source.class_names),
        batch_mismatch=notes[0].batch_mismatch,
    )
    write_manifest(storage, manifest)
    storage.remove("progress")
    return manifest
