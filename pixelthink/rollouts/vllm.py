"""Rollouts by vLLM inside the training process, with weights of its own that are synced and checked."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from pixelthink.errors import UserError
from pixelthink.parallel.collectives import is_distributed
from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig, SyncReport
from pixelthink.rollouts.vllm_launch import (
    import_vllm,
    isolated_start,
    max_lora_rank,
    max_positions,
    policy_load_format,
)
from pixelthink.rollouts.vllm_requests import (
    Dtype,
    ImagePrompt,
    check_length,
    completion_from_tokens,
    engine_dtype,
    image_prompt,
    request_seeds,
    sampling_options,
    shares_of_batch,
)
from pixelthink.rollouts.weight_transfer import CountedWeights
from pixelthink.timing import now
from pixelthink.types import PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone


class VLLMEngine(RolloutEngine):
    """Samples with vLLM in this process, beside the policy (colocated).

    vLLM builds the model from the policy's configuration and reads no checkpoint: all its weights come from the policy
    in memory. A request has all completions of its prompt, so that prompt and image are computed once.

    Several processes with a GPU each have an engine each. With `tensor_parallel_size` above 1, that many neighbouring
    processes share one, which answers the prompts of all of them. GPUs, sleep and tensor parallelism go through vLLM's
    own calls and were NOT run on the machine that tested this package.

    Args:
        gpu_memory_share: Share of a GPU's memory for vLLM's weights and key-value cache; the rest is the policy's.
        kv_cache_gib: Size of the key-value cache in GiB in place of that share; on a CPU 0 means 1 GiB.
        max_model_len: Most tokens of a prompt and its completion together; a model with fewer positions takes its own
            number.
        tensor_parallel_size: Processes that share one engine.
        dtype: Precision of the engine; `auto` takes the policy's.
        enforce_eager: Compute without compiled graphs: starts sooner, samples slower on a GPU.
        enable_prefix_caching: Keep the keys and values of prompts between requests; emptied at each sync.
        max_num_seqs: Most completions decoded side by side; 0 leaves it to vLLM.
        sleep_level: What happens to vLLM's memory while the policy trains: 0 keeps it, 1 moves the weights to the
            CPU's memory and drops the cache, 2 drops both and syncs anew on waking. A CPU build keeps its memory.
        images_per_prompt: Most images of one prompt.
        merge_adapter: Add a policy's adapter to the weights and sync all of them at each step. Otherwise vLLM serves
            it as an adapter: only the adapter is handed over, and nothing is rounded by merging.
    """

    holds_weights = True
    version: int | None = None
    asleep = False

    def __init__(
        self,
        gpu_memory_share: float = 0.4,
        kv_cache_gib: float = 0.0,
        max_model_len: int = 4096,
        tensor_parallel_size: int = 1,
        dtype: Dtype = "auto",
        enforce_eager: bool = False,
        enable_prefix_caching: bool = True,
        max_num_seqs: int = 0,
        sleep_level: Literal[0, 1, 2] = 0,
        images_per_prompt: int = 1,
        merge_adapter: bool = False,
    ) -> None:
        if not 0 < gpu_memory_share < 1:
            raise UserError(f"rollout.gpu_memory_share must lie in (0, 1), not {gpu_memory_share}")
        if min(kv_cache_gib, max_num_seqs) < 0:
            raise UserError("rollout: kv_cache_gib and max_num_seqs must not be negative")
        if min(max_model_len, tensor_parallel_size, images_per_prompt) < 1:
            raise UserError("rollout: max_model_len, tensor_parallel_size and images_per_prompt must be at least 1")
        if sleep_level not in (0, 1, 2):
            raise UserError(f"rollout.sleep_level must be 0, 1 or 2, not {sleep_level}")
        self.gpu_memory_share = gpu_memory_share
        self.kv_cache_gib = kv_cache_gib
        self.max_model_len = max_model_len
        self.tensor_parallel_size = tensor_parallel_size
        self.requested_dtype = dtype
        self.enforce_eager = enforce_eager
        self.enable_prefix_caching = enable_prefix_caching
        self.max_num_seqs = max_num_seqs
        self.sleep_level = sleep_level
        self.images_per_prompt = images_per_prompt
        self.merge_adapter = merge_adapter
        self.llm: Any = None
        self.adapter: Any = None  # what names the adapter in vLLM's requests

    @property
    def dtype(self) -> str:
        return str(self.llm.model_config.dtype).removeprefix("torch.")

    @property
    def serves_adapters(self) -> bool:
        return self.backbone.adapter_rank > 0 and not self.merge_adapter

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        """Starts vLLM; a running one forgets its weights and takes those of another policy of the same kind.

        Raises:
            MissingPackageError: vLLM is not installed.
            UserError: the number of processes is no multiple of `tensor_parallel_size`.
        """
        import_vllm()
        self.backbone = backbone
        self.version = None
        with tempfile.TemporaryDirectory(prefix="pixelthink-vllm-") as folder:
            backbone.describe_model(model, Path(folder))
            described = (Path(folder) / "config.json").read_text(encoding="utf-8")
            if self.serves_adapters:
                described += f"adapter of rank {backbone.adapter_rank} in {', '.join(backbone.adapter_targets)}"
            if self.llm is None:
                self.described = described
                self.max_model_len = min(self.max_model_len, max_positions(Path(folder)) or self.max_model_len)
                with isolated_start():
                    self.llm = self._start(folder, model)
        if described != self.described:
            raise ValueError("rollout: this engine runs with another model's configuration; close it first")

    def _start(self, folder: str, model: nn.Module) -> Any:
        from vllm import LLM
        from vllm.platforms import current_platform

        is_cpu = current_platform.is_cpu()
        kv_cache_gib = self.kv_cache_gib or (1.0 if is_cpu else 0.0)
        options: dict[str, Any] = {}
        if kv_cache_gib:
            options["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
        if self.max_num_seqs:
            options["max_num_seqs"] = self.max_num_seqs
        if is_cpu:  # a seeded request whose prompt is read in two pieces crashes vLLM 0.32 on a CPU
            options["enable_chunked_prefill"] = False
        if self.sleep_level and current_platform.is_sleep_mode_available():
            options["enable_sleep_mode"] = True
        self.group = self._process_group()
        if self.group is not None or self.tensor_parallel_size > 1:
            options["distributed_executor_backend"] = "external_launcher"
        if self.serves_adapters:
            rank = max_lora_rank(self.backbone.adapter_rank)
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
            # naming them keeps vLLM from wrapping the head, whose CPU kernel fails on `prompt_logprobs`
            options["lora_target_modules"] = list(self.backbone.adapter_targets)
        return LLM(
            model=folder,
            load_format=policy_load_format(self.backbone, model),
            dtype=cast("Any", engine_dtype(self.requested_dtype, model)),
            max_model_len=self.max_model_len,
            tensor_parallel_size=self.tensor_parallel_size,
            gpu_memory_utilization=self.gpu_memory_share,
            enforce_eager=self.enforce_eager,
            enable_prefix_caching=self.enable_prefix_caching,
            limit_mm_per_prompt={"image": self.images_per_prompt, "video": 0},
            generation_config="vllm",
            logprobs_mode="raw_logprobs",
            max_logprobs=20,
            worker_extension_cls="pixelthink.rollouts.vllm_worker.PolicyWeights",
            seed=0,
            disable_log_stats=False,  # they hold the times of each request
            **options,
        )

    def _process_group(self) -> Any:
        """Returns the processes that share an engine with this one; None in a run of one process."""
        processes = dist.get_world_size() if is_distributed() else 1
        if processes % self.tensor_parallel_size:
            raise UserError(
                f"rollout.tensor_parallel_size is {self.tensor_parallel_size}, into which {processes} processes do "
                "not divide; set trainer.devices to a multiple"
            )
        if processes == 1:
            return None
        os.environ.setdefault("RANK", str(dist.get_rank()))
        os.environ.setdefault("WORLD_SIZE", str(processes))
        return dist.new_subgroups(self.tensor_parallel_size)[0]

    def generate(self, batch: PromptBatch, sampling: SamplingConfig, seed: int) -> RolloutBatch:
        from vllm import SamplingParams

        started = now()
        prompts = [image_prompt(self.backbone, prompt) for prompt in batch.prompts]
        seeds = request_seeds(seed, batch.places)
        params = [SamplingParams(**sampling_options(self.backbone, sampling, s), detokenize=False) for s in seeds]
        built_seconds = now() - started
        begun = time.monotonic()  # the clock of vLLM's timestamps
        outputs = self._ask(prompts, params)
        stats = [output.metrics if sampling.group_size == 1 else None for output in outputs]  # else of one of a group
        shares = shares_of_batch(stats, begun, time.monotonic(), built_seconds)
        completions = []
        for prompt, output, timings in zip(batch.prompts, outputs, shares, strict=True):
            tokens, limit = len(output.prompt_token_ids), self.max_model_len
            check_length(prompt.sample.id, tokens, sampling.max_new_tokens, limit, "rollout.max_model_len")
            for answer in sorted(output.outputs, key=lambda found: found.index):
                candidates = [{token: entry.logprob for token, entry in step.items()} for step in answer.logprobs]
                top_k = sampling.uncertainty_top_k
                completions.append(completion_from_tokens(self.backbone, answer.token_ids, candidates, top_k, timings))
        group, version = sampling.group_size, self.version or 0
        return RolloutBatch(batch.prompts, tuple(completions), group, version, seconds=now() - started)

    def score(self, rollout: RolloutBatch) -> list[EngineScore]:
        from vllm import SamplingParams

        prompts = [image_prompt(self.backbone, rollout.prompt_of(i)) for i in range(len(rollout.completions))]
        extended = [
            replace(prompt, token_ids=(*prompt.token_ids, *completion.token_ids))
            for prompt, completion in zip(prompts, rollout.completions, strict=True)
        ]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        scores = []
        for output, completion in zip(self._ask(extended, [params] * len(extended)), rollout.completions, strict=True):
            length = len(completion.token_ids)
            rows = zip(completion.token_ids, output.prompt_logprobs[-length:], strict=True)
            logprobs = tuple(row[token].logprob for token, row in rows)
            scores.append(EngineScore(tuple(output.prompt_token_ids[:-length]), logprobs))
        return scores

    def _ask(self, prompts: Sequence[ImagePrompt], params: Sequence[Any]) -> list[Any]:
        """Returns vLLM's answers to this process's requests; processes that share the engine ask at the same time."""
        requests = list(zip(prompts, params, strict=True))
        of_processes, own = [requests], 0
        if self.group is not None and self.tensor_parallel_size > 1:
            of_processes = [[] for _ in range(self.tensor_parallel_size)]
            dist.all_gather_object(of_processes, requests, group=self.group)
            own = dist.get_rank(self.group)
        asked = [request for requests in of_processes for request in requests]
        outputs = self.llm.generate(
            [
                {"prompt_token_ids": list(prompt.token_ids)}
                | ({"multi_modal_data": {"image": list(prompt.images)}} if prompt.images else {})
                for prompt, _ in asked
            ],
            [sampling for _, sampling in asked],
            use_tqdm=False,
            lora_request=self.adapter,
        )
        first = sum(len(requests) for requests in of_processes[:own])
        return outputs[first : first + len(of_processes[own])]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int, adapter: Path | None = None) -> SyncReport:
        started = now()
        had_weights, self.version = self.version is not None, None  # half a sync is none
        counted = CountedWeights(weights)
        if adapter is None or not had_weights:
            self.llm.collective_rpc("take_weights", kwargs={"weights_iterator": iter(counted)})
        if adapter is not None:
            self._take_adapter(adapter, counted)
        self._drop_caches()
        self.version = version
        return SyncReport(now() - started, counted.bytes, counted.tensors)

    def _take_adapter(self, folder: Path, counted: CountedWeights) -> None:
        """Replaces the adapter by one in a folder, under a number that vLLM has not seen yet."""
        from vllm.lora.request import LoRARequest

        number = 1
        if self.adapter is not None:
            number = self.adapter.lora_int_id + 1
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
        self.adapter = LoRARequest(f"policy-{number}", number, str(folder))
        self.llm.llm_engine.add_lora(self.adapter)
        path = folder / "adapter_model.safetensors"
        with safe_open(path, framework="pt") as file:
            counted.tensors += len(file.keys())
        counted.bytes += path.stat().st_size

    def _drop_caches(self) -> None:
        """Drops prefixes, processed images and vision features; all of them came from the old weights."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not drop its prefix cache, since a request is still running")
        self.llm.llm_engine.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        if self.sleep_level and not self.asleep:
            self.llm.sleep(level=self.sleep_level)
            self.asleep = True
            if self.sleep_level == 2:
                self.version = None

    def wake(self) -> None:
        if self.asleep:
            self.llm.wake_up()
            self.asleep = False

    def close(self) -> None:
        """Ends vLLM and frees its memory, and the process group that it made in a run of one process."""
        if self.llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        self.llm, self.adapter, self.version, self.asleep = None, None, None, False
        destroy_model_parallel() if self.group is not None else cleanup_dist_env_and_memory()
