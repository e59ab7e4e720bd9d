"""Rollouts by vLLM servers in other processes or on other machines, with weights that are synced and checked."""

from __future__ import annotations

import base64
import io
import os
import secrets
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pixelthink.errors import MissingFileError, UserError
from pixelthink.parallel.collectives import barrier, broadcast_object, process_rank
from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig, SyncReport
from pixelthink.rollouts.vllm_client import RetryPolicy, RolloutServer, ServerPool, ServerRefused
from pixelthink.rollouts.vllm_requests import (
    Dtype,
    check_length,
    completion_from_tokens,
    engine_dtype,
    image_prompt,
    request_seeds,
    sampling_options,
)
from pixelthink.rollouts.weight_transfer import CountedWeights, FileTransfer, NcclTransfer, WeightTransfer
from pixelthink.timing import now
from pixelthink.types import Completion, Prompt, PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone

KEY_VARIABLE = "PIXELTHINK_API_KEY"
SERVER_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.05}
"""Largest difference of a token's log-probability between two servers with the same weights, by precision."""


class VLLMServerEngine(RolloutEngine):
    """Samples on one or several vLLM servers, which `python -m pixelthink.serving` starts; see `docs/serving.md`.

    Prompts are spread over the servers. A failed request is retried with the next server a bounded number of times.
    Then the run stops, and its last checkpoint is good. Answers carry the version tag of the weights that sampled them,
    so a server that was restarted is noticed at once and gets the present weights again.

    Args:
        servers: Addresses, e.g. ["http://127.0.0.1:8000"].
        weights_folder: Path that this process and the servers share, for handing weights over as files.
        nccl_address: This machine's address as the servers reach it, for handing weights over by NCCL instead (GPUs).
        nccl_port: Port on which that group meets.
        server_dtype: Precision that the servers run in; `auto` is the policy's.
        retry: How often a failed request is retried.
        concurrency: Requests at a time per server; each has a whole group of completions.
        seconds_to_start: How long to wait for the servers at first.
        api_key_variable: Environment variable with the servers' key, if they ask for one.
    """

    holds_weights = True
    samples_beside_training = True
    version: int | None = None

    def __init__(
        self,
        servers: list[str],
        weights_folder: str | None = None,
        nccl_address: str | None = None,
        nccl_port: int = 29600,
        server_dtype: Dtype = "auto",
        retry: RetryPolicy = RetryPolicy(),
        concurrency: int = 64,
        seconds_to_start: float = 300.0,
        api_key_variable: str = KEY_VARIABLE,
    ) -> None:
        if not servers or len(set(servers)) < len(servers):
            raise UserError("rollout.servers must name at least one address, and none twice")
        if (weights_folder is None) == (nccl_address is None):
            raise UserError("rollout: weights go over rollout.weights_folder or rollout.nccl_address; set one of them")
        if concurrency < 1:
            raise UserError("rollout.concurrency must be at least 1")
        self.addresses = servers
        self.weights_folder = weights_folder
        self.nccl_address = nccl_address
        self.nccl_port = nccl_port
        self.server_dtype = server_dtype
        self.retry = retry
        self.concurrency = concurrency
        self.seconds_to_start = seconds_to_start
        self.api_key_variable = api_key_variable
        self.pool: ServerPool | None = None

    @property
    def dtype(self) -> str:
        return self._dtype

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        """Connects to the servers and waits until they answer.

        Raises:
            ServerUnavailable: a server does not answer in time.
            ServerRefused: a server refuses, e.g. because of a wrong key.
            UserError: an address is not valid, or `weights_folder` is not there.
        """
        self.close()
        self.backbone = backbone
        self._dtype = engine_dtype(self.server_dtype, model)
        key = os.environ.get(self.api_key_variable)
        servers = [RolloutServer(address, key, self.retry.timeout) for address in self.addresses]
        self.transfer = self._make_transfer(getattr(torch, self._dtype))
        self.pool = ServerPool(servers, self.retry, self.concurrency)
        self.pool.each(lambda server: server.wait_until_up(self.seconds_to_start))
        models = self.pool.each(lambda server: server.get("/v1/models")["data"][0])
        self.max_model_len = min(int(model["max_model_len"]) for model in models)
        self.run = broadcast_object(secrets.token_hex(4))

    def _make_transfer(self, dtype: torch.dtype) -> WeightTransfer:
        if self.nccl_address is not None:
            return NcclTransfer(self.nccl_address, self.nccl_port, dtype)
        folder = Path(str(self.weights_folder)).absolute()
        if not folder.is_dir():
            raise MissingFileError(f"rollout.weights_folder: there is no folder {str(folder)!r}")
        return FileTransfer(folder, dtype)

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        """See `RolloutEngine.generate`; may run in a thread of its own, but not beside a sync."""
        started = now()
        assert self.pool is not None
        bodies = [
            self._body(prompt, (), sampling_options(self.backbone, sampling, request_seed))
            for prompt, request_seed in zip(batch.prompts, request_seeds(seed, batch.places), strict=True)
        ]
        completions: list[Completion] = []
        for prompt, answer in zip(batch.prompts, self.pool.generate(bodies), strict=True):
            sample, tokens, limit = prompt.sample.id, answer["usage"]["prompt_tokens"], self.max_model_len
            check_length(sample, tokens, sampling.max_new_tokens, limit, "a rollout server's --max_model_len")
            completions += self._completions(sample, answer, sampling)
        group, version = sampling.group_size, self.version or 0
        return RolloutBatch(batch.prompts, tuple(completions), group, version, seconds=now() - started)

    def _body(self, prompt: Prompt, completion: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a request with token ids; JSON has no numbers for keys."""
        question = image_prompt(self.backbone, prompt)
        bias = {str(token): value for token, value in options.get("logit_bias", {}).items()} or None
        return {
            "token_ids": [*question.token_ids, *completion],
            "content_parts": [{"type": "image_url", "url": data_uri(image)} for image in question.images],
            "sampling_params": {**options, "logit_bias": bias, "detokenize": False},
            "return_token_ids": True,
        }

    def _completions(self, sample: str, answer: Mapping[str, Any], sampling: SamplingConfig) -> list[Completion]:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != sampling.group_size:
            raise ValueError(f"sample {sample!r}: {len(choices)} completions instead of {sampling.group_size}")
        completions = []
        for choice in choices:
            rows = (choice["logprobs"] or {}).get("content") or []
            candidates = [
                {entry["token_id"]: entry["logprob"] for entry in (*row["top_logprobs"], row)} for row in rows
            ]
            top_k = sampling.uncertainty_top_k
            completions.append(completion_from_tokens(self.backbone, choice["token_ids"], candidates, top_k))
        return completions

    def score(self, rollout: RolloutBatch) -> list[EngineScore]:
        """See `RolloutEngine.score`. Every server scores, so that one parity check holds for all.

        Raises:
            ServerRefused: two servers disagree, so they do not serve the same weights.
        """
        assert self.pool is not None
        options = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        scores = []
        for index, completion in enumerate(rollout.completions):
            body = self._body(rollout.prompt_of(index), completion.token_ids, options)
            found = [_score(answer, completion.token_ids) for answer in self.pool.score_on_each(body)]
            self._check_agreement(found)
            scores.append(found[0])
        return scores

    def _check_agreement(self, scores: Sequence[EngineScore]) -> None:
        first = torch.tensor(scores[0].logprobs)
        for address, score in zip(self.addresses, scores, strict=True):
            difference = float((torch.tensor(score.logprobs) - first).abs().max())
            if not difference <= SERVER_TOLERANCE[self.dtype]:
                raise ServerRefused(
                    f"rollout servers {self.addresses[0]} and {address} disagree by {difference:.2g} on a completion's "
                    "log-probabilities: they do not serve the same weights, or not in the same precision"
                )

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int, adapter: Path | None = None) -> SyncReport:
        """See `RolloutEngine.sync`. The first process sends the weights, the others help to gather them.

        Raises:
            ServerUnavailable: a server does not take them after all retries.
            FileError: they cannot be written to `weights_folder`.
        """
        started = now()
        assert self.pool is not None
        self.version = self.pool.tag = None  # half a sync is none
        barrier()  # no process samples any more
        tag = f"{self.run}:{version}"
        if process_rank() == 0:
            counted = self.transfer.send(weights, tag, self.pool)
        else:
            counted = CountedWeights(weights)
            deque(counted, maxlen=0)
            self.transfer.follow(tag, self.pool)
        barrier()
        self.version = version
        return SyncReport(now() - started, counted.bytes, counted.tensors)

    def close(self) -> None:
        """Closes the connections and removes the last weights from the shared path; the servers keep running."""
        if self.pool is not None:
            self.pool.close()
            self.transfer.close()
            self.pool, self.version = None, None


def data_uri(image: Any) -> str:
    """Returns a PIL image as a data URI, losslessly (PNG)."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _score(answer: Mapping[str, Any], completion: Sequence[int]) -> EngineScore:
    """Reads the log-probabilities of a completion that was sent as the end of a prompt."""
    length = len(completion)
    rows = answer["prompt_logprobs"][-length:]
    logprobs = tuple(float(row[str(token)]["logprob"]) for token, row in zip(completion, rows, strict=True))
    return EngineScore(tuple(answer["prompt_token_ids"][:-length]), logprobs)
