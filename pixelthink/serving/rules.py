"""The routes that the front allows and the bodies that they take; everything else is refused.

The bodies are vLLM's own, cut down to what rollouts and ratings need. Left out on purpose: image addresses other than
data URIs (vLLM would fetch them), serialised tensors and handles (vLLM would unpickle some), chat templates, streams,
and every method of `/collective_rpc` except loading weights from one folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from pixelthink.rollouts.vllm_client import CACHES

DataImage = Annotated[str, StringConstraints(pattern=r"^data:image/(png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}$")]
TokenId = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Candidates = Annotated[int, Field(ge=0, le=20)]
VersionTag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,100}$")]


class Body(BaseModel):
    """A JSON object with the declared fields and no others; without fields, an empty body or `{}`."""

    model_config = ConfigDict(extra="forbid", strict=True)


class SamplingBody(Body):
    """Sampling parameters, see `vllm.SamplingParams`."""

    n: Count = 1
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
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

    class Image(Body):
        type: Literal["image_url"]
        url: DataImage

    model: str | None = None
    token_ids: Annotated[list[TokenId], Field(min_length=1)]
    content_parts: list[Image] = []
    sampling_params: SamplingBody
    return_token_ids: bool = False


class ChatMessage(Body):
    """A chat message: text, or a list of texts and images."""

    class Image(Body):
        class Url(Body):
            url: DataImage

        type: Literal["image_url"]
        image_url: Url

    class Text(Body):
        type: Literal["text"]
        text: str

    role: Literal["system", "user", "assistant"]
    content: str | list[Image | Text]


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
    """`/update_weight_version`: the version tag of later answers."""

    new_version: VersionTag


class NcclInitBody(Body):
    """`/init_weight_transfer_engine`: how to join the trainer's NCCL group, see `vllm.distributed.weight_transfer`."""

    class Info(Body):
        master_address: str
        master_port: Annotated[int, Field(ge=1, le=65535)]
        rank_offset: Count
        world_size: Count
        packed: bool
        packed_buffer_size_bytes: Count
        packed_num_buffers: Count

    init_info: Info


class NcclUpdateBody(Body):
    """`/update_weights`: the weights that come next over NCCL."""

    class Info(Body):
        names: list[str]
        dtype_names: list[Literal["float32", "bfloat16", "float16"]]
        shapes: list[list[Count]]

    update_info: Info


Rules = dict[tuple[str, str], type[Body] | None]
"""(method, path) → model of the body; None where the request has none."""


def reload_body(folder: Path) -> type[Body]:
    """Returns the body of `/collective_rpc`, cut down to loading weights from below a folder."""

    def below(path: str) -> str:
        if folder.resolve() not in Path(path).resolve().parents:
            raise ValueError(f"weights may come from below {folder} only")
        if not Path(path).is_dir():
            raise ValueError(f"there is no folder {path} on this machine")
        return path

    class ReloadArguments(Body):
        weights_path: Annotated[str, AfterValidator(below)]

    class ReloadBody(Body):
        method: Literal["take_weights"]  # of `PolicyWeights`
        kwargs: ReloadArguments

    return ReloadBody


def rules(weights_folder: Path | None, nccl: bool) -> Rules:
    """Returns every route of the front.

    Args:
        weights_folder: Folder from which weights may be loaded, or None.
        nccl: Whether weights may come over NCCL.
    """
    table: Rules = dict.fromkeys(("GET", path) for path in ("/health", "/v1/models", "/weight_info", "/get_world_size"))
    posts: dict[str, type[Body]] = {"/inference/v1/generate": GenerateBody, "/v1/chat/completions": ChatBody}
    if weights_folder is not None:
        posts["/collective_rpc"] = reload_body(weights_folder)
    if nccl:
        posts |= {"/init_weight_transfer_engine": NcclInitBody, "/update_weights": NcclUpdateBody}
        posts |= {"/start_weight_update": Body, "/finish_weight_update": Body}
    if weights_folder is not None or nccl:
        posts["/update_weight_version"] = VersionBody
        posts |= {f"/reset_{cache}_cache": Body for cache in CACHES}
    return table | {("POST", path): body for path, body in posts.items()}
