"""Rollouts by vLLM servers in other processes or on other machines, whose weights are handed over and proved."""

from __future__ import annotations

import base64
import io
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from pixelthink.parallel.collectives import barrier, broadcast_object, process_rank
from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig, SyncReport
from pixelthink.rollouts.vllm_client import Patience, RolloutServer, ServerPool, ServerRefused
from pixelthink.rollouts.vllm_requests import completion_from_tokens, image_prompt, request_seeds, sampling_options
from pixelthink.rollouts.weight_transfer import FileTransfer, NcclTransfer, WeightTransfer
from pixelthink.timing import now
from pixelthink.types import Completion, Prompt, PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone

KEY_VARIABLE = "PIXELTHINK_API_KEY"
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.05}
"""How far the log-probabilities of two servers with the same weights may lie apart."""


class VLLMServerEngine(RolloutEngine):
    """Samples on one or several vLLM servers, which `python -m pixelthink.serving` starts; see `docs/serving.md`.

    Prompts are spread over the servers. One that fails is tried again, and the next one in its place, within a bound;
    then the run stops with one line and its last checkpoint is good. Answers carry the version of the weights that
    sampled them, so a server that was restarted is noticed at once and gets the present weights again.

    Args:
        servers: Addresses, e.g. ["http://127.0.0.1:8000"].
        weights_folder: Path that this process and the servers share, for handing weights over as files.
        nccl_address: This machine's address as the servers reach it, for handing weights over by NCCL instead (GPUs).
        nccl_port: Port on which that group meets.
        server_dtype: Precision that the servers run in; `auto` says the policy's.
        patience: How often a request is tried.
        concurrency: Requests at a time and server; each has a whole group of completions.
        seconds_to_start: How long to wait for the servers at first.
        api_key_variable: Environment variable that holds the servers' key, if they want one.
    """

    def __init__(
        self,
        servers: list[str],
        weights_folder: str | None = None,
        nccl_address: str | None = None,
        nccl_port: int = 29600,
        server_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        patience: Patience = Patience(),
        concurrency: int = 64,
        seconds_to_start: float = 300.0,
        api_key_variable: str = KEY_VARIABLE,
    ) -> None:
        if not servers or len(set(servers)) < len(servers):
            raise ValueError("rollout.servers must name at least one address, and none twice")
        if (weights_folder is None) == (nccl_address is None):
            raise ValueError("rollout: weights go over rollout.weights_folder or rollout.nccl_address; set one of them")
        if concurrency < 1:
            raise ValueError("rollout.concurrency must be at least 1")
        self.addresses = list(servers)
        self.weights_folder = weights_folder
        self.nccl_address = nccl_address
        self.nccl_port = nccl_port
        self.server_dtype = server_dtype
        self.patience = patience
        self.concurrency = concurrency
        self.seconds_to_start = seconds_to_start
        self.api_key_variable = api_key_variable
        self.pool: ServerPool | None = None
        self._version: int | None = None

    @property
    def holds_weights(self) -> bool:
        return True

    @property
    def samples_beside_training(self) -> bool:
        return True

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def version(self) -> int | None:
        return self._version

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        """Waits for the servers.

        Raises:
            OSError: one does not answer, or the shared path is not there; one line.
            ValueError: an address is none, or a server refuses, e.g. for want of the key; one line.
        """
        self.close()
        self.backbone = backbone
        policy_dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self._dtype = str(policy_dtype).removeprefix("torch.") if self.server_dtype == "auto" else self.server_dtype
        key = os.environ.get(self.api_key_variable)
        servers = [RolloutServer(address, key, self.patience.timeout) for address in self.addresses]
        self.pool = ServerPool(servers, self.patience, self.concurrency)
        self.transfer = self._transfer()
        self.pool.wait_until_up(self.seconds_to_start)
        models = self.pool.each(lambda server: server.get("/v1/models")["data"][0])
        self.max_model_len = min(int(model["max_model_len"]) for model in models)
        self.run = broadcast_object(secrets.token_hex(4))

    def _transfer(self) -> WeightTransfer:
        dtype = getattr(torch, self._dtype)
        if self.nccl_address is not None:
            return NcclTransfer(self.nccl_address, self.nccl_port, dtype)
        folder = Path(str(self.weights_folder)).absolute()
        if not folder.is_dir():
            raise NotADirectoryError(f"rollout.weights_folder: there is no folder {str(folder)!r}")
        return FileTransfer(folder, dtype)

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        """See `RolloutEngine.generate`; may run in a thread of its own, but not beside a sync."""
        started = now()
        assert self.pool is not None
        seeds = request_seeds(seed, batch.places)
        bodies = [
            self._body(prompt, (), sampling_options(self.backbone, sampling, request_seed))
            for prompt, request_seed in zip(batch.prompts, seeds, strict=True)
        ]
        answers = self.pool.generate(bodies)
        completions: list[Completion] = []
        for prompt, answer in zip(batch.prompts, answers, strict=True):
            self._check_room(prompt.sample.id, answer["usage"]["prompt_tokens"], sampling.max_new_tokens)
            completions += self._completions(prompt.sample.id, answer, sampling)
        group, version = sampling.group_size, self._version or 0
        return RolloutBatch(batch.prompts, tuple(completions), group, version, seconds=now() - started)

    def _body(self, prompt: Prompt, completion: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """A request in vLLM's token-in, token-out form; JSON has no numbers for keys."""
        question = image_prompt(self.backbone, prompt)
        bias = {str(token): value for token, value in options.get("logit_bias", {}).items()} or None
        return {
            "token_ids": [*question.token_ids, *completion],
            "content_parts": [{"type": "image_url", "url": data_uri(image)} for image in question.images],
            "sampling_params": {**options, "logit_bias": bias, "detokenize": False},
            "return_token_ids": True,
        }

    def _completions(self, sample: str, answer: Mapping[str, Any], sampling: SamplingConfig) -> list[Completion]:
        """The completions of one answer.

        Raises:
            ValueError: too few, or without log-probabilities; one line.
        """
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

    def _check_room(self, sample: str, prompt_tokens: int, max_new_tokens: int) -> None:
        """Refuses what vLLM would cut off silently."""
        if prompt_tokens + max_new_tokens > self.max_model_len:
            raise ValueError(
                f"sample {sample!r}: a prompt of {prompt_tokens} tokens and max_new_tokens {max_new_tokens} do not fit "
                f"into the {self.max_model_len} tokens (--max_model_len) of a rollout server"
            )

    def score(self, rollout: RolloutBatch) -> list[EngineScore]:
        """See `RolloutEngine.score`. Every server is asked, so that one proof holds for all.

        Raises:
            ValueError: two servers disagree, so they do not serve the same weights; one line with the difference.
        """
        assert self.pool is not None
        options = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        scores = []
        for index, completion in enumerate(rollout.completions):
            body = self._body(rollout.prompt_of(index), completion.token_ids, options)
            found = [_score(answer, completion.token_ids) for answer in self.pool.generate_on_each(body)]
            self._check_agreement(found)
            scores.append(found[0])
        return scores

    def _check_agreement(self, scores: Sequence[EngineScore]) -> None:
        first = torch.tensor(scores[0].logprobs)
        for address, score in zip(self.addresses, scores, strict=True):
            difference = float((torch.tensor(score.logprobs) - first).abs().max())
            if not difference <= AGREEMENT[self.dtype]:
                raise ServerRefused(
                    f"rollout servers {self.addresses[0]} and {address} disagree by {difference:.2g} on a completion's "
                    "log-probabilities: they do not serve the same weights, or not in the same precision"
                )

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int, adapter: Path | None = None) -> SyncReport:
        """See `RolloutEngine.sync`. The first process hands the weights over, the others help to gather them.

        Raises:
            OSError: a server does not take them within the bound; one line.
        """
        started = now()
        assert self.pool is not None
        self._version = None  # half a sync is none
        barrier()  # nobody samples any more
        tag = f"{self.run}:{version}"
        if process_rank() == 0:
            sent = self.transfer.send(weights, tag, self.pool)
            report = (sent.bytes, sent.tensors)
        else:
            sizes = [tensor.numel() * tensor.element_size() for _, tensor in weights]
            report = (sum(sizes), len(sizes))
            self.transfer.follow(tag, self.pool)
        barrier()
        self._version = version
        return SyncReport(now() - started, *report)

    def close(self) -> None:
        """Closes the connections and removes the last weights from the shared path; the servers keep running."""
        if self.pool is not None:
            self.pool.close()
            self.transfer.close()
            self.pool, self._version = None, None


def data_uri(image: Any) -> str:
    """A PIL image inside an address, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _score(answer: Mapping[str, Any], completion: Sequence[int]) -> EngineScore:
    """Log-probabilities of a completion that was sent as the end of a prompt."""
    length = len(completion)
    rows = answer["prompt_logprobs"][-length:]
    logprobs = tuple(float(row[str(token)]["logprob"]) for token, row in zip(completion, rows, strict=True))
    return EngineScore(tuple(answer["prompt_token_ids"][:-length]), logprobs)
