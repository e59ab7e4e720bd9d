"""SAM 2 and 2.1 (Ravi et al., 2024, arXiv 2408.00714) by the `sam2` package."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from pixelthink.errors import FileError, MissingFileError, MissingPackageError, brief
from pixelthink.segmenters.promptable import Embedding, PromptableSegmenter

SIZES = {(96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}
"""Channels and blocks of the image encoder → letter of the size in the names of the package's configurations."""

STABLE_SINGLE_MASK = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""What `sam2.build_sam.build_sam2` adds to a configuration: an unstable single mask gives way to the best of three."""


class SAM2(PromptableSegmenter):
    """Masks by SAM 2 or 2.1, tiny to large, from a checkpoint of the `sam2` package.

    The checkpoint is a `.pt` file or the hub id of an original release, such as `facebook/sam2.1-hiera-tiny`. Its
    architecture is read off the weights, and the configuration out of the installed package, so neither has to be
    named and the working directory does not matter.
    """

    released_checkpoint = "facebook/sam2-hiera-large"

    def _load(self, device: torch.device) -> None:
        try:
            from sam2.sam2_image_predictor import SAM2ImagePredictor
        except ImportError as error:
            raise MissingPackageError(
                f"SAM2 needs the sam2 package ({brief(error)}), built on the torch that is installed: "
                "SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2"
            ) from None
        path = self._checkpoint_file()
        model = _build(_weights(path), path)
        self._predictor: Any = SAM2ImagePredictor(model.float().eval().requires_grad_(False).to(device))

    def _checkpoint_file(self) -> Path:
        """The checkpoint on disk, fetched from the hub where it is a hub id."""
        from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES as released

        path = Path(self.checkpoint).expanduser()
        if path.is_file():
            return path
        if self.checkpoint not in released:
            known = ", ".join(name.removeprefix("facebook/") for name in released)
            raise MissingFileError(
                f"segmenter.checkpoint: no file {self.checkpoint!r}, nor is it one of facebook/… {known}"
            )
        from huggingface_hub import hf_hub_download

        name = released[self.checkpoint][1]
        try:
            return Path(hf_hub_download(self.checkpoint, name, local_files_only=self.local_files_only))
        except (OSError, ValueError) as error:
            raise MissingFileError(
                f"segmenter.checkpoint: cannot fetch {name} of {self.checkpoint} ({brief(error)}); "
                "a downloaded .pt file works too"
            ) from None

    def _embed(self, images: list[np.ndarray]) -> list[Tensor]:
        self._predictor.set_image_batch(images)
        features = self._predictor._features
        self._predictor.reset_predictor()
        return [*features["high_res_feats"], features["image_embed"]]

    def _decode(
        self, embedding: Embedding, size: tuple[int, int], boxes: np.ndarray, points: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        model, transforms = self._predictor.model, self._predictor._transforms
        prompts = np.concatenate([boxes.reshape(-1, 2, 2), points], axis=1)  # a box is two points of its own kinds
        kinds = torch.tensor([2, 3] + [1] * points.shape[1], dtype=torch.int, device=self.device)
        coordinates = torch.as_tensor(prompts, dtype=torch.float32, device=self.device)
        coordinates = transforms.transform_coords(coordinates, normalize=True, orig_hw=size)
        sparse, dense = model.sam_prompt_encoder(
            points=(coordinates, kinds.repeat(len(boxes), 1)), boxes=None, masks=None
        )
        logits, scores, _, _ = model.sam_mask_decoder(
            image_embeddings=embedding[-1],
            image_pe=model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=self.multimask,
            repeat_image=len(boxes) > 1,
            high_res_features=list(embedding[:-1]),
        )
        return logits, scores

    def _enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return self._predictor._transforms.postprocess_masks(logits[None, None], size)[0, 0]


def _weights(path: Path) -> Mapping[str, Tensor]:
    """The weights of a checkpoint, on the CPU.

    Raises:
        FileError: the file is no checkpoint of the package; one line that names it.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["model"]
    except (OSError, EOFError, RuntimeError, UnpicklingError, BadZipFile, LookupError, TypeError, ValueError) as error:
        raise FileError(f"segmenter.checkpoint: {path} is damaged or no checkpoint of sam2 ({brief(error)})") from None
    if not isinstance(weights, Mapping) or "image_encoder.trunk.patch_embed.proj.weight" not in weights:
        raise FileError(f"segmenter.checkpoint: {path} holds no weights of a SAM 2 model")
    return weights


def _build(weights: Mapping[str, Tensor], path: Path) -> torch.nn.Module:
    """The model that the weights belong to, loaded.

    `sam2.build_sam` composes its configurations through Hydra's global state, which fails where an application has set
    that up for itself; so the package's own YAML file is read as it is.

    Raises:
        FileError: the weights are of no known architecture, or some are missing; one line that names the file.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    channels = weights["image_encoder.trunk.patch_embed.proj.weight"].shape[0]
    blocks = {name.split(".")[3] for name in weights if name.startswith("image_encoder.trunk.blocks.")}
    letter = SIZES.get((channels, len(blocks)))
    if letter is None:
        raise FileError(
            f"segmenter.checkpoint: {path} is of an unknown size: {channels} channels, {len(blocks)} blocks"
        )
    version = "sam2.1" if "no_obj_embed_spatial" in weights else "sam2"
    config: Any = OmegaConf.load(str(files("sam2") / "configs" / version / f"{version}_hiera_{letter}.yaml"))
    OmegaConf.update(config, "model.sam_mask_decoder_extra_args", STABLE_SINGLE_MASK, force_add=True)
    model: torch.nn.Module = instantiate(config.model, _recursive_=True)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise FileError(
            f"segmenter.checkpoint: {path} does not fit {version}_hiera_{letter} ({brief(error)})"
        ) from None
    return model
