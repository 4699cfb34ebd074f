"""Hooks, the contract between the core and its plugins: who answers each, when, with which shapes.

A plugin implements the hooks it needs as plain functions marked ``@posttrain.hookimpl`` and takes only the arguments it
uses, in any order. Letters in shapes: B examples of this micro-batch (online hooks: rollouts of the whole step, over
all devices), T trained tokens of the longest one, n tokens of a chunk, V vocabulary.
"""

import pluggy

hookspec = pluggy.HookspecMarker("posttrain")
hookimpl = pluggy.HookimplMarker("posttrain")


@hookspec(firstresult=True)
def posttrain_config():
    """Deprecated: return the class of the method's options. The frozen dataclass named ``Config`` is found by its name.

    A module with this hook works until the hook is removed; a run warns of it in one line.
    """


@hookspec(firstresult=True)
def posttrain_rows(rows, config):
    """Offline: return the rows that the run trains on, for a method that rewrites, selects or extends them.

    Called once for the training data and once for the held-out rows, before tokenisation. ``rows`` is a list of dicts,
    all of them, already checked against the card's schema; each has ``row``, its number, which rows derived from it
    keep. The result has rows of the same schema: fewer, more, with other prompts, or with further columns. Random
    numbers may only come from a generator of its own with a fixed seed.
    """


@hookspec(firstresult=True)
def posttrain_loss(batch, policy, reference, config, step, inner):
    """Return the unreduced loss of a micro-batch, or ``(loss, metrics)``.

    The loss is a tensor ``(B,)``, one value an example, averaged by the core over the examples of the whole
    optimiser step; or ``PerToken(values, mask)``, both ``(B, T)``, averaged over its unmasked tokens; or a dict of
    these by name, each reduced in its own unit and added. ``metrics`` are tensors, one value an example or PerToken,
    averaged in the same way for the log.

    ``policy`` and ``reference`` hold a view per role of the schema: ``policy.completion``, or ``policy.chosen`` and
    ``policy.rejected``, with ``.logps``, ``.mask``, ``.sum``, ``.mean``, ``.lengths``, ``.score`` under a reward
    head, and ``.scores`` ``(B, T)`` under a head for steps. ``reference`` is None where the card does not need one.
    ``batch`` holds the columns of the data and what other hooks added: ``batch.advantages``, ``batch.old_logps``.
    ``step`` says ``number``, ``total`` and ``training``. Online methods without this hook have
    ``posttrain.contract.surrogate.policy_loss``.

    ``inner`` is for modifiers: ``(terms by name, metrics)`` of the loss that they change. A modifier that does not
    take it replaces that loss.
    """


@hookspec(firstresult=True)
def posttrain_token_weights(batch, policy, config, step):
    """Online: return factors of each token's policy gradient, or ``(weights, metrics)``.

    Weights are ``(B, T)``, or ``(B, 1)`` for whole completions, not negative, and constants to the gradient. A
    divergence from the reference is not weighted. Weights of several modifiers are multiplied.
    """


@hookspec(firstresult=True)
def posttrain_token_statistics(logits, labels, reference_logits, teacher_logits, alignment, config, state):
    """Return named per-token tensors ``(n,)`` that need more than a log-prob: a divergence, smoothing.

    Called on chunks: ``logits`` ``(n, V)`` in float32 after temperature, ``labels`` ``(n,)``, ``reference_logits`` and
    ``teacher_logits`` ``(n, V)`` without gradient at the same temperature, or None where the card does not need them.
    The names become attributes of the views: ``policy.completion.divergence``, ``(B, T)``. Must treat each token alone:
    chunks are cut anywhere. Online methods have ``entropy`` without this hook, in nats, without gradient, and logged.

    A hook that takes ``alignment`` also learns from teachers with another tokeniser. It is None for a teacher with the
    same one. Otherwise ``teacher_logits`` is ``(m, W)``, ``alignment`` (``posttrain.distillation.align.Alignment``)
    maps the n and the m tokens to spans of text, and chunks are cut between spans.

    ``state`` is the method's own dict, read-only here.
    """


@hookspec(firstresult=True)
def posttrain_plan_rollouts(prompts, group_size, config, state, random):
    """Return what to generate: for each prompt of the step a list of ``posttrain.SampleRequest``.

    The requests of the policy's group come first. Without this hook it is ``[SampleRequest(group_size)]``.

    ``prompts`` are dicts of the rows' columns (``prompt``, and ``completion`` where the data have answers); ``random``
    is a ``random.Random`` of this step, the same on every rank and in a resumed run.
    """


