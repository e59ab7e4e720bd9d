"""Which samples train, validate, test and predict, and how they become prompts."""

from __future__ import annotations

import lightning as L
from jsonargparse import lazy_instance

from pixelthink.components import resolved
from pixelthink.data.base import ImageSource, SampleSource
from pixelthink.data.collate import Collate, Resize
from pixelthink.data.difficulty import some
from pixelthink.data.evaluation_dataset import EvaluationDataset
from pixelthink.data.loader import EpochSampler, ResumableLoader
from pixelthink.data.prompts import PixelThinkPrompt, PromptStyle
from pixelthink.data.reading import duplicates
from pixelthink.errors import UserError
from pixelthink.geometry import AnswerConvention
from pixelthink.types import PromptBatch


class PromptData(L.LightningDataModule):
    """Sources, prompt style and coordinates of a run.

    Args:
        train: Samples to train on.
        val: Samples of each validation.
        test: Samples of the final evaluation.
        predict: Samples to answer, with or without known masks.
        prompt: How questions are worded.
        image_size: Width and height that images are resized to for the model; the released data uses 840 × 840.
        resize: How images are brought to that size: "bilinear" as in the released evaluation, or "bicubic".
        coordinates: How answers write coordinates: "pixels" of the resized image (Qwen2.5-VL) or "per_mille" of its
            sides (Qwen3-VL). Must be the convention of the policy.
        batch_size: Training prompts per step, over all processes.
        eval_batch_size: Prompts per evaluation batch, over all processes.
        num_workers: Worker processes per dataloader; 0 loads in the main process.
        seed: Seed of the training order.
    """

    def __init__(
        self,
        train: SampleSource | None = None,
        val: SampleSource | None = None,
        test: SampleSource | None = None,
        predict: SampleSource | None = None,
        prompt: PromptStyle = lazy_instance(PixelThinkPrompt),
        image_size: tuple[int, int] = (840, 840),
        resize: Resize = "bilinear",
        coordinates: AnswerConvention = "pixels",
        batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "val": val, "test": test, "predict": predict}
        self.prompt = resolved(prompt)
        self.image_size = image_size
        self.resize = resize
        self.coordinates = coordinates
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("num_workers", num_workers, 0),
            ("image_size", min(image_size), 1),
        ):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}, got {value}")

    def setup(self, stage: str) -> None:
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for name in wanted:
            source = self.sources[name]
            if source is not None:
                source.setup()
                if name == "train":
                    refuse_double_ids(source)
            elif name != "val" or stage == "validate":
                raise UserError(f"data.{name} is not set, so there is nothing to {stage}")

    def _loader(self, name: str) -> ResumableLoader:
        """Loader of a source; the batches of training know the next one, see `PromptBatch.upcoming`."""
        source = self.sources[name]
        assert source is not None
        train = name == "train"
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(
            len(source),
            self.batch_size if train else self.eval_batch_size,
            seed=self.seed,
            shuffle=train,
            drop_last=train,
            rank=rank,
            world_size=world_size,
        )
        return ResumableLoader(
            source if train else EvaluationDataset(source),
            sampler,
            look_ahead=train,
            collate_fn=Collate(self.prompt, self.image_size, self.coordinates, rank, world_size, self.resize),
            num_workers=self.num_workers,
        )

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train")

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        return self._loader("val") if self.sources["val"] is not None else []

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ResumableLoader:
        return self._loader("predict")

    def transfer_batch_to_device(self, batch: PromptBatch, device: object, dataloader_idx: int) -> PromptBatch:
        """Prompts hold images and text; the policy moves its own tensors."""
        return batch


def refuse_double_ids(source: SampleSource) -> None:
    """Refuses training samples that share an id before the first is drawn.

    Raises:
        UserError: one line that counts the ids that occur more than once, and names the first few.
    """
    if not isinstance(source, ImageSource):
        return
    ids = source.ids()
    if double := duplicates(ids):
        named = some(dict.fromkeys(ids[place] for place in double))
        raise UserError(f"data.train: {len(double)} of {len(ids)} samples have the id of an earlier one: {named}")
