import math

import pytest
import torch

from btinet.models.baselines.dynashare import BlockGate, DynaShare
from tests.models.baselines.tester import MethodTester, images


def set_policy(model: DynaShare, task: str, execute: float) -> None:
    """Positive: the task executes every block, for every image; negative: none."""
    with torch.no_grad():
        for gate in model.gating[task].values():
            gate.policy.copy_(torch.tensor([[execute, -execute]]))
            gate.image[-1].weight.zero_()
            gate.image[-1].bias.copy_(torch.tensor([abs(execute), -abs(execute)]))


class TestDynaShare(MethodTester):
    method = DynaShare
    parameters = (28.2, 28.7)  # the notes have no band: encoder, U-Net's decoder, and gates

    def test_gates_are_binary_and_random_only_in_training(self) -> None:
        gate = BlockGate(4)
        x = torch.randn(4, 4, 2, 2).repeat(50, 1, 1, 1)
        torch.manual_seed(0)
        with torch.no_grad():
            drawn = gate.image_gate(x)
            assert set(drawn.tolist()) == {0.0, 1.0}
            assert 0.7 < drawn.mean() < 1  # starts likely open
            assert {gate.task_gate().item() for _ in range(100)} == {0.0, 1.0}
            gate.eval()
            assert set(gate.image_gate(x).tolist()) == {1.0} and gate.task_gate() == 1

    def test_a_block_runs_for_the_images_that_its_gate_lets_through(self) -> None:
        gate = BlockGate(1).eval()
        with torch.no_grad():
            for parameter in gate.image.parameters():
                parameter.zero_()
            gate.image[0].weight[0] = 1.0
            gate.image[2].weight[0, 0] = 1.0  # execute where the mean is positive
            x = torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 3, 3)
            assert torch.equal(gate(x, lambda x: x + 5)[:, 0, 0, 0], torch.tensor([-1.0, 7.0]))
            gate.policy.copy_(torch.tensor([[-1.0, 1.0]]))  # the task leaves the block out, whatever the image
            assert torch.equal(gate(x, lambda x: pytest.fail("executed")), x)

    def test_all_gates_open_is_the_plain_encoder(self, model: DynaShare) -> None:
        model.eval()
        for task in ("seg", "clf"):
            set_policy(model, task, 5.0)
        with torch.no_grad():
            plain, gated = model.encoder(images()), model.encode(images())
        for a, b in zip([*plain, plain[-1]], gated, strict=True):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("task", ["seg", "clf"])
    def test_each_task_has_its_own_policy(self, model: DynaShare, task: str) -> None:
        model.eval()
        for name in ("seg", "clf"):
            set_policy(model, name, 5.0)
        with torch.no_grad():
            before = model.encode(images())
            set_policy(model, task, -5.0)
            after = model.encode(images())
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same[-2:] == ([False, True] if task == "seg" else [True, False])  # the two tasks' P5

    def test_the_task_losses_train_the_gates(self, model: DynaShare) -> None:
        torch.manual_seed(0)
        output = model.train()(images())
        output.seg_logits.sum().backward()
        gradients = {
            task: sum(
                float(g.policy.grad.abs().sum()) for g in model.gating[task].values() if g.policy.grad is not None
            )
            for task in ("seg", "clf")
        }
        assert gradients["seg"] > 0 and gradients["clf"] == 0

    def test_skipping_and_sharing_are_rewarded(self, model: DynaShare) -> None:
        """By hand, for policies of one probability a task."""
        blocks = len(model.gating["seg"])
        p = {"seg": 0.9, "clf": 0.6}
        for task, probability in p.items():
            logit = torch.tensor(probability).logit().item()
            with torch.no_grad():
                for gate in model.gating[task].values():
                    gate.policy.copy_(torch.tensor([[logit, 0.0]]))
        sparsity = blocks * (math.log(0.9) + math.log(0.6))
        sharing = sum((blocks - layer) / blocks * 0.3 for layer in range(blocks))
        assert model.penalty().item() == pytest.approx(0.05 * sparsity + 0.05 * sharing, rel=1e-5)
        assert model.train()(images()).penalty is not None
        assert model.eval()(images()).penalty is None
