"""The mask reward: its formula by hand, its cost in embeddings, and a run that uses it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixelthink.answering.segmenting import segment_answers
from pixelthink.cli.main import main
from pixelthink.geometry import CoordinateFrame, Target, target_from_mask
from pixelthink.parsing import format_response, parse_completion
from pixelthink.rewards.composite import PixelThinkReward
from pixelthink.rewards.length import NoLengthScore
from pixelthink.rewards.mask_iou import MaskIoU, portions, soft_iou
from pixelthink.segmenters.base import SegmentationRequest
from pixelthink.segmenters.grabcut import GrabCut
from pixelthink.segmenters.hf_sam2 import HFSAM2
from pixelthink.types import Completion, Prompt, RolloutBatch, Sample, ScoringCase
from tests.sam_models import noise, target, tiny_hf_sam2
from tests.support import tiny_run
from tools.score_rollouts import main as score_rollouts


@pytest.fixture(scope="module")
def sam2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf_sam2(tmp_path_factory.mktemp("sam2"))


def test_soft_iou_by_hand() -> None:
    likely = np.array([[0.9, 0.5, 0.0, 0.2]], dtype=np.float32)
    truth = np.array([[True, True, True, False]])
    assert soft_iou(likely, truth) == pytest.approx(1.4 / 3.2)
    assert soft_iou(likely, truth, np.array([[False, False, True, True]])) == pytest.approx(1.4 / 2)
    assert soft_iou(np.array([[True, True, False, True]]), truth) == 2 / 4
    assert soft_iou(truth, truth) == 1.0


def test_nothing_to_find() -> None:
    nothing = np.zeros((1, 4), dtype=bool)
    assert soft_iou(nothing, nothing) == 1.0
    assert soft_iou(np.full((1, 4), 0.1), nothing) == 0.0
    assert soft_iou(nothing, ~nothing) == 0.0
    assert soft_iou(~nothing, ~nothing, ignore=~nothing) == 1.0


def prompt(seed: int, mask: np.ndarray | None, size: tuple[int, int] = (120, 90)) -> Prompt:
    image = noise(*size, seed)
    targets = () if mask is None or not mask.any() else (target_from_mask(mask),)
    frame = CoordinateFrame(size, (60, 60))
    sample = Sample(f"s{seed}", image, "q", mask, targets=targets, difficulty=4.0)
    return Prompt(sample, (), image.resize((60, 60)), frame, tuple(frame.target_to_answer(t) for t in targets))


def block(x1: int, y1: int, x2: int, y2: int) -> np.ndarray:
    mask = np.zeros((90, 120), dtype=bool)
    mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def completion(text: str) -> Completion:
    return Completion((1,), (0.0,), text, "stop", 0, 0.5)


def response(found: Target | None) -> str:
    return format_response("hm", found) if found else "nothing to see"


RESPONSES = (response(target(5, 5, 30, 40)), response(target(20, 10, 50, 50)), response(None))


def rollout() -> RolloutBatch:
    """Two prompts with three responses each, the last of which cannot be used."""
    prompts = (prompt(1, block(10, 10, 60, 60)), prompt(2, block(50, 5, 110, 80)))
    return RolloutBatch(prompts, tuple(completion(text) for text in RESPONSES * 2), 3)


def test_a_steps_responses_embed_each_image_once(sam2: Path) -> None:
    segmenter = HFSAM2(str(sam2), local_files_only=True)
    reward = PixelThinkReward(length=NoLengthScore(), extra=[MaskIoU(segmenter)])
    reward.setup("cpu", GrabCut())
    output = reward(rollout())
    assert segmenter.embedded_images == 2
    assert segmenter.cache.maxsize >= 2
    for index, score in enumerate(output.scores):
        one = rollout().prompt_of(index)
        answer = parse_completion(RESPONSES[index % 3])
        (mask,) = segment_answers([one], [completion("")], [answer], segmenter, "pixelthink")
        request = SegmentationRequest(one.sample.image, mask.objects)
        expected = soft_iou(segmenter.probabilities([request])[0], one.sample.mask) if mask.objects else 0.0
        assert score.parts["MaskIoU"] == pytest.approx(expected, abs=1e-6)
        assert output.total[index] == pytest.approx(sum(score.parts.values()))
    assert 0 < output.scores[0].parts["MaskIoU"] < 1
    assert segmenter.embedded_images == 2, "further rewards and answers embed nothing"


def test_without_a_segmenter_of_its_own_it_takes_the_runs() -> None:
    term = MaskIoU(soft=False)
    reward = PixelThinkReward(length=NoLengthScore(), extra=[term])
    runs_own = GrabCut()
    reward.setup("cpu", runs_own)
    assert term.segmenter is runs_own
    image = Image.new("RGB", (120, 90), (9, 9, 9))
    image.paste((250, 30, 30), (40, 20, 80, 60))
    truth = block(40, 20, 79, 59)
    sample = Sample("s", image, "q", truth, targets=(target_from_mask(truth),))
    frame = CoordinateFrame((120, 90), (120, 90))
    shown = Prompt(sample, (), image, frame, sample.targets)
    text = format_response("hm", sample.targets[0])
    assert term(ScoringCase("s", text, parse_completion(text), sample.targets, prompt=shown)) == 1.0


def test_saying_that_there_is_nothing_needs_an_answer() -> None:
    term = MaskIoU()
    term.setup("cpu", GrabCut())
    shown = prompt(3, np.zeros((90, 120), dtype=bool))
    for text, expected in (("<think>a</think><answer>[]</answer>", 1.0), ("what?", 0.0)):
        assert term(ScoringCase("s", text, parse_completion(text, "visionreasoner"), (), prompt=shown)) == expected


def test_it_is_off_by_default() -> None:
    assert "MaskIoU" not in PixelThinkReward().terms


def test_what_it_needs() -> None:
    term = MaskIoU()
    case = ScoringCase("s7", "", parse_completion(""), ())
    with pytest.raises(ValueError, match="sample s7: MaskIoU needs the image"):
        term(case)
    with pytest.raises(ValueError, match="sample s7: MaskIoU needs the true mask"):
        term(ScoringCase("s7", "", parse_completion(""), (), prompt=prompt(1, None)))
    with pytest.raises(RuntimeError, match="setup"):
        term(ScoringCase("s7", "", parse_completion(""), (), prompt=prompt(1, block(1, 1, 5, 5))))


def test_masks_are_held_in_portions() -> None:
    requests = [SegmentationRequest(Image.new("RGB", (10, height)), ()) for height in (4, 4, 3, 30, 1)]
    assert [len(portion) for portion in portions(requests, pixels=100)] == [2, 1, 1, 1]
    assert [request for portion in portions(requests, 100) for request in portion] == requests
    assert list(portions([])) == []


def test_logged_responses_cannot_be_scored_by_their_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"id": "r1", "response": RESPONSES[0], "solution": "<box>(1,2),(30,40)</box><points>(5,5),(9,9)</points>"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row))
    files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    assert score_rollouts(["--reward=PixelThinkReward", "--reward.extra+=MaskIoU", *files]) == 2
    assert "in.jsonl:1: sample r1: MaskIoU needs the image" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def two_dogs(folder: Path) -> str:
    """A COCO source of one image with two squares of 20 × 20 pixels, asked for together."""
    Image.new("RGB", (112, 112), "white").save(folder / "dogs.png")
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "segmentation": [[x, 10, x + 20, 10, x + 20, 30, x, 30]]}
        for i, x in enumerate((10, 60))
    ]
    images = [{"id": 1, "file_name": "dogs.png", "width": 112, "height": 112}]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "dog"}]}
    (folder / "instances.json").write_text(json.dumps(data))
    return f"{{class_path: COCO, init_args: {{instances: {folder}/instances.json, images: {folder}}}}}"


def several(*boxes: list[int]) -> str:
    """A response that names objects, each with the middle of its box."""
    objects = [{"bbox_2d": box, "point_2d": [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2]} for box in boxes]
    return f"<think>two of them</think><answer>{json.dumps(objects)}</answer>"


@pytest.mark.slow
def test_it_rewards_masks_of_several_objects_in_training(tmp_path: Path, tiny_policy_path: Path) -> None:
    left, right = [10, 10, 29, 29], [60, 10, 79, 29]
    texts = [several(left, right), several(left), several(left, [60, 10, 69, 29])]
    parts = "tests.evaluation_parts"
    options = [
        *("--model.reward=VisionReasonerReward", "--model.reward.extra+=MaskIoU", "--data.prompt=VisionReasonerPrompt"),
        f"--model.rollout={json.dumps({'class_path': f'{parts}.RehearsedEngine', 'init_args': {'texts': texts}})}",
        *(f"--model.segmenter={parts}.BoxFiller", f"--data.train={two_dogs(tmp_path)}", "--data.batch_size=1"),
        *("--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.callbacks=[]"),
    ]
    main(["fit", *tiny_run(tmp_path, tiny_policy_path), *options])
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    [found] = [event.value for event in events.Scalars("train/reward_MaskIoU")]
    assert found == pytest.approx((1 + 1 / 2 + 3 / 4) / 3, abs=0.02), "polygons may have an edge more than boxes"
    [accuracy] = [event.value for event in events.Scalars("train/reward_accuracy")]
    assert accuracy == pytest.approx((3 + 3 / 2 + (3 + 2) / 2) / 3)
    [reward] = [event.value for event in events.Scalars("train/reward")]
    assert reward == pytest.approx(3 + 1 + accuracy + found, abs=1e-5)
    assert events.Scalars("loss/grad_norm")[0].value > 0


@pytest.mark.slow
def test_one_yaml_line_turns_it_on(tmp_path: Path, tiny_policy_path: Path, sam2: Path) -> None:
    options = ("--model.reward.extra+=MaskIoU", "--model.reward.extra.segmenter=HFSAM2")
    checkpoint = f"--model.reward.extra.segmenter.checkpoint={sam2}"
    main(["fit", *tiny_run(tmp_path, tiny_policy_path), *options, checkpoint])
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    values = [event.value for event in events.Scalars("train/reward_MaskIoU")]
    assert len(values) == 2
    assert all(0 <= value <= 1 for value in values)
