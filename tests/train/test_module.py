"""What an optimiser step does, and what it refuses to do."""

from __future__ import annotations

import copy
import logging
from functools import partial

import lightning
import pytest
import torch
from dictlearn_kernels import topk_encode

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.objectives.auxk import AuxK
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.train.callbacks.ema import EMACallback
from dictlearn.train.groups import parameter_groups
from dictlearn.train.module import DictionaryTraining
from dictlearn.train.schedules import Trapezoid
from dictlearn.train.spikes import WINDOW, Spikes
from dictlearn.train.trainee import Trainee
from dictlearn.types import Batch
from tests.dictionaries import SPARSITIES

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def batch(n: int = 64, width: int = 8, scale: float = 3.0) -> Batch:
    features = torch.nn.functional.normalize(torch.randn(24, width, generator=torch.manual_seed(7)))
    torch.seed()
    x = scale * (torch.rand(n, 24) * (torch.rand(n, 24) < 0.1)) @ features
    x = x[:, None]
    return Batch(x, None, torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64))


class Stream:
    """Batches as one loader; Lightning takes a list for several loaders."""

    def __init__(self, batches: list[Batch]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def trainee(sparsity: str = "topk", dead_after: int = 256, selection: str = "auto") -> Trainee:
    site = ("resid_post.1",)
    shape = Shape("sae", site, site, width=8, n_features=32, k=4, centre=True)
    dictionary = Dictionary(shape, SPARSITIES[sparsity])
    objective = Objective({"reconstruction": Reconstruction(), "auxk": AuxK(k_aux=4)})
    made = Trainee(dictionary, objective, "sqrt_width", dead_after, selection)
    made.begin(batch(1024))
    return made


def module(steps: int, **options) -> DictionaryTraining:
    trainees = options.pop("trainees", None) or {"dictionary": trainee()}
    optimiser = partial(torch.optim.Adam, lr=options.pop("lr", 1e-2), fused=True)
    return DictionaryTraining(trainees, optimiser, Trapezoid(0.1, 0.2), steps, **options)


def fit(training: DictionaryTraining, batches: list[Batch], accumulate: int = 1, **options) -> None:
    trainer = lightning.Trainer(
        accelerator=options.pop("accelerator", "cpu"),
        max_steps=len(batches) // accumulate,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(training, Stream(batches))


def state(training: DictionaryTraining) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.trainees.state_dict().items()}


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_training_lowers_the_error(sparsity):
    training = module(60, trainees={"dictionary": trainee(sparsity)})
    before = training.trainee()(batch(2048), 0.0)
    fit(training, [batch() for _ in range(60)])
    after = training.trainee()(batch(2048), 1.0)
    assert after.loss < 0.6 * before.loss
    assert set(training.metrics) >= {"loss", "loss/auxk", "fvu", "l0", "dead", "lr", "tokens"}
    assert training.metrics["tokens"] == 60 * 64


def test_the_share_of_rows_that_low_precision_left_open_is_a_metric(monkeypatch):
    """Of those since the step that was logged before."""
    batches = [batch(1024) for _ in range(4)]
    exact = module(4, trainees={"dictionary": trainee(selection="float32")})
    fit(exact, batches)
    assert "recomputed" not in exact.metrics
    low = {"dictionary": trainee(selection="bfloat16")}
    training = module(4, trainees=low)
    fit(training, batches)
    assert 0 <= training.metrics["recomputed"] <= 1
    assert topk_encode.flagged() == (0, 0)  # counted anew after each logged step
    monkeypatch.setattr(topk_encode, "taken", lambda k, dtype: k)  # too few to prove anything by
    hard = {"dictionary": trainee(selection="bfloat16")}
    training = module(4, trainees=hard)
    fit(training, batches)
    assert training.metrics["recomputed"] > 0.01


def test_every_parameter_is_in_one_group():
    groups = parameter_groups(module(1))
    names = {id(p): name for name, p in module(1).named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(poison):
    good = [batch() for _ in range(6)]
    bad = batch()
    bad.x_NSD[3, 0, 2] = poison
    training = module(7)
    seen = []

    class Watch(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            moments = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])
            seen.append((state(pl_module), moments))

    fit(training, [*good[:3], bad, *good[3:]], callbacks=[Watch()])
    (before, moments_before), (after, moments_after) = seen[2], seen[3]
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    for key, entry in moments_before.items():
        for name, tensor in entry.items():
            assert torch.equal(tensor, moments_after[key][name]), name
    assert int(training.refused) == 1
    weights = "dictionary.dictionary.encoder.W_enc"
    assert not torch.equal(seen[-1][0][weights], after[weights])  # and training goes on


def test_a_run_that_only_refuses_stops():
    bad = batch()
    bad.x_NSD.fill_(float("nan"))
    with pytest.raises(ValueError, match="3 steps in a row had a loss or gradient"):
        fit(module(9, max_refused=3), [bad] * 9)


def test_a_parameter_that_is_not_finite_refuses_the_step_and_is_named():
    training = module(4, max_refused=3)
    b_enc = training.trainee().dictionary.encoder.b_enc
    b_enc.data[0, 3] = float("nan")  # its feature is never selected, so the loss is finite
    before = state(training)
    with pytest.raises(ValueError, match=r"^dictionary.encoder.b_enc: not finite, so 3 steps"):
        fit(training, [batch() for _ in range(4)])
    assert all(
        torch.equal(tensor.nan_to_num(), before[name].nan_to_num())
        for name, tensor in state(training).items()
        if "tokens_since" not in name and "refused" not in name
    )


def test_a_gradient_that_is_not_finite_is_refused_even_when_the_loss_is():
    training = module(4)
    weights = training.trainee().dictionary.encoder.W_enc
    before = state(training)
    weights.register_hook(lambda gradient: gradient * float("inf"))
    fit(training, [batch() for _ in range(4)])
    assert int(training.refused) == 4
    for name, tensor in state(training).items():
        assert torch.equal(tensor, before[name]), name


def test_accumulated_batches_make_the_gradient_of_one_large_batch():
    whole = batch(192)
    parts = [whole.rows(i, i + 64) for i in (0, 64, 128)]
    one, several = module(1), module(1)
    several.load_state_dict(one.state_dict())
    fit(one, [whole])
    fit(several, parts, accumulate=3)
    for name, tensor in state(several).items():
        if not name.endswith("start_fvu"):  # which is a batch's
            torch.testing.assert_close(tensor, state(one)[name], msg=name)


def test_silence_is_counted_in_tokens_once_a_step():
    training = module(3)
    made = training.trainee()
    with torch.no_grad():
        made.dictionary.encoder.b_enc[0, 5] = -1e3  # never fires
    fit(training, [batch() for _ in range(6)], accumulate=2)
    assert int(made.tokens_since_fired_SF[0, 5]) == 6 * 64
    assert bool(made.dead_SF[0, 5])
    assert int(made.tokens_since_fired_SF.min()) == 0


def test_decoder_rows_have_norm_one_after_the_last_step():
    training = module(5)
    fit(training, [batch() for _ in range(5)])
    norms = training.trainee().dictionary.decoder.norms()
    assert (norms - 1).abs().max() < 1e-6


def test_the_average_of_the_weights_is_what_training_leaves():
    """Against the recursion written out over the weights that each step left."""
    torch.manual_seed(0)
    batches = [batch() for _ in range(30)]

    class Weights(lightning.Callback):
        after: list[torch.Tensor] = []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.after.append(
                pl_module.trainee().dictionary.decoder.W_dec.detach().double().clone()
            )

    training = module(30)
    plain = copy.deepcopy(training)
    fit(training, batches, callbacks=[Weights(), EMACallback(decay=0.8)])
    expected, *later = Weights.after
    for updates, weights in enumerate(later, 1):
        decay = min(0.8, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * weights
    W_dec = training.trainee().dictionary.decoder.W_dec
    torch.testing.assert_close(W_dec.double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(W_dec.double(), Weights.after[-1], atol=1e-3)

    fit(plain, batches)
    silent = [t.trainee().tokens_since_fired_SF for t in (training, plain)]
    assert torch.equal(*silent)  # counters are those of the run without an average
    frozen = training.trainee().inference_form(lambda: iter([batch(256)]))
    ratio = (
        training.trainee().normaliser.input_scale_S / training.trainee().normaliser.output_scale_T
    )
    norms = frozen.decoder.norms()
    torch.testing.assert_close(norms, ratio[:, None].expand_as(norms))


def test_gradients_are_clipped_by_their_global_norm():
    training = module(1, clip_norm=1e-3)
    norms = []
    original = torch.optim.Adam.step

    def step(self, closure=None):
        loss = closure()  # type: ignore
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients))
        return original(self, lambda: loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        fit(training, [batch()])
    torch.testing.assert_close(norms[0], torch.tensor(1e-3))


def test_several_dictionaries_share_one_stream():
    alone, beside = trainee("topk"), trainee("batchtopk")
    copied = copy.deepcopy(alone)
    batches = [batch() for _ in range(4)]
    together = module(4, trainees={"a": alone, "b": beside}, clip_norm=None)
    apart = module(4, trainees={"a": copied}, clip_norm=None)
    fit(together, batches)
    fit(apart, batches)
    for name, tensor in copied.state_dict().items():
        assert torch.equal(tensor, alone.state_dict()[name]), name
    assert {"a/fvu", "b/fvu"} <= set(together.metrics)


def test_bf16_autocast_trains_close_to_float32():
    batches = [batch() for _ in range(40)]
    twins = [module(40), module(40)]
    twins[1].load_state_dict(twins[0].state_dict())
    losses = []
    for training, precision in zip(twins, ("32-true", "bf16-mixed"), strict=True):
        fit(training, batches, precision=precision)
        losses.append(training.trainee()(batches[0], 1.0).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_the_trapezoid():
    shape = Trapezoid(warmup=0.1, decay=0.5, final=0.2)
    values = [shape(step, 10) for step in range(11)]
    assert values[0] == 0.5 and values[1:6] == [1.0] * 5
    assert values[6] == pytest.approx(0.2 + 0.8 * 4 / 5)
    assert values[10] == pytest.approx(0.2)
    assert [Trapezoid(4, 0)(step, 100) for step in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]


def spiky(steps: int, at: int) -> list[Batch]:
    """The same batches each time; that of step `at` is a hundred times as large."""
    draws = torch.Generator().manual_seed(5)
    made = []
    for step in range(steps):
        x = torch.randn(32, 1, 8, generator=draws) * (100 if step == at else 1)
        zeros = torch.zeros(32, dtype=torch.int64)
        made.append(Batch(x, None, zeros, zeros))
    return made


def test_a_loss_spike_is_refused_where_the_policy_is_on():
    torch.manual_seed(0)
    first = trainee()
    batches = spiky(140, 135)

    def run(batches: list[Batch], **options) -> DictionaryTraining:
        training = module(140, trainees={"dictionary": copy.deepcopy(first)}, **options)
        fit(training, batches)
        return training

    refusing, taking = run(batches, spike_sigma=6.0), run(batches)
    assert (int(refusing.refused), int(taking.refused)) == (1, 0)
    assert refusing.metrics["refused_steps"] == 1
    early = run(spiky(140, 100), spike_sigma=6.0)  # nothing to compare with yet
    assert int(early.refused) == 0
    # Where nothing is a spike the policy changes no bit.
    calm = spiky(140, -1)
    watched, alone = run(calm, spike_sigma=6.0), run(calm)
    assert int(watched.refused) == 0
    for name, tensor in state(alone).items():
        assert torch.equal(tensor, state(watched)[name]), name
    assert not alone.spikes.state_dict()


def test_the_policy_compares_with_the_last_steps_that_were_taken():
    policy = Spikes(6.0)
    for step in range(WINDOW):
        assert not policy.is_spike(1e9, 1e9)
        policy.accept(1.0 + 0.01 * (step % 2), 2.0)
    assert (
        policy.is_spike(1.2, 2.0) and policy.is_spike(1.0, 2.1) and not policy.is_spike(1.02, 2.0)
    )
    again = Spikes(6.0)
    again.load_state_dict(policy.state_dict())  # what a checkpoint holds is all there is
    assert again.is_spike(1.2, 2.0) and not again.is_spike(1.02, 2.0)
    assert not policy.is_spike(50.0, 2.0, stage=1)  # another loss begins
    policy.accept(50.0, 2.0, stage=1)
    assert not policy.is_spike(90.0, 2.0, stage=1)


def test_the_first_steps_fvu_is_kept():
    training = module(3)
    fit(training, [batch() for _ in range(3)])
    assert 0.1 < float(training.trainee().start_fvu) < 10
