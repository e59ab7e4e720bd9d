"""Rollouts by vLLM inside the training process, with weights of its own that are synced and proved."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors import safe_open
from torch import Tensor, nn

from pixelthink.rollouts.base import EngineScore, RolloutEngine, SamplingConfig, SyncReport
from pixelthink.rollouts.vllm_requests import (
    ImagePrompt,
    completion_from_tokens,
    image_prompt,
    request_seeds,
    sampling_options,
    shares_of_batch,
)
from pixelthink.timing import now
from pixelthink.types import PromptBatch, RolloutBatch

if TYPE_CHECKING:
    from pixelthink.policies.base import PolicyBackbone

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MISSING = "rollout: VLLMEngine needs vLLM: pip install 'pixelthink[vllm]' with a GPU, make vllm for the CPU build"


class VLLMEngine(RolloutEngine):
    """Samples with vLLM in this process, beside the policy (colocated).

    vLLM builds the model from the policy's configuration and reads no checkpoint: every weight that it ever serves came
    from the policy in memory. One request per prompt has all completions of its group, so that prompt and image are
    computed once.

    Several processes with a GPU each have an engine each; with `tensor_parallel_size` above 1, so many neighbouring
    processes share one, each of them asks its own prompts, and the engine answers all of theirs. GPUs, sleep and
    tensor parallelism go through vLLM's own calls and were NOT run on the machine that tested this package.

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
            raise ValueError(f"rollout.gpu_memory_share must lie in (0, 1), not {gpu_memory_share}")
        if min(kv_cache_gib, max_num_seqs) < 0:
            raise ValueError("rollout: kv_cache_gib and max_num_seqs must not be negative")
        if min(max_model_len, tensor_parallel_size, images_per_prompt) < 1:
            raise ValueError("rollout: max_model_len, tensor_parallel_size and images_per_prompt must be at least 1")
        if sleep_level not in (0, 1, 2):
            raise ValueError(f"rollout.sleep_level must be 0, 1 or 2, not {sleep_level}")
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
        self._version: int | None = None
        self._asleep = False

    @property
    def holds_weights(self) -> bool:
        return True

    @property
    def dtype(self) -> str:
        return str(self.llm.model_config.dtype).removeprefix("torch.")

    @property
    def serves_adapters(self) -> bool:
        return self.backbone.adapter_rank > 0 and not self.merge_adapter

    @property
    def version(self) -> int | None:
        return self._version

    @property
    def asleep(self) -> bool:
        return self._asleep

    def setup(self, backbone: PolicyBackbone, model: nn.Module) -> None:
        """Starts vLLM, which takes seconds; a second call keeps it and forgets the weights.

        Raises:
            ImportError: vLLM is not installed; one line that names both ways to install it.
            ValueError: the processes do not divide into engines, or a running engine is given another model.
        """
        prepare_environment()
        try:
            import vllm  # noqa: F401
        except ImportError as error:
            raise ImportError(MISSING) from error
        self.backbone = backbone
        self._version = None
        with tempfile.TemporaryDirectory(prefix="pixelthink-vllm-") as folder:
            backbone.describe_model(model, Path(folder))
            described = (Path(folder) / "config.json").read_text(encoding="utf-8") + self._adapter_note()
            if self.llm is None:
                self.described = described
                self.max_model_len = min(self.max_model_len, positions_of(Path(folder)) or self.max_model_len)
                with undisturbed(), policy_loader(backbone, model) as load_format:
                    self.llm = self._start(folder, load_format, model)
        if described != self.described:
            raise ValueError("rollout: this engine runs with another model's configuration; close it first")

    def _adapter_note(self) -> str:
        """What distinguishes engines of one configuration: the room for an adapter that they were started with."""
        if not self.serves_adapters:
            return ""
        return f"adapter of rank {self.backbone.adapter_rank} in {', '.join(self.backbone.adapter_targets)}"

    def _start(self, folder: str, load_format: str, model: nn.Module) -> Any:
        from vllm import LLM
        from vllm.platforms import current_platform

        kv_cache_gib = self.kv_cache_gib or (1.0 if current_platform.is_cpu() else 0.0)
        options: dict[str, Any] = {}
        if kv_cache_gib:
            options["kv_cache_memory_bytes"] = int(kv_cache_gib * 2**30)
        if self.max_num_seqs:
            options["max_num_seqs"] = self.max_num_seqs
        if current_platform.is_cpu():  # a seeded request whose prompt is read in two pieces crashes vLLM 0.32 on a CPU
            options["enable_chunked_prefill"] = False
        if self.sleep_level and current_platform.is_sleep_mode_available():
            options["enable_sleep_mode"] = True
        self.group = self._join_processes()
        if self.group is not None or self.tensor_parallel_size > 1:
            options["distributed_executor_backend"] = "external_launcher"
        if self.serves_adapters:
            rank = adapter_room(self.backbone.adapter_rank)
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
            # naming them keeps vLLM from wrapping the head, whose CPU kernel fails on `prompt_logprobs`
            options["lora_target_modules"] = list(self.backbone.adapter_targets)
        policy_dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        return LLM(
            model=folder,
            load_format=load_format,
            dtype=cast("Any", policy_dtype if self.requested_dtype == "auto" else self.requested_dtype),
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

    def _join_processes(self) -> Any:
        """The process group that shares an engine with this process; None with one process.

        Raises:
            ValueError: if there are too few processes for the engine, or they do not divide into engines.
        """
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if processes % self.tensor_parallel_size:
            raise ValueError(
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
        spent = shares_of_batch(stats, begun, time.monotonic(), built_seconds)
        completions = []
        for prompt, output, timings in zip(batch.prompts, outputs, spent, strict=True):
            self._check_room(prompt.sample.id, len(output.prompt_token_ids), sampling.max_new_tokens)
            for answer in sorted(output.outputs, key=lambda found: found.index):
                candidates = [{token: entry.logprob for token, entry in step.items()} for step in answer.logprobs]
                completions.append(
                    completion_from_tokens(
                        self.backbone, answer.token_ids, candidates, sampling.uncertainty_top_k, timings
                    )
                )
        return RolloutBatch(
            batch.prompts, tuple(completions), sampling.group_size, self._version or 0, seconds=now() - started
        )

    def _check_room(self, sample: str, prompt_tokens: int, max_new_tokens: int) -> None:
        """Refuses what vLLM would cut off silently."""
        if prompt_tokens + max_new_tokens > self.max_model_len:
            raise ValueError(
                f"sample {sample!r}: a prompt of {prompt_tokens} tokens and max_new_tokens {max_new_tokens} do not fit "
                f"into rollout.max_model_len {self.max_model_len}"
            )

    def score(self, rollout: RolloutBatch) -> list[EngineScore]:
        from vllm import SamplingParams

        prompts = [image_prompt(self.backbone, rollout.prompt_of(i)) for i in range(len(rollout.completions))]
        extended = [
            ImagePrompt(prompt.text, (*prompt.token_ids, *completion.token_ids), prompt.images)
            for prompt, completion in zip(prompts, rollout.completions, strict=True)
        ]
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._ask(extended, [params] * len(extended))
        scores = []
        for output, completion in zip(outputs, rollout.completions, strict=True):
            length = len(completion.token_ids)
            rows = zip(completion.token_ids, output.prompt_logprobs[-length:], strict=True)
            logprobs = tuple(row[token].logprob for token, row in rows)
            scores.append(EngineScore(tuple(output.prompt_token_ids[:-length]), logprobs))
        return scores

    def _ask(self, prompts: Sequence[ImagePrompt], params: Sequence[Any]) -> list[Any]:
        """Answers of this process's requests; those that share the engine ask theirs at the same time."""
        requests = list(zip(prompts, params, strict=True))
        everyone, own = [requests], 0
        if self.group is not None and self.tensor_parallel_size > 1:
            everyone = [[] for _ in range(self.tensor_parallel_size)]
            dist.all_gather_object(everyone, requests, group=self.group)
            own = dist.get_rank(self.group)
        asked = [request for part in everyone for request in part]
        outputs = self.llm.generate(
            [vllm_prompt(prompt) for prompt, _ in asked],
            [p for _, p in asked],
            use_tqdm=False,
            lora_request=self.adapter,
        )
        first = sum(len(part) for part in everyone[:own])
        return outputs[first : first + len(requests)]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int, adapter: Path | None = None) -> SyncReport:
        started = now()
        had_weights, self._version = self._version is not None, None  # half a sync is none
        counted = CountedWeights(weights)
        if adapter is None or not had_weights:
            self.llm.collective_rpc("take_weights", kwargs={"weights_iterator": iter(counted)})
        if adapter is not None:
            self._take_adapter(adapter, counted)
        self._drop_caches()
        self._version = version
        return SyncReport(now() - started, counted.bytes, counted.tensors)

    def _take_adapter(self, folder: Path, counted: CountedWeights) -> None:
        """Serves the adapter in a folder in place of the one before, under a number that vLLM has not seen yet."""
        from vllm.lora.request import LoRARequest

        number = 1
        if self.adapter is not None:
            number = self.adapter.lora_int_id + 1
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
        self.adapter = LoRARequest(f"policy-{number}", number, str(folder))
        self.llm.llm_engine.add_lora(self.adapter)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            counted.tensors += len(file.keys())
        counted.bytes += (folder / "adapter_model.safetensors").stat().st_size

    def _drop_caches(self) -> None:
        """Forgets prefixes, processed images and vision features, all of which came from the old weights."""
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        if self.sleep_level and not self._asleep:
            self.llm.sleep(level=self.sleep_level)
            self._asleep = True
            if self.sleep_level == 2:
                self._version = None

    def wake(self) -> None:
        if self._asleep:
            self.llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Ends vLLM and gives its memory back; also the process group that it made where there was only one process."""
        if self.llm is None:
            return
        from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel

        self.llm.llm_engine.engine_core.shutdown()
        self.llm, self.adapter, self._version, self._asleep = None, None, None, False
        destroy_model_parallel() if self.group is not None else cleanup_dist_env_and_memory()


def positions_of(folder: Path) -> int | None:
    """How many positions a model was made for; None where its configuration stretches them or does not say."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    stretched = any("factor" in (text.get(key) or {}) for key in ("rope_scaling", "rope_parameters"))
    return None if stretched else text.get("max_position_embeddings")


def adapter_room(rank: int) -> int:
    """The least rank that vLLM can be started for and that has room for an adapter of this one.

    Raises:
        ValueError: vLLM serves no adapters of so high a rank; one line.
    """
    from vllm.config.lora import MaxLoRARanks

    ranks = sorted(get_args(MaxLoRARanks))
    if rank > ranks[-1]:
        raise ValueError(
            f"rollout: vLLM serves adapters up to rank {ranks[-1]}, not {rank}; set rollout.merge_adapter to true"
        )
    return next(room for room in ranks if room >= rank)


class CountedWeights:
    """Passes weights on and counts them.

    Args:
        weights: (name, tensor) pairs.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        self.weights = weights
        self.bytes = 0
        self.tensors = 0

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights:
            self.bytes += tensor.numel() * tensor.element_size()
            self.tensors += 1
            yield name, tensor


@contextmanager
def policy_loader(backbone: PolicyBackbone, model: nn.Module) -> Iterator[str]:
    """A load format under which vLLM takes a policy's weights from memory when it starts.

    vLLM's own `dummy` format would do for the weights, but it also overwrites constants that are in no checkpoint, such
    as the image normalisation of Qwen2.5-VL's vision tower, and no sync brings those back.
    """
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class PolicyLoader(BaseModelLoader):
        """Loads from the live policy."""

        def download_model(self, model_config: Any) -> None:
            pass

        def load_weights(self, vllm_model: Any, model_config: Any) -> None:
            vllm_model.load_weights(backbone.sync_weights(model))

    vllm_logger = logging.getLogger("vllm.model_executor.model_loader")
    level = vllm_logger.level
    vllm_logger.setLevel(logging.ERROR)  # registering the format anew for another policy is no news
    register_model_loader("pixelthink")(PolicyLoader)
    vllm_logger.setLevel(level)
    yield "pixelthink"


def vllm_prompt(prompt: ImagePrompt) -> dict[str, Any]:
    """A prompt as `LLM.generate` takes it."""
    request: dict[str, Any] = {"prompt_token_ids": list(prompt.token_ids)}
    if prompt.images:
        request["multi_modal_data"] = {"image": list(prompt.images)}
    return request


def prepare_environment() -> None:
    """Settles what vLLM reads from the environment when it is imported, where the user has not.

    vLLM's engine has to run in this process, since live tensors are handed to it.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps from the training process what starting vLLM does to it: seeds, and `torch.set_num_threads` taken away."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    with isolate_rng():
        try:
            yield
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)
