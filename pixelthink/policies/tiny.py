"""Qwen-VL models small enough to train from nothing on a laptop: real architectures, own tokenizer, random weights."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from pixelthink.errors import UserError
from pixelthink.policies.qwen_vl import Qwen25VL

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
FORMAT_TOKENS = (
    *("<think>", "</think>", "<answer>", "</answer>"),
    *('{"bbox": [', '], "points_1": [', '], "points_2": [', "]}"),
)
LEXICON = (
    "system user assistant find be brief the shape where trail from ends after steps with to of right left above below "
    "largest smallest leftmost rightmost highest lowest circle square diamond cross red green blue yellow black white "
    "i see now follow question compare all them it is check again yes list shapes small medium large "
    "a1 a2 a3 a4 b1 b2 b3 b4 c1 c2 c3 c4 d1 d2 d3 d4"
)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(lexicon: str, largest_number: int) -> Any:
    """A Qwen tokenizer that knows each lexicon word and each number up to the largest as one token."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    spelled = [word for word in lexicon.split() if word.isalpha()]
    learner.train_from_iterator([form for word in spelled for form in (word, f" {word}")], trainer)
    learned = json.loads(learner.to_str())["model"]

    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],  # type: ignore[misc]
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,  # type: ignore[arg-type]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    whole = [f" {word}" for word in lexicon.split() if not word.isalpha()]  # the pre-tokenizer would cut at digits
    numbers = [str(number) for number in range(largest_number + 1)]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (*FORMAT_TOKENS, *whole, *numbers)])
    return tokenizer


class FreshTinyQwen25VL(Qwen25VL):
    """A randomly initialised Qwen2.5-VL for small square images, to be cold-started by supervision.

    Args:
        image_side: Side of the images in pixels, a multiple of the side of a visual token (28).
        hidden_size: Width of the language model.
        layers: Depth of the language model.
        heads: Attention heads; half as many key-value heads.
        intermediate_size: Width of its MLP.
        vision_hidden_size: Width of the vision tower.
        vision_layers: Depth of the vision tower.
        lexicon: Words that are one token each, separated by spaces; all else is spelled in bytes.
        seed: Seed of the weights.
    """

    transformers_name = "Qwen2_5_VL"
    video_processor = "Qwen2VLVideoProcessor"
    patch_size = 14
    """Side of an image patch in pixels; a visual token is two by two of them."""

    def __init__(
        self,
        image_side: int = 112,
        hidden_size: int = 128,
        layers: int = 4,
        heads: int = 4,
        intermediate_size: int = 384,
        vision_hidden_size: int = 96,
        vision_layers: int = 2,
        lexicon: str = LEXICON,
        seed: int = 0,
    ) -> None:
        if image_side % (2 * self.patch_size):
            raise UserError(f"policy.image_side must be a multiple of {2 * self.patch_size}, not {image_side}")
        super().__init__(path="", dtype="float32", logprobs="padded")  # a cold start has no prefix to share
        self.image_side = image_side
        self.hidden_size, self.layers, self.heads = hidden_size, layers, heads
        self.intermediate_size = intermediate_size
        self.vision_hidden_size, self.vision_layers = vision_hidden_size, vision_layers
        self.lexicon = lexicon
        self.seed = seed

    def setup(self) -> None:
        import transformers

        largest_number = self.image_side if self.convention == "pixels" else 1000
        pixels = {"min_pixels": (2 * self.patch_size) ** 2, "max_pixels": self.image_side**2}
        self.processor = getattr(transformers, f"{self.transformers_name}Processor")(
            transformers.Qwen2VLImageProcessor(patch_size=self.patch_size, **pixels),
            build_tokenizer(self.lexicon, largest_number),
            getattr(transformers, self.video_processor)(),
            chat_template=CHAT_TEMPLATE,
        )

    def load_model(self) -> nn.Module:
        import transformers

        config = getattr(transformers, f"{self.transformers_name}Config")(**self._config())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = getattr(transformers, f"{self.transformers_name}ForConditionalGeneration")(config)
            return self.prepare(model)

    def _config(self) -> dict[str, Any]:
        """The model's configuration."""
        config = self._shared_config()
        config["vision_config"] |= {"fullatt_block_indexes": [self.vision_layers - 1], "window_size": 56}
        return config

    def _shared_config(self) -> dict[str, Any]:
        """What both families' configurations have alike: sizes, special tokens, the tied head."""
        tokenizer = self.processor.tokenizer
        ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
        pairs = self.hidden_size // self.heads // 2
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": max(1, self.heads // 2),
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3],
            },
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        }
        vision = {
            "depth": self.vision_layers,
            "hidden_size": self.vision_hidden_size,
            "intermediate_size": 2 * self.vision_hidden_size,
            "num_heads": 4,
            "out_hidden_size": self.hidden_size,
            "patch_size": self.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
        return {
            "text_config": text,
            "vision_config": vision,
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "tie_word_embeddings": True,
        }


class FreshTinyQwen3VL(FreshTinyQwen25VL):
    """A randomly initialised Qwen3-VL for small square images, to be cold-started by supervision.

    It answers in thousandths of the image's sides and knows each number up to 1000 as one token. All layers of its
    vision tower but the last one also feed the language model (deepstack).

    Args:
        image_side: Side of the images in pixels, a multiple of the side of a visual token (32).
        kwargs: As for `FreshTinyQwen25VL`.
    """

    transformers_name = "Qwen3VL"
    video_processor = "Qwen3VLVideoProcessor"
    convention = "per_mille"
    patch_size = 16

    def __init__(self, image_side: int = 128, **kwargs: Any) -> None:
        super().__init__(image_side, **kwargs)

    def _config(self) -> dict[str, Any]:
        config = self._shared_config()
        config["text_config"] |= {"head_dim": self.hidden_size // self.heads}
        config["text_config"]["rope_parameters"] |= {"mrope_interleaved": True}
        config["vision_config"] |= {
            "num_position_embeddings": (self.image_side // self.patch_size) ** 2,
            "deepstack_visual_indexes": list(range(self.vision_layers - 1)),
        }
        return config
