"""One iteration's loss and gradient against plain autograd written out."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from ld3m import networks
from ld3m.chain import reverse_chain
from ld3m.data import ImageSet
from ld3m.distillation import job as preparation
from ld3m.distillation import objectives
from ld3m.distillation.job import objective_of, prepare
from ld3m.distillation.objectives import ClassMatching, rows_of
from ld3m.matching import dm, dsa
from ld3m.spaces import latent

STEPS, GUIDANCE, IPC = 3, 2.0, 2


@pytest.fixture
def job(tiny_prior, coloured):
    """A distillation of three classes that sees all real images of a class (11, one is held out) in every iteration."""
    settings = {"prior": tiny_prior, "steps": STEPS, "guidance_scale": GUIDANCE, "ipc": IPC, "width": 4}
    settings |= {"class_ids": (0, 3, 1), "augment": False, "evaluate": "none", "real_batch": 100}
    return lambda **more: prepare(coloured, settings | more, out=None, resume=False, overwrite=False)


@pytest.fixture
def noise(monkeypatch):
    """The noise of all images, as the chain is given it, by the first latent of each image."""
    seen = []

    def spy(prior, latents, conditioning, **options):
        seen.append(options["noise"])
        return reverse_chain(prior, latents, conditioning, **options)

    monkeypatch.setattr(latent, "reverse_chain", spy)
    return seen


@pytest.fixture
def network(monkeypatch):
    """The network that every iteration gets."""
    built = networks.build("ConvNet", num_classes=3, resolution=16, width=4, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(objectives.networks, "build", lambda *_args, **_kwargs: built)
    return built


def plain_render(prior, latents, conditioning, noise):
    """DDIM with guidance and injection of q(Z) into the clean estimate, step by step."""
    alphas = [prior.alphas_cumprod[1 + 1000 * i // STEPS].item() for i in range(STEPS)]
    null, quantised = prior.null_conditioning(len(latents)), prior.quantize(latents)
    state = alphas[-1] ** 0.5 * latents + (1 - alphas[-1]) ** 0.5 * noise
    for i in reversed(range(STEPS)):
        previous = alphas[i - 1] if i else prior.alphas_cumprod[0].item()
        uncond, cond = (prior.predict_noise(state, 1 + 1000 * i // STEPS, c) for c in (null, conditioning))
        eps = uncond + GUIDANCE * (cond - uncond)
        clean = (state - (1 - alphas[i]) ** 0.5 * eps) / alphas[i] ** 0.5
        weight = i / (STEPS - 1)
        clean = (1 - weight) * clean + weight * quantised
        state = previous**0.5 * clean + (1 - previous) ** 0.5 * eps
    return ((prior.decode(state) + 1) / 2).clamp(0, 1)


def plain_dm(network, real, synthetic, _label):
    return (network.embed(synthetic).mean(0) - network.embed(real).mean(0)).square().sum()


def plain_dc(network, real, synthetic, label):
    def gradients(images, create_graph):
        loss = F.cross_entropy(network(images), torch.full((len(images),), label))
        return torch.autograd.grad(loss, list(network.parameters()), create_graph=create_graph)

    total = 0
    for a, b in zip(gradients(synthetic, True), gradients(real, False), strict=True):
        if a.ndim in (2, 4):
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    return total


def gradients_of(space):
    return {name: parameter.grad.clone() for name, parameter in space.parameters.items()}


@pytest.mark.parametrize(("algorithm", "plain"), [("dm", plain_dm), ("dc", plain_dc)])
def test_the_gradient_is_that_of_plain_autograd(algorithm, plain, job, noise, network, tiny_prior, relative_error):
    made = job(algorithm=algorithm)
    loss = objective_of(made, progress=False).backward(0)
    got = gradients_of(made.space)

    leaves = [p.detach().clone().requires_grad_() for p in made.space.parameters.values()]
    rendered = made.dataset.normalize(plain_render(tiny_prior, *leaves, torch.cat(noise)))
    train = made.dataset.train
    expected = sum(
        plain(network, made.dataset.normalize(train.batch(train.of_class(k))), rendered[k * IPC : (k + 1) * IPC], k)
        for k in range(3)
    )
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for (name, grad), leaf in zip(got.items(), leaves, strict=True):
        assert leaf.grad.flatten(1).norm(dim=1).min() > 0
        assert relative_error(grad, leaf.grad) < 2e-4, name


@pytest.mark.parametrize("algorithm", ["dm", "dc"])
def test_the_gradient_does_not_depend_on_what_is_held_at_once(algorithm, job, relative_error):
    found = []
    for classes, retain, micro_batch in [(3, 1.0, None), (1, 0.0, 1), (2, 0.4, 3)]:
        made = job(algorithm=algorithm, augment=True)
        made.space.retain, made.space.micro_batch = retain, micro_batch
        objective = ClassMatching(
            made.space, made.dataset, made.config, classes_in_flight=classes, device=torch.device("cpu")
        )
        found.append((objective.backward(5).item(), gradients_of(made.space)))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name, gradient in gradients.items():
            assert relative_error(gradient, found[0][1][name]) < 2e-5, name


def test_gradients_add_up(job):
    """The loop clears them; the objective does not."""
    made = job(algorithm="dm")
    objective = objective_of(made, progress=False)
    losses = [objective.backward(0)]
    once = gradients_of(made.space)
    losses.append(objective.backward(0))
    assert losses[0] == losses[1]
    for name, gradient in gradients_of(made.space).items():
        torch.testing.assert_close(gradient, 2 * once[name])


@pytest.fixture
def draws(monkeypatch, noise):
    """What was drawn of each kind, in the order of the draws; of real images and of augmentation, for each class."""
    seen = {"noise": noise, "network": [], "real": [], "augmentation": []}

    def match(network, *sides, **options):
        seen["network"].append(torch.cat([tensor.flatten() for tensor in network.state_dict().values()]))
        return dm_loss(network, *sides, **options)

    def batch(self, picks):
        if len(self.labels[picks].unique()) == 1:  # not the images that the space starts from
            seen["real"].append(torch.searchsorted(self.of_class(self.labels[picks[0]]), picks))
        return plain_batch(self, picks)

    def draw(*arguments, **options):
        drawn = dsa_draw(*arguments, **options)
        seen["augmentation"].append(torch.cat([parameter.flatten().double() for parameter in drawn.parameters]))
        return drawn

    dm_loss, plain_batch, dsa_draw = dm.dm_loss, ImageSet.at, dsa.draw
    monkeypatch.setattr(dm, "dm_loss", match)
    monkeypatch.setattr(ImageSet, "at", batch)
    monkeypatch.setattr(objectives.dsa, "draw", draw)
    return seen


@pytest.mark.parametrize(("kind", "each"), [("noise", 1), ("network", 1), ("real", 3), ("augmentation", 3)])
def test_every_iteration_draws_anew(kind, each, job, draws):
    objective = objective_of(job(algorithm="dm", real_batch=4, augment=True), progress=False)
    losses = [objective.backward(iteration) for iteration in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    drawn = draws[kind]
    assert len(drawn) == 3 * each
    assert all(torch.equal(first, again) for first, again in zip(drawn[:each], drawn[2 * each :], strict=True))
    assert not any(torch.equal(a, b) for a, b in combinations(drawn[: 2 * each], 2))


def test_both_sides_of_a_class_see_one_augmentation(job, monkeypatch):
    made, seen = job(algorithm="dm", augment=True), []
    monkeypatch.setattr(objectives.dsa, "apply", lambda images, draw: (seen.append(draw), dsa_apply(images, draw))[1])
    objective_of(made, progress=False).backward(0)
    real, synthetic = seen[:3], seen[3:]
    assert [id(draw) for draw in real] == [id(draw) for draw in synthetic]
    assert len({id(draw) for draw in seen}) == 3
    assert all(len(parameter) == 1 for draw in seen for parameter in draw.parameters)


dsa_apply = dsa.apply


def test_the_real_batch_has_that_many_different_images_of_the_class(job, monkeypatch):
    made, batches = job(algorithm="dm", real_batch=5), []
    train = made.dataset.train
    monkeypatch.setattr(type(train), "at", lambda self, picks: (batches.append(picks), self.images[picks])[1])
    objective = objective_of(made, progress=False)
    objective.backward(0)
    objective.backward(1)
    for k, picks in enumerate(batches):
        assert len(set(picks.tolist())) == 5
        assert (train.labels[picks] == k % 3).all()
    assert {tuple(sorted(p.tolist())) for p in batches[:3]} != {tuple(sorted(p.tolist())) for p in batches[3:]}


def test_a_small_class_leaves_the_others_their_real_batch(coloured, tiny_prior, network, relative_error):
    images, labels = coloured
    kept = (labels != 1) | (torch.arange(36) < 9)
    settings = {"prior": tiny_prior, "steps": 2, "ipc": IPC, "width": 4, "class_ids": (0, 3, 1), "augment": False}
    settings |= {"algorithm": "dm", "evaluate": "none", "real_batch": 100, "holdout": 0.0}
    made = prepare((images[kept], labels[kept]), settings, out=None, resume=False, overwrite=False)
    loss = objective_of(made, progress=False).backward(0)
    train, rendered = made.dataset.train, made.dataset.normalize(made.space.render(torch.arange(6), (0,)))
    members = [train.of_class(k) for k in range(3)]
    assert [len(index) for index in members] == [12, 3, 12]
    expected = sum(
        plain_dm(network, made.dataset.normalize(train.batch(members[k])), rendered[k * IPC : (k + 1) * IPC], k)
        for k in range(3)
    )
    got = gradients_of(made.space)
    for parameter in made.space.parameters.values():
        parameter.grad = None
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    for name, grad in gradients_of(made.space).items():
        assert relative_error(got[name], grad) < 2e-4, name


def test_trajectories_are_of_one_expert_and_span_its_epochs(job, monkeypatch, tmp_path):
    calls = []

    def loss(network, start, target, images, labels, student_lr, batches, **_options):
        calls.append((start, target, labels, batches))
        return images.square().mean() * student_lr

    settings = {"algorithm": "mtt", "num_experts": 2, "expert_training_epochs": 4, "expert_epochs": 2}
    settings |= {"max_start_epoch": 3, "student_steps": 5, "student_lr": 0.25, "space": "autoencoder"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            preparation, "_check_experts", lambda *_: None
        )  # made below, in the folder that they are read from
        made = job(**settings)
    made = replace(made, config=replace(made.config, experts=str(tmp_path)))
    preparation.train_experts(made.dataset, tmp_path, width=4, num_experts=2, epochs=4, progress=False)
    objective = objective_of(made, progress=False)
    monkeypatch.setattr(objectives, "mtt_loss", loss)
    losses = [objective.backward(iteration).item() for iteration in range(30)]

    stored = {(e, k): objective.experts.pair(e, k, 2) for e in range(2) for k in range(3)}
    found = []
    for start, target, labels, batches in calls:
        (which,) = [key for key, pair in stored.items() if all(map(torch.equal, pair[0], start))]
        assert all(map(torch.equal, stored[which][1], target))
        assert labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert [sorted(indices.tolist()) for indices in batches] == [list(range(6))] * 5
        found.append(which)
    assert set(found) == set(stored)
    (name, student_lr, rate) = objective.parameters[0]
    assert (name, student_lr.item(), rate) == ("student_lr", 0.25, 1e-6)
    assert student_lr.grad.item() == pytest.approx(sum(losses) / 0.25, rel=1e-4)


def test_rows_are_class_major():
    assert rows_of(torch.tensor([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]
