"""Which samples train, validate, test and predict, and how they become prompts."""

from __future__ import annotations

import lightning as L
from jsonargparse import lazy_instance

from pixelthink.components import resolved
from pixelthink.data.base import SampleSource
from pixelthink.data.collate import Collate
from pixelthink.data.evaluated import EvaluatedSource
from pixelthink.data.loader import EpochSampler, ResumableLoader
from pixelthink.data.prompts import PixelThinkPrompt, PromptStyle
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
        coordinates: How answers write coordinates: "pixels" of the resized image (Qwen2.5-VL) or "per_mille" of its
            sides (Qwen3-VL). Must be the policy's own way.
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
        self.coordinates = coordinates
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.look_ahead = False  # a module that samples ahead asks for it

    def setup(self, stage: str) -> None:
        wanted = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}[stage]
        for name in wanted:
            source = self.sources[name]
            if source is not None:
                source.setup()
            elif name != "val" or stage == "validate":
                raise ValueError(f"data.{name} is not set, so there is nothing to {stage}")

    def _loader(self, name: str, batch_size: int, *, train: bool = False) -> ResumableLoader:
        source = self.sources[name]
        assert source is not None
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = EpochSampler(
            len(source),
            batch_size,
            seed=self.seed,
            shuffle=train,
            drop_last=train,
            rank=rank,
            world_size=world_size,
        )
        collate = Collate(self.prompt, self.image_size, self.coordinates, rank, world_size)
        samples = source if train else EvaluatedSource(source)
        look_ahead = train and self.look_ahead
        options = {"collate_fn": collate, "num_workers": self.num_workers}
        return ResumableLoader(samples, sampler, look_ahead=look_ahead, **options)

    def train_dataloader(self) -> ResumableLoader:
        return self._loader("train", self.batch_size, train=True)

    def val_dataloader(self) -> ResumableLoader | list[ResumableLoader]:
        return self._loader("val", self.eval_batch_size) if self.sources["val"] is not None else []

    def test_dataloader(self) -> ResumableLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ResumableLoader:
        return self._loader("predict", self.eval_batch_size)

    def transfer_batch_to_device(self, batch: PromptBatch, device: object, dataloader_idx: int) -> PromptBatch:
        """Prompts hold images and text; the policy moves its own tensors."""
        return batch