@hookspec(firstresult=True)
def posttrain_select(rollouts, rewards, config, state):
    """Return a ``posttrain.Selection``: which rollouts the step trains on, and which of them form pairs.

    Called with all rollouts that have a reward, before advantages are computed. ``rollouts`` is as in
    ``posttrain_advantages`` and ``rollouts.items`` are its rows (``posttrain.Rollout``); ``rewards`` is ``(B,)``.
    """


@hookspec(firstresult=True)
def posttrain_teacher_prompts(rollouts, rewards, config, state):
    """Return, for each rollout, the prompt (text or messages) under which the teacher sees its tokens, or None.

    Without this hook the teacher sees the policy's own prompt. A rollout with None is not distilled: ``batch.taught``
    ``(B,)`` is False there.
    """


@hookspec(firstresult=True)
def posttrain_advantages(rewards, rollouts, advantages, config, state):
    """Return the advantages of all rollouts of the step, ``(B,)`` or ``(B, T)``, without gradient.

    Or a dict of these by name, ``advantages`` and others that the loss needs: ``batch.returns``. ``rewards`` is
    ``(B,)``; ``rollouts`` has ``group`` ``(B,)``, ``mask``, ``sampled_logps``, ``old_logps``, ``reference_logps`` and
    ``teacher_logps`` ``(B, T)`` (the last three are computed when first read), ``old(name)`` ``(B, T)`` for token
    statistics and outputs of extra modules before the update, ``finished`` ``(B,)``, ``lengths`` ``(B,)``, ``source``
    (who answered), ``prompts``, ``completions`` and ``columns``, and ``prefer(first, second)``: the probability
    ``(P,)`` that some answers are better than others, by the run's judge or from its rewards. ``state`` is the method's
    own dict, kept in checkpoints. ``advantages`` is for modifiers: those of the method that they change, ``(B,)`` or
    ``(B, T)``.
    """


@hookspec(firstresult=True)
def posttrain_extra_modules(config, hidden_size):
    """Return modules by name that are trained beside the model, such as a value head.

    Each gets the hidden states ``(n, hidden_size)`` that predict the trained tokens and returns ``(n,)``, which the
    views show under its name: ``policy.completion.values`` ``(B, T)``. They are kept in checkpoints.
    """


@hookspec(firstresult=True)
def posttrain_annotate(examples, models, config, state):
    """Return columns by name, computed without gradient from all examples of the optimiser step, alike on every rank.

    Called once before the step's first forward pass, and in evaluations for each batch. For quantities that couple
    examples (a baseline of the batch, ranks, a sort) or need passes over other sequences. A column is a tensor
    ``(B,)``, then ``batch.NAME`` is ``(B,)``, or a list of B tensors ``(t,)`` aligned with the trained tokens of the
    first role; one called ``ROLE.NAME`` is aligned with those of that role and becomes ``batch.ROLE_NAME``.

    ``examples`` have ``sequences`` by role and ``columns``; ``models.logps(sequences, "policy")``, "reference" or
    "teacher" gives the log-probs ``(t,)`` of the trained tokens of each sequence. ``state`` is the method's own dict.
    """


@hookspec(firstresult=True)
def posttrain_after_step(step, metrics, config, state):
    """Update ``state`` after an optimiser step; the other hooks see it in the next one. Returns nothing.

    ``step`` is the finished step (``number`` from 0, ``total``); ``metrics`` is its line in ``metrics.jsonl``, the loss
    of the whole step over all devices, so that every rank does the same.
    """


@hookspec
def posttrain_run_started(run):
    """Observers: called when the model and the data are loaded, before the first step."""


@hookspec
def posttrain_step_done(run, step, metrics):
    """Observers: called after an optimiser step; ``metrics`` is its line in ``metrics.jsonl``."""


@hookspec
def posttrain_checkpoint_saved(run, path):
    """Observers: called when a complete checkpoint is at ``path``."""


@hookspec
def posttrain_alert(run, event):
    """Observers: called when something looks wrong; ``event`` is its line in ``events.jsonl``."""


@hookspec
def posttrain_run_finished(run):
    """Observers: called when the final model is saved."""


@hookspec
def posttrain_run_failed(run, error):
    """Observers: called when the run ends with ``error``; a KeyboardInterrupt after a request to stop, after saving."""
