"""The contract between the core and its plugins: every hook, who answers it, when, with which shapes.

A plugin implements the hooks it needs as plain functions marked ``@posttrain.hookimpl`` and takes only the arguments
it uses, in any order. Letters in shapes: B examples of this micro-batch (online hooks: rollouts of the whole step,
over all devices), T trained tokens of the longest one, n tokens of a chunk, V vocabulary.
"""

import pluggy

hookspec = pluggy.HookspecMarker("posttrain")
hookimpl = pluggy.HookimplMarker("posttrain")


@hookspec(firstresult=True)
def posttrain_config():
    """Return the class of the method's options: a frozen dataclass named ``Config``, a string under each field.

    Asked once, before anything is loaded. Its fields are the method's flags (``beta`` is ``--beta``).
    """


@hookspec(firstresult=True)
def posttrain_loss(batch, policy, reference, config, step):
    """Return the unreduced loss of a micro-batch, or ``(loss, metrics)``.

    The loss is a tensor ``(B,)``, one value an example, averaged by the core over the examples of the whole
    optimiser step; or ``PerToken(values, mask)``, both ``(B, T)``, averaged over its unmasked tokens; or a dict of
    these by name, each reduced in its own unit and added. ``metrics`` are tensors, one value an example or PerToken,
    averaged in the same way for the log.

    ``policy`` and ``reference`` hold a view per role of the schema: ``policy.completion``, or ``policy.chosen`` and
    ``policy.rejected``, with ``.logps``, ``.mask``, ``.sum``, ``.mean``, ``.lengths``, and ``.score`` under a reward
    head. ``reference`` is None where the card does not need one. ``batch`` holds the columns of the data and what
    other hooks added: ``batch.advantages``, ``batch.old_logps``. ``step`` says ``number``, ``total`` and ``training``.
    """


@hookspec(firstresult=True)
def posttrain_token_statistics(logits, labels, reference_logits, config):
    """Return named per-token tensors ``(n,)`` that need more than a log-prob: entropy, a divergence, smoothing.

    Called on chunks: ``logits`` ``(n, V)`` in float32 after temperature, ``labels`` ``(n,)``, ``reference_logits``
    ``(n, V)`` without gradient, or None where the card does not need a reference. The names become attributes of
    the views: ``policy.completion.entropy``, ``(B, T)``. Must treat each token alone: chunks are cut anywhere.
    """


@hookspec(firstresult=True)
def posttrain_advantages(rewards, rollouts, config, state):
    """Return ``(B,)`` or ``(B, T)``, without gradient: what each rollout of the whole step is worth.

    ``rewards`` is ``(B,)``; ``rollouts`` has ``group`` ``(B,)``, ``mask``, ``sampled_logps``, ``old_logps`` and
    ``reference_logps`` ``(B, T)`` (the last two are computed when first read), ``finished`` ``(B,)``, ``lengths``
    ``(B,)``, ``prompts``, ``completions`` and ``columns``. ``state`` is the method's own dict, kept in checkpoints.
    """


@hookspec(firstresult=True)
def posttrain_annotate(examples, models, config, state):
    """Return columns by name, computed without gradient from all examples of the optimiser step, on every rank alike.

    Called once before the step's first forward pass, and in evaluations for each batch. For what couples examples (a
    baseline of the batch, ranks, a sort) or needs passes over other sequences. A column is a tensor ``(B,)``, then
    ``batch.NAME`` is ``(B,)``, or a list of B tensors ``(t,)`` aligned with the trained tokens of the first role.
    ``examples`` have ``sequences`` by role and ``columns``; ``models.logps(sequences, "policy" or "reference")`` gives
    the log-probs ``(t,)`` of the trained tokens of each sequence. ``state`` is the method's own dict.
    """


@hookspec
def posttrain_run_started(run):
    """Observers: the model and the data are loaded, the first step has not begun."""


@hookspec
def posttrain_step_done(run, step, metrics):
    """Observers: an optimiser step is over; ``metrics`` is the line that goes into ``metrics.jsonl``."""


@hookspec
def posttrain_checkpoint_saved(run, path):
    """Observers: a complete checkpoint lies at ``path``."""


@hookspec
def posttrain_alert(run, event):
    """Observers: something looks wrong; ``event`` is the line that goes into ``events.jsonl``."""


@hookspec
def posttrain_run_finished(run):
    """Observers: the final model is saved."""


@hookspec
def posttrain_run_failed(run, error):
    """Observers: the run ends with ``error``."""
