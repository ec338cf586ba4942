"""Hugging Face hub as a source: a pinned revision, only weights and tokenizer, never code."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from urllib.parse import quote

from huggingface_hub import HfApi, constants
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils._headers import build_hf_headers

from fimserver.cards import Card
from fimserver.errors import SourceError
from fimserver.store.sources import ANSWER_S, Event, ModelFile, pinned_files
from fimserver.store.url import place, read_url

# Weights as safetensors only; nothing that could run code.
PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "merges.txt", "LICENSE*")


class HubSource:
    """Files of one card on the hub, or on the mirror in HF_ENDPOINT."""

    extra_bytes = 0

    def __init__(self, card: Card) -> None:
        """The card must have a hub id."""
        assert card.hub is not None
        self._card = card
        self._hub = card.hub
        self._revision = card.revision or "main"

    @property
    def label(self) -> str:
        """Hub and repository."""
        return f"{place(constants.ENDPOINT)}/{self._hub}"

    def files(self) -> tuple[ModelFile, ...]:
        """Return the pinned files, or all files of the revision that match ``PATTERNS``.

        Raises ``SourceError``.
        """
        if constants.HF_HUB_OFFLINE:
            raise SourceError("the hub is not asked: HF_HUB_OFFLINE is set")
        return pinned_files(self._card) or self._listed()

    def read(self, file: ModelFile, offset: int) -> Iterator[Event]:
        """Read a file from ``offset`` on, with the user's token if there is one. Raises ``SourceError``."""
        url = f"{constants.ENDPOINT}/{self._hub}/resolve/{quote(self._revision)}/{quote(file.name)}"
        return read_url(url, offset, file.size_bytes, build_hf_headers())

    def _listed(self) -> tuple[ModelFile, ...]:
        """List the revision's files, and use the commit that the hub names from then on."""
        try:
            api = HfApi(endpoint=constants.ENDPOINT)
            info = api.model_info(self._hub, revision=self._revision, files_metadata=True, timeout=ANSWER_S)
        except Exception as error:  # noqa: BLE001 - the hub client's HTTP library differs by version
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise SourceError(f"{self.label}: {reason}") from None
        self._revision = info.sha or self._revision
        wanted = (sibling for sibling in info.siblings or [] if _is_wanted(sibling.rfilename))
        return tuple(self._file(sibling) for sibling in wanted)

    def _file(self, sibling: RepoSibling) -> ModelFile:
        """Describe a file; a hash in the card takes precedence over the hub's."""
        announced = sibling.lfs.sha256 if sibling.lfs else ""
        blob_id = "" if sibling.lfs else sibling.blob_id or ""
        sha256 = self._card.files.get(sibling.rfilename, announced)
        return ModelFile(sibling.rfilename, sibling.size or 0, sha256, blob_id)


def _is_wanted(name: str) -> bool:
    return ".." not in name.split("/") and any(fnmatchcase(name, pattern) for pattern in PATTERNS)
