"""open_clip's own training loop with a steered loss is the loop by hand, on two processes, and resumes its memory."""

import tempfile
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from loops import on_two_ranks, weights_of
from open_clip import CLIP
from open_clip.loss import ClipLoss
from open_clip_train.train import train_one_epoch
from tiny_models import TINY
from torch import nn

from steering import KL, DualMemory, GlobalContrastive, InfoNCE, Pairs, Steerer, UserError
from steering.adapters.open_clip import STATE, SteeredClipLoss

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of hosts
NUMBER, BATCH = 16, 8


def network(seed: int) -> Any:
    torch.manual_seed(seed)
    return CLIP(TINY["embed_dim"], TINY["vision_cfg"], TINY["text_cfg"], output_dict=True).double()  # type: ignore


class Loader:
    """Batches of images and texts, with ids where asked, and what open_clip reads of a loader."""

    num_samples = NUMBER

    def __init__(self, batch: int, part: slice = slice(None), ids: bool = False):
        generator = torch.Generator().manual_seed(5)
        images = torch.randn(NUMBER, 3, 32, 32, generator=generator, dtype=torch.float64)
        texts = torch.randint(1, 100, (NUMBER, 77), generator=generator)
        columns = [images, texts, torch.arange(NUMBER)] if ids else [images, texts]
        steps = [[column.split(BATCH)[k][part] for column in columns] for k in range(NUMBER // BATCH)]
        self.batches = [tuple(x[k : k + batch] for x in step) for step in steps for k in range(0, len(step[0]), batch)]
        self.num_batches = len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def options(**changed: Any) -> Any:
    plain = {"device": "cpu", "precision": "fp64", "distill": True, "accum_freq": 1, "skip_scheduler": True}
    rest = {
        "grad_clip_norm": None,
        "horovod": False,
        "rank": 0,
        "local_rank": 0,
        "log_every_n_steps": 1,
        "wandb": False,
    }
    return SimpleNamespace(**{**plain, **rest, "batch_size": BATCH, "world_size": 1, "log_local": False} | changed)


def trained(loss: nn.Module, loader: Any, model: Any, optimizer: Any, **changed: Any) -> None:
    """One epoch of open_clip's."""
    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None)}
    train_one_epoch(model, data, loss, 0, optimizer, None, None, network(1), options(**changed))


