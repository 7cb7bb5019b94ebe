from __future__ import annotations

import pytest
import torch

from btinet.models.baselines.taskprompter import (
    SIZES,
    Affinity,
    PromptDecoder,
    PromptedLayer,
    TaskPrompter,
    from_windows,
    to_windows,
    weight_channels,
    weight_pixels,
)
from tests.models.baselines.tester import CLASSES, PAPER, MethodTester, images

SIZE = SIZES["tiny"]


def maps(model: TaskPrompter) -> list[torch.Tensor]:
    """The tasks' maps, segmentation first."""
    with torch.no_grad():
        return model.eval().encode(images())[2:]


def change(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def set_reweighting(decoder: PromptDecoder, weights: torch.Tensor) -> None:
    """Whatever the attention, task t takes weights[t, u] of task u's map."""
    decoder.reweight.fc2.weight.zero_()
    decoder.reweight.fc2.bias.copy_((weights - torch.eye(2)).flatten())


class TestTaskPrompter(MethodTester):
    method = TaskPrompter
    parameters = (152, 153)  # ours, ViT-B's layers being 85: the notes give none for this encoder

    def test_vit_base(self) -> None:
        with torch.device("meta"):
            model = TaskPrompter(PAPER, CLASSES)
        assert len(model.layers) == 12 and len(model.decoders) == 4
        assert model.prompts.shape == (1, 2, 768)

    def test_attention_rows_sum_to_one(self, model: TaskPrompter) -> None:
        affinities: list[Affinity] = []
        for layer in model.layers:
            layer.register_forward_hook(lambda _m, _i, result: affinities.append(result[2]))
        maps(model)
        assert len(affinities) == SIZE.depth
        for affinity in affinities:
            assert affinity.prompts.shape == (2, SIZE.heads, 2, 2)
            assert affinity.spatial.shape == (2, SIZE.heads, 2, 16)
            assert affinity.channel.shape == (2, 4, 2, SIZE.width)
            rows = affinity.prompts.sum(-1) + affinity.spatial.sum(-1)
            torch.testing.assert_close(rows, torch.ones_like(rows))
            torch.testing.assert_close(affinity.channel.sum(-1), torch.ones(2, 4, 2))

    @pytest.mark.parametrize("task", [0, 1])
    def test_a_prompt_matters_for_both_tasks(self, model: TaskPrompter, task: int) -> None:
        before = maps(model)
        with torch.no_grad():
            model.prompts[0, task] += torch.randn(SIZE.width)
        for one, other in zip(before, maps(model), strict=True):
            assert change(one, other) > 1e-5

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_channel_attention_updates_the_prompts(self, model: TaskPrompter, layer: int) -> None:
        before = maps(model)
        with torch.no_grad():
            model.layers[layer].channel.to_channels.bias += torch.randn(SIZE.width)
        for one, other in zip(before, maps(model), strict=True):
            assert change(one, other) > 1e-6

    def test_prompts_and_patches_attend_to_each_other(self) -> None:
        torch.manual_seed(0)
        layer = PromptedLayer(SIZE, 0.0, last=False)
        prompts, patches = torch.randn(1, 2, SIZE.width), torch.randn(1, 16, SIZE.width)
        prompts.requires_grad_()
        patches.requires_grad_()
        new_prompts, new_patches, _ = layer(prompts, patches, 4, 4)
        (to_prompt,) = torch.autograd.grad(new_prompts[0, 0].square().sum(), patches, retain_graph=True)
        (to_patch,) = torch.autograd.grad(new_patches[0, 0].square().sum(), prompts, retain_graph=True)
        (to_other,) = torch.autograd.grad(new_prompts[0, 0].square().sum(), prompts)
        assert (to_prompt[0].abs().sum(1) > 0).all()
        assert (to_patch[0].abs().sum(1) > 0).all()
        assert (to_other[0].abs().sum(1) > 0).all()

    def test_windows(self) -> None:
        x = torch.randn(2, 3, 4, 6)
        windows = to_windows(x)
        torch.testing.assert_close(windows[:, 1], x[:, :, :2, 3:].flatten(2), rtol=0, atol=0)  # upper right
        torch.testing.assert_close(from_windows(windows, 4, 6), x, rtol=0, atol=0)

    def test_maps_are_weighted_by_head_and_by_window(self) -> None:
        x = torch.randn(1, 6, 4, 4)
        pixels = torch.zeros(1, 2, 16)
        pixels[0, 1, 5] = 3  # head 1: channels 3 to 5; row 1, column 1
        expected = torch.zeros_like(x)
        expected[0, 3:, 1, 1] = 3 * x[0, 3:, 1, 1]
        torch.testing.assert_close(weight_pixels(x, pixels), expected)
        channels = torch.zeros(1, 4, 6)
        channels[0, 2, 4] = 3  # lower left window
        expected = torch.zeros_like(x)
        expected[0, 4, 2:, :2] = 3 * x[0, 4, 2:, :2]
        torch.testing.assert_close(weight_channels(x, channels), expected)

    @pytest.mark.parametrize("kind", ["spatial", "channel"])
    def test_decoding_reads_the_prompts_attention(self, kind: str) -> None:
        """Even attention reads the image as it is; attention of one task's prompt changes that task's map."""
        torch.manual_seed(0)
        decoder = PromptDecoder(SIZE).eval()
        with torch.no_grad():
            set_reweighting(decoder, torch.eye(2))
            image = torch.randn(1, SIZE.width, 4, 4)
            even = Affinity(
                torch.full((1, SIZE.heads, 2, 2), 1 / 18),
                torch.full((1, SIZE.heads, 2, 16), 1 / 18),
                torch.full((1, 4, 2, SIZE.width), 1 / SIZE.width),
            )
            read = decoder(image, even)
            torch.testing.assert_close(read[:, 0], decoder.fuse["seg"](torch.cat([image, image], 1)))
            uneven = {"spatial": even.spatial.clone(), "channel": even.channel.clone()}[kind]
            uneven[:, :, 0] = torch.rand_like(uneven[:, :, 0]).softmax(-1)
            other = decoder(image, even._replace(**{kind: uneven}))
        assert change(read[:, 0], other[:, 0]) > 1e-3
        torch.testing.assert_close(read[:, 1], other[:, 1], rtol=0, atol=0)

    def test_reweighting_mixes_the_tasks(self) -> None:
        torch.manual_seed(0)
        decoder = PromptDecoder(SIZE).eval()
        one, other = decoder.weights(torch.rand(2, SIZE.heads, 2, 2)).detach()
        assert change(one, other) > 1e-3  # it depends on the attention among the prompts
        image = torch.randn(1, SIZE.width, 4, 4)
        affinity = Affinity(torch.rand(1, SIZE.heads, 2, 2), torch.rand(1, SIZE.heads, 2, 16), torch.rand(1, 4, 2, 32))
        with torch.no_grad():
            set_reweighting(decoder, torch.eye(2))
            straight = decoder(image, affinity)
            set_reweighting(decoder, torch.tensor([[0.0, 1], [0.5, 0.5]]))
            mixed = decoder(image, affinity)
        torch.testing.assert_close(mixed[:, 0], straight[:, 1])
        torch.testing.assert_close(mixed[:, 1], straight.mean(1))

    @pytest.mark.parametrize("level", range(4))
    def test_every_level_is_decoded(self, model: TaskPrompter, level: int) -> None:
        before = maps(model)
        with torch.no_grad():
            set_reweighting(model.decoders[level], torch.zeros(2, 2))
        for one, other in zip(before, maps(model), strict=True):
            assert change(one, other) > 1e-3
