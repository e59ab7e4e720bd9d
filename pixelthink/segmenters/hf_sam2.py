"""SAM 2, 2.1 and 3 by transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from pixelthink.errors import FileError, MissingPackageError, brief
from pixelthink.segmenters.promptable import Embedding, PromptableSegmenter


class HFSAM2(PromptableSegmenter):
    """Masks by SAM 2 or 2.1 through transformers, from a folder or hub id in Hugging Face format."""

    released_checkpoint = "facebook/sam2-hiera-large"
    model_class = "Sam2Model"
    processor_class = "Sam2Processor"

    def _load(self, device: torch.device) -> None:
        import transformers

        options: dict[str, Any] = {"local_files_only": self.local_files_only}
        try:
            model_class = getattr(transformers, self.model_class)
            processor_class = getattr(transformers, self.processor_class)
        except AttributeError:
            raise MissingPackageError(
                f"{type(self).__name__} needs transformers ≥ 5.16, this is {transformers.__version__}: "
                "pip install 'transformers>=5.16'"
            ) from None
        try:
            self._processor = processor_class.from_pretrained(self.checkpoint, **options)
            model, found = model_class.from_pretrained(
                self.checkpoint, dtype=torch.float32, output_loading_info=True, **options
            )
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise FileError(
                f"segmenter.checkpoint: cannot load {self.checkpoint!r} as a {self.model_class} ({brief(error)})"
            ) from None
        if found["missing_keys"]:
            raise FileError(
                f"segmenter.checkpoint: {self.checkpoint!r} lacks {len(found['missing_keys'])} weights of a "
                f"{self.model_class}, {min(found['missing_keys'])!r} first"
            )
        self._model = model.eval().requires_grad_(False).to(device)

    def _embed(self, images: list[np.ndarray]) -> list[Tensor]:
        pixels = self._processor(images=images, input_data_format="channels_last", return_tensors="pt")["pixel_values"]
        return list(self._model.get_image_embeddings(pixels.to(self.device)))

    def _decode(
        self, embedding: Embedding, size: tuple[int, int], boxes: np.ndarray, points: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        prompts = self._processor(
            input_points=[points.tolist()],
            input_labels=[np.ones(points.shape[:2], dtype=int).tolist()],
            input_boxes=[boxes.tolist()],
            original_sizes=[list(size)],
            return_tensors="pt",
        )
        names = ("input_points", "input_labels", "input_boxes")
        output = self._model(
            image_embeddings=list(embedding),
            multimask_output=self.multimask,
            **{name: prompts[name].to(self.device) for name in names},
        )
        return output.pred_masks[0], output.iou_scores[0]

    def _enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        (large,) = self._processor.post_process_masks([logits[None, None].float()], [list(size)], binarize=False)
        return large[0, 0]


class HFSAM3(HFSAM2):
    """Masks by SAM 3 through transformers, prompted with boxes and points as SAM 2 is (its tracker's model)."""

    released_checkpoint = "facebook/sam3"
    model_class = "Sam3TrackerModel"
    processor_class = "Sam3TrackerProcessor"