def by_hand(steerer: Steerer, epochs: int = 1, ids: bool = False) -> torch.Tensor:
    model, reference = network(0), network(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(epochs):
        for images, texts, numbers in Loader(BATCH, ids=True):
            with torch.no_grad():
                left, right, _ = reference(images, texts).values()
            outputs = model(images, texts)
            pairs = Pairs(outputs["image_features"], outputs["text_features"], outputs["logit_scale"])
            optimizer.zero_grad()
            steerer(pairs, Pairs(left, right), ids=numbers if ids else None).loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
    return weights_of(model)


RULES = [InfoNCE(), GlobalContrastive(radius=2.0), KL(temperature=0.1)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_an_epoch_of_open_clip_is_the_loop_by_hand(rule, caplog):
    model = network(0)
    with caplog.at_level("INFO"):
        trained(SteeredClipLoss(Steerer(rule)), Loader(BATCH), model, torch.optim.SGD(model.parameters(), 0.1))
    assert torch.allclose(weights_of(model), by_hand(Steerer(rule)), rtol=1e-6, atol=1e-9)
    logged = [
        float(x.message.split("Contrastive_loss: ")[1].split()[0]) for x in caplog.records if "Contr" in x.message
    ]
    assert len(logged) == 2 and min(logged) > 0


def test_without_a_reference_info_nce_is_open_clips_own_loss():
    results = []
    for loss in (SteeredClipLoss(Steerer("info_nce", reference_scale=0)), ClipLoss()):
        model = network(0)
        trained(loss, Loader(BATCH), model, torch.optim.SGD(model.parameters(), 0.1), distill=False)
        results.append(weights_of(model))
    assert torch.allclose(results[0], results[1], rtol=1e-6, atol=1e-9)


def test_accumulated_micro_batches_are_one_batch():
    """open_clip gives the loss the features of all of them, with the gradient of one at a time."""
    loss = SteeredClipLoss(Steerer("kl(temperature=0.1)"), None)
    wide = SteeredClipLoss(Steerer("kl(temperature=0.1)"), None)
    loss.steerer.reference_scale = wide.steerer.reference_scale = 0.0
    results = []
    for steered, size, freq in ((wide, BATCH, 1), (loss, 2, 4)):
        model = network(0)
        descent = torch.optim.SGD(model.parameters(), 0.1)
        trained(steered, Loader(size), model, descent, distill=False, accum_freq=freq)
        results.append(weights_of(model))
    assert torch.allclose(results[0], results[1], rtol=1e-6, atol=1e-9)


def on_a_rank() -> torch.Tensor:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = torch.nn.parallel.DistributedDataParallel(network(0))
    part, results = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2), []
    for rule in RULES[1:]:  # of which the second gives the scale no gradient
        trained(SteeredClipLoss(Steerer(rule)), Loader(BATCH, part), model, torch.optim.SGD(model.parameters(), 0.1))
        results.append(weights_of(model.module))
    return results[0]


def test_two_processes_are_the_loop_by_hand(tmp_path):
    for result in on_two_ranks(on_a_rank, tmp_path):
        assert torch.allclose(result, by_hand(Steerer(RULES[1])), rtol=1e-6, atol=1e-9)


def test_ids_reach_the_memory_and_both_survive_a_checkpoint():
    """As open_clip writes it: the model's and the optimizer's state, and nothing of the loss."""
    make = lambda: Steerer(RULES[1], memory=DualMemory(2 * NUMBER, gamma=0.5))  # noqa: E731
    model, loss = network(0), SteeredClipLoss(make())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss.keep_in(optimizer)
    loader = loss.batches(Loader(BATCH, ids=True))
    assert (loader.num_samples, loader.num_batches) == (NUMBER, 2)
    trained(loss, loader, model, optimizer)
    with tempfile.TemporaryFile() as file:
        torch.save({"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        checkpoint = torch.load(file, weights_only=True)
    assert STATE in checkpoint["optimizer"] and not [name for name in checkpoint["state_dict"] if "steer" in name]

    model, loss = network(3), SteeredClipLoss(make())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss.keep_in(optimizer)
    model.load_state_dict(checkpoint["state_dict"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    trained(loss, loss.batches(Loader(BATCH, ids=True)), model, optimizer)
    assert torch.allclose(weights_of(model), by_hand(make(), epochs=2, ids=True), rtol=1e-6, atol=1e-9)
    del checkpoint["optimizer"][STATE]
    with pytest.raises(UserError, match="this checkpoint has no steerer: resume from one that was saved with steering"):
        optimizer.load_state_dict(checkpoint["optimizer"])


def test_a_reference_may_be_asked_by_id_in_place_of_a_teacher():
    reference, features = network(1), []
    with torch.no_grad():
        for images, texts in Loader(BATCH):
            features.append(list(reference(images, texts).values())[:2])
    left, right = (torch.cat(side) for side in zip(*features, strict=True))
    loss = SteeredClipLoss(Steerer(RULES[0]), lambda batch: Pairs(left[batch.ids], right[batch.ids]))
    model = network(0)
    batches = loss.batches(Loader(BATCH, ids=True))
    trained(loss, batches, model, torch.optim.SGD(model.parameters(), 0.1), distill=False)
    assert torch.allclose(weights_of(model), by_hand(Steerer(RULES[0])), rtol=1e-6, atol=1e-9)


def test_the_task_of_open_clip_4_calls_it_in_the_same_way():
    """By its contract, as it is not on PyPI: batches and outputs are dictionaries, the losses end in ``_loss``."""
    loss, model, teacher = SteeredClipLoss(Steerer(RULES[0])), network(0), network(1)
    images, texts, ids = Loader(BATCH, ids=True).batches[0]
    (batch,) = loss.batches([{"image": images, "text": texts, "index": ids}])
    assert sorted(batch) == ["image", "text"] and loss.ids is ids
    outputs = model(**batch)
    with torch.no_grad():
        outputs |= {f"dist_{name}": x for name, x in teacher(**batch).items()}
    losses = loss(**outputs, output_dict=True)
    torch.stack([x for name, x in losses.items() if name.endswith("_loss")]).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    expected = network(0)
    pairs, reference = (net(images, texts) for net in (expected, teacher))
    names = ("image_features", "text_features", "logit_scale")
    steered = Steerer(RULES[0])(Pairs(*(pairs[x] for x in names)), Pairs(*(reference[x].detach() for x in names[:2])))
    steered.loss.backward()
    torch.optim.SGD(expected.parameters(), 0.1).step()
    assert torch.allclose(weights_of(model), weights_of(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {},
            r"steering needs the features of a teacher \(--distill-model, DistillCLIPTask\), or a reference",
        ),
        ({"logit_bias": torch.zeros(())}, r"steering takes the features and the scale of CLIP, got logit_bias, too"),
        ({"ids": torch.arange(3)}, r"got 3 ids for 2 pairs: with ids accum_freq is 1"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    loss, features = SteeredClipLoss(Steerer("info_nce")), nn.functional.normalize(torch.randn(2, 4), dim=-1)
    loss.ids = changes.pop("ids", None)
    with pytest.raises(UserError, match=message) as error:
        loss(features, features, torch.tensor(10.0), **changes, output_dict=True)
    assert "\n" not in str(error.value)
