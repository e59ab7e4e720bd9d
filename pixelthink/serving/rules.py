"""What the front lets through: a route that is not here does not exist, a body that does not fit is refused.

The bodies are vLLM's own, cut down to what rollouts and ratings need. Left out on purpose: image addresses other than
data URIs (vLLM would fetch them), serialised tensors and handles (vLLM would unpickle some), chat templates, streams,
and every method of `/collective_rpc` but the taking of weights from one folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

DataImage = Annotated[str, StringConstraints(pattern=r"^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}$")]
TokenId = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Candidates = Annotated[int, Field(ge=0, le=20)]
VersionTag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,100}$")]


class Body(BaseModel):
    """A JSON object that holds nothing but what is declared, each of its own type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Nothing(Body):
    """No body, or `{}`."""


class ImagePart(Body):
    """An image of a token prompt."""

    type: Literal["image_url"]
    url: DataImage


class SamplingBody(Body):
    """Sampling parameters, see `vllm.SamplingParams`."""

    n: Count = 1
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    max_tokens: Count
    seed: int | None = None
    logprobs: Candidates | None = None
    prompt_logprobs: Candidates | None = None
    # JSON has no numbers for keys
    logit_bias: dict[Annotated[str, StringConstraints(pattern=r"^\d+$")], float] | None = None
    stop_token_ids: list[TokenId] = []
    ignore_eos: bool = False
    detokenize: bool = True


class GenerateBody(Body):
    """`/inference/v1/generate`: token ids and images in, token ids out."""

    model: str | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1)]
    content_parts: list[ImagePart] = []
    sampling_params: SamplingBody
    return_token_ids: bool = False


class ImageUrl(Body):
    """Where the image of a chat message is: in the message."""

    url: DataImage


class ChatImage(Body):
    """An image in a chat message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class ChatText(Body):
    """Text in a chat message."""

    type: Literal["text"]
    text: str


class ChatMessage(Body):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: str | list[ChatImage | ChatText]


class ChatBody(Body):
    """`/v1/chat/completions`, for raters and judges."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    n: Count = 1
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: Candidates = 0
    response_format: dict[str, Any] | None = None
    return_token_ids: bool = False


class VersionBody(Body):
    """`/update_weight_version`: what answers shall call the weights from now on."""

    new_version: VersionTag


class NcclInit(Body):
    """How to join the trainer's NCCL group, see `vllm.distributed.weight_transfer`."""

    master_address: str
    master_port: Annotated[int, Field(ge=1, le=65535)]
    rank_offset: Count
    world_size: Count
    packed: bool
    packed_buffer_size_bytes: Count
    packed_num_buffers: Count


class NcclInitBody(Body):
    """`/init_weight_transfer_engine`."""

    init_info: NcclInit


class NcclWeights(Body):
    """Which weights come next over NCCL."""

    names: list[str]
    dtype_names: list[Literal["float32", "bfloat16", "float16"]]
    shapes: list[list[Count]]


class NcclUpdateBody(Body):
    """`/update_weights`."""

    update_info: NcclWeights


Rules = dict[tuple[str, str], type[Body] | None]
"""Method and path → what the body has to be; None where there is none."""


def reload_body(folder: Path) -> type[Body]:
    """`/collective_rpc`, cut down to taking weights from below a folder.

    Args:
        folder: Where whoever trains leaves the weights.
    """

    def below(path: str) -> str:
        if folder.resolve() not in Path(path).resolve().parents:
            raise ValueError(f"weights may come from below {folder} only")
        if not Path(path).is_dir():
            raise ValueError(f"there is no folder {path} on this machine")
        return path

    class ReloadArguments(Body):
        weights_path: Annotated[str, AfterValidator(below)]

    class ReloadBody(Body):
        method: Literal["take_weights"]  # of PolicyWeights, vLLM's own reload_weights made complete
        kwargs: ReloadArguments

    return ReloadBody


def rules(weights_folder: Path | None, nccl: bool) -> Rules:
    """Every route of the front.

    Args:
        weights_folder: Folder that weights may be reloaded from, or None.
        nccl: Whether weights may come over NCCL.
    """
    table: Rules = {
        ("GET", "/health"): None,
        ("GET", "/v1/models"): None,
        ("GET", "/weight_info"): None,
        ("GET", "/get_world_size"): None,
        ("POST", "/inference/v1/generate"): GenerateBody,
        ("POST", "/v1/chat/completions"): ChatBody,
    }
    if weights_folder is not None:
        table["POST", "/collective_rpc"] = reload_body(weights_folder)
    if nccl:
        table["POST", "/init_weight_transfer_engine"] = NcclInitBody
        table["POST", "/start_weight_update"] = Nothing
        table["POST", "/update_weights"] = NcclUpdateBody
        table["POST", "/finish_weight_update"] = Nothing
    if weights_folder is not None or nccl:
        table["POST", "/update_weight_version"] = VersionBody
        for cache in ("prefix", "mm", "encoder"):
            table["POST", f"/reset_{cache}_cache"] = Nothing
    return table
