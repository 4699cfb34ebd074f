"""Options of every run, in sections. A method adds its own: the fields of its ``Config``.

Flags, configuration files and ``posttrain.train`` name options without their section: names are unique over all
sections. The method's card may set another default. ``None`` means the value in brackets. The string under a field is
its help text. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain.errors import SettingsError
from posttrain.settings.limits import at_least


@dataclass(frozen=True)
class ReferenceSettings:
    """The model that the policy is compared with."""

    reference_model: str | None = None
    """Model that the policy is compared with. [the initial model]"""
    reference_every: int | None = None
    """Steps between updates of the reference from the policy. [never: it stays the initial model]"""
    reference_rate: float = 1.0
    """Step size of the reference towards the policy: 1 copies it, less makes a moving average."""
    reference_cache: bool = True
    """Run a frozen reference only once per row of a fixed dataset: its log-probs are kept for later epochs and, in the
    cache folder, for later runs."""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("reference-every", self.reference_every, 1)
        if self.reference_every is not None and self.reference_model is not None:
            raise SettingsError(
                f"The reference is '{self.reference_model}' and also follows the policy every {self.reference_every} "
                "steps. Leave out --reference-model, or set reference-every to none."
            )
        if not 0 < self.reference_rate <= 1:
            raise SettingsError(f"reference-rate is {self.reference_rate}, expected a number above 0 and up to 1.")


@dataclass(frozen=True)
class TeacherSettings:
    """The model that the policy learns from."""

    teacher_model: str | None = None
    """Model that the policy learns from: a folder, a Hub id, the address of a vLLM server (http://HOST:PORT/v1#MODEL);
    or the policy itself: base (its initial weights), live (its current weights), average (a moving average)."""
    teacher_average_rate: float = 0.05
    """Step size of the teacher's moving average towards the policy, per step."""
    teacher_top_k: int = 20
    """Number of top tokens requested from a teacher server; the remaining probability is spread uniformly."""


@dataclass(frozen=True)
class DataSettings:
    """Rows, and how they become tokens."""

    data: list[str] | None = None
    """Training data: a file (JSONL, JSON, CSV, Parquet, Arrow), a Hub id, reasoning-gym:TASK, or example: a small task
    with rows for every method. May be repeated; a number after '=' says how often its rows are read (a.jsonl=2)."""
    eval_data: list[str] | None = None
    """Held-out data in the same forms. Several sets get names, and metrics of their own: math=a.jsonl, chat=b.jsonl
    (eval_math_loss); eval_loss and others are then means over the sets."""
    exhausted: Literal["leave", "repeat", "stop"] = "leave"
    """Treatment of a set in a mixture once all its rows are read: leave (a weight is how often its rows are read per
    epoch), or with weights as shares: repeat until every set was read, or stop the epoch."""
    columns: dict[str, str] | None = None
    """Names of the data's columns: prompt=question,completion=answer."""
    split: str = "train"
    """Split of a Hub dataset."""
    eval_fraction: float = 0.0
    """Share of the rows held out for evaluation if there is no eval-data."""
    max_length: int | None = 1024
    """Longest row in tokens, prompt and completion together; none: 1024, or the model's own limit if that is less."""
    max_new_tokens: int = 256
    """Longest completion in tokens."""
    truncation: Literal["keep-prompt-end", "drop", "error"] = "keep-prompt-end"
    """Treatment of longer rows: cut (the prompt's start first, then the completion's end), drop, or stop."""
    end_of_sequence: bool = True
    """Add the end-of-sequence token to plain-text completions."""
    train_on: Literal["completion", "assistant", "each-turn", "all"] | None = None
    """Tokens that are trained on: the completion, every assistant turn, the same with one example per turn as the model
    would have written it, or the whole row. [completion; assistant for messages; all for text]"""
    learn_scaffold: bool = False
    """Also train on what the chat template writes for any answer, such as an empty thought before it."""
    max_lost: float = 0.01
    """Largest share of rows whose answers, system prompt or tools the chat template partly leaves out. They are dropped
    and counted; more of them end the run, because the template does not suit the data."""
    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's chat template."""
    chat_template_kwargs: dict[str, str] | None = None
    """Variables of the chat template: enable_thinking=false. Values are parsed as JSON if possible; a column of this
    name sets them per row."""
    chat: bool = False
    """Wrap plain-text prompts and answers in the model's chat template, as user and assistant messages."""
    system_prompt: str | None = None
    """System message for prompts without one (chat models)."""
    shuffle: bool = True
    """Shuffle the rows in each epoch."""
    seed: int = 0
    """Seed of all randomness: order, initial adapters, sampling."""
    image_folder: str | None = None
    """Folder that paths of images are relative to. [the working folder]"""
    image_urls: bool = False
    """Fetch images that rows give by URL (http, https)."""
    streaming: bool = False
    """Read rows during training instead of before; needs steps."""
    limit: int | None = None
    """Use only the first N rows."""
    data_processes: int | None = None
    """Processes that tokenise rows. [every processor from 4,096 rows on, on Linux; else 1]"""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("max-length", self.max_length, 2)
        at_least("data-processes", self.data_processes, 1)
        if not 0 <= self.eval_fraction < 1:
            raise SettingsError(f"eval-fraction is {self.eval_fraction}, expected a number from 0 to below 1.")
        if not 0 <= self.max_lost <= 1:
            raise SettingsError(f"max-lost is {self.max_lost:g}, expected a share from 0 to 1.")


@dataclass(frozen=True)
class LengthSettings:
    """Length of a run, in steps or epochs."""

    steps: int | None = None
    """Optimiser steps; overrides epochs."""
    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 8
    """Examples per optimiser step over all devices; prompts per step for online methods."""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("batch-size", self.batch_size, 1)
        at_least("steps", self.steps, 1)
        if self.epochs <= 0:
            raise SettingsError(f"epochs is {self.epochs}, expected a larger number.")


@dataclass(frozen=True)
class MemorySettings:
    """Parts of a batch that are computed at one time."""

    micro_batch_size: int | None = None
    """Examples per forward pass. [as many as micro-batch-tokens allow]"""
    micro_batch_tokens: int | None = None
    """Tokens per forward pass, padding included. [512 on a CPU, 1024 for online methods, 16384 on a GPU; fewer where
    these would not fit into memory]"""
    offload_activations: bool | None = None
    """Keep activations for the backward pass in main memory: less GPU memory, more time. [on a GPU where even
    recomputed ones would not fit; off for several processes]"""
    head_chunk_tokens: int | None = None
    """Tokens whose logits exist at one time. [256 on a CPU; on a GPU as many as fit 256 MiB]"""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("micro-batch-size", self.micro_batch_size, 1)
        at_least("head-chunk-tokens", self.head_chunk_tokens, 1)


@dataclass(frozen=True)
class DistributedSettings:
    """Distribution of the work over processes, devices and machines."""

    strategy: Literal["single", "qlora", "ddp", "fsdp", "deepspeed"] | None = None
    """Strategy of distributing the work over devices; posttrain doctor lists what each needs. [single, or ddp for
    several processes]"""
    tensor_parallel: int = 1
    """Processes that split each layer's matrices (fsdp); they see the same rows."""
    expert_parallel: int = 1
    """Processes over which the experts of each layer are divided (fsdp); they see different rows."""
    context_parallel: int = 1
    """Processes over which each pass is cut by its tokens (fsdp), for rows too long for one; they see the same rows."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimiser state in main memory instead of the GPU's (fsdp, deepspeed)."""
    nproc: int = 1
    """Processes to start on this machine."""
    nnodes: str = "1"
    """Machines that train together, each running the same command. A number, or a range such as 1:4, of which any
    number will do."""
    node_rank: int | None = None
    """Rank of this machine among them; machine 0 writes the run directory. [agreed among the machines]"""
    rdzv_endpoint: str | None = None
    """HOST:PORT where the machines meet; HOST is one of them."""
    max_restarts: int = 0
    """Number of restarts of all processes after one fails; they resume from the last checkpoint, as does the same
    command given again."""
    deepspeed_config: str | None = None
    """DeepSpeed's own JSON file; missing entries, and those that the run decides, are filled in."""
    zero_stage: int | None = None
    """ZeRO stage of the strategy deepspeed, the part sharded over the processes: 1 the optimiser state, 2 the gradients
    too, 3 the weights too. [that of deepspeed-config; else 2]"""


@dataclass(frozen=True)
class RolloutsSettings:
    """Completions of online methods: their number, rewards and use."""

    group_size: int = 8
    """Completions per prompt."""
    reward: list[str] | None = None
    """Rewards: an installed name, file.py:function, the folder of a reward model, or the address of a reward worker
    (http://HOST:PORT). May be repeated; a weight follows after '='."""
    reward_options: dict[str, str] | None = None
    """Options of the rewards, as NAME.OPTION=VALUE. One named like a secret (key, token, secret, password) is never
    written to a file; NAME.api_key=env:VARIABLE takes it from the environment."""
    judge: str | None = None
    """Judge of two answers, where a method learns from preferences: a folder or Hub id (chat model or reward model),
    file.py:function, or the address of an OpenAI-compatible server (http://HOST:PORT/v1#MODEL)."""
    judge_options: dict[str, str] | None = None
    """Options of the judge, as NAME=VALUE: both_orders=false, template=FILE, key_env=NAME."""
    reward_timeout: float = 1200.0
    """Seconds that a reward or judge function may take for one batch; 0 sets no limit. Other ranks wait 30 minutes."""
    reward_process: bool = False
    """Run rewards given by name or file in processes of their own, all at the same time: a hanging one is killed, and
    one that ends its process ends no other. Columns are passed as JSON."""
    modifier: list[str] | None = None
    """Modifiers of an online method, applied in the order given: NAME, or
    NAME:OPTION=VALUE,OPTION=VALUE. May be repeated."""
    generation_rounds: int = 10
    """Batches of prompts that may be generated for one step if the method drops prompts and refills."""
    updates_per_rollout: int = 1
    """Passes over each batch of rollouts (mu in the GRPO paper)."""
    minibatches_per_rollout: int = 1
    """Optimiser steps per pass over the rollouts."""
    max_staleness: int = 0
    """Batches of rollouts that the sampler may run ahead of the trainer: tokens of weights older than this many batches
    are not trained on. 0 samples and trains in turn."""
    mask_truncated: bool = False
    """Do not train on completions that reached max-new-tokens."""
    router_replay: bool = False
    """Train a mixture of experts with the experts that the sampler chose for each token (rollout routing replay), for
    samplers that lag behind or round differently; hf alone records them."""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("group-size", self.group_size, 1)
        at_least("max-staleness", self.max_staleness, 0)


@dataclass(frozen=True)
class SamplingSettings:
    """Distribution that completions are sampled from."""

    temperature: float = 1.0
    """Sampling temperature; log-probs are taken at the same temperature."""
    top_p: float = 1.0
    """Nucleus sampling: below 1 the sampler's distribution is no longer the policy's."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 is all."""
    stop: list[str] | None = None
    """Strings that end a completion."""


@dataclass(frozen=True)
class GenerationSettings:
    """Engine that samples."""

    generation: str = "hf"
    """Engine that samples: hf; vllm, in this process; vllm-server, started on this machine for the run; or addresses
    of servers that posttrain serve-rollouts has started: http://HOST:PORT,http://HOST:PORT"""
    generation_process: bool | None = None
    """Sample with hf in a process of its own, with a copy of the weights. [if rollouts run ahead]"""
    generation_device: str | None = None
    """Device of that process. [the trainer's]"""
    generation_dtype: Literal["float32", "bfloat16"] | None = None
    """Type in which vLLM computes. [the policy's]"""
    generation_gpu_memory: float = 0.4
    """Share of the GPU's memory for a vLLM started by this run: its weights, keys and values."""
    generation_patience: float = 45.0
    """Seconds without any rollout server before the run ends."""
    generation_batch_size: int = 64
    """Completions sampled at the same time."""
    generation_cache_tokens: int | None = None
    """Tokens of prompts and completions, padding included, whose keys and values are kept while sampling. [what fits a
    quarter of the memory]"""
    generation_prefix_tokens: int | None = None
    """Tokens of episodes whose keys and values are kept between turns, with hf; 0 prefills every turn's whole text.
    [what fits an eighth of the memory]"""
    speculate: Literal["off", "ngram", "draft"] = "off"
    """Guess several tokens and check them in one pass, with hf: from what followed the last tokens earlier in the text
    (ngram), or by a smaller model (draft). Changes the time of sampling, not what is sampled."""
    draft_model: str | None = None
    """Smaller model with the same tokeniser, for speculate draft: a folder or a Hub id."""
    speculate_tokens: int | None = None
    """Most tokens that are guessed for a pass. [8 for ngram, 4 for draft]"""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("speculate-tokens", self.speculate_tokens, 1)
        if (self.speculate == "draft") != (self.draft_model is not None):
            raise SettingsError(
                f"speculate is '{self.speculate}' and draft-model {self.draft_model or 'not given'}. A draft model "
                "needs both: --speculate draft --draft-model MODEL"
            )
        if self.speculate != "off" and self.generation != "hf":
            raise SettingsError(
                f"speculate is '{self.speculate}' and generation '{self.generation}': only hf speculates. Leave one of "
                "them out."
            )


@dataclass(frozen=True)
class CorrectionSettings:
    """Importance weights for a sampler that differs from the trainer's policy."""

    correction: Literal["off", "truncated-token", "truncated-sequence", "masked-token", "masked-sequence"] | None = None
    """Importance weights for a sampler that differs from the trainer's policy: ratios per token or per answer,
    truncated at correction-high, or masked outside of both bounds. [truncated-token where rollouts run ahead or another
    engine samples, else off]"""
    correction_low: float = 0.5
    """Ratios below this are masked."""
    correction_high: float = 2.0
    """Ratios above this are truncated, or masked."""


@dataclass(frozen=True)
class WatchSettings:
    """Output, progress, checkpoints and evaluations of a run."""

    output: str = ""
    """Run directory to write. [runs/METHOD-DATE]"""
    overwrite: bool = False
    """Replace an existing run directory."""
    log_every: int = 1
    """Steps between lines of progress output; metrics.jsonl has every step."""
    eval_every: int | None = None
    """Steps between evaluations. [only at the start and the end]"""
    eval_batches: int | None = None
    """Most batches per evaluation."""
    save_every: int | None = None
    """Steps between checkpoints. [only by save-minutes, and at the end]"""
    save_minutes: float | None = 10.0
    """Minutes between checkpoints, besides save-every; longer where writing one takes more than a twentieth of that. 0
    turns it off."""
    save_total: int = 2
    """Checkpoints to keep, besides the best one."""
    best_metric: str | None = None
    """Metric that selects the best checkpoint, lower is better; with '-' before the name higher is better. [eval_loss;
    -eval_reward for online methods]"""
    save_best: bool = False
    """Make the best checkpoint the final model; needs eval-data."""
    early_stopping: int | None = None
    """Stop after this many evaluations without a better best-metric."""
    samples_per_step: int = 4
    """Completions written to samples.jsonl per step (online)."""
    rules: dict[str, str] | None = None
    """Reaction to each rule's findings, as CODE=off, CODE=warn or CODE=stop (exit code 3); all=off for every rule.
    docs/rules.md lists them. [all=warn]"""
    rule_options: dict[str, str] | None = None
    """Thresholds of rules, as CODE.THRESHOLD=NUMBER."""
    progress: Literal["bar", "plain", "notebook", "quiet", "json"] = "bar"
    """Progress output: a bar (plain lines in a file, an output of its own in a notebook), plain lines, a notebook's
    output, nothing, or one JSON line per step."""
    show_completion: bool = False
    """Show the newest completion and its reward beside the progress (online)."""
    report: bool | None = None
    """Keep report.html in the run directory: one page with curves, alerts and completions. [runs of more than a
    minute]"""
    track: list[str] | None = None
    """Trackers that get metrics, alerts and completions: tensorboard, trackio, wandb, mlflow. If steps are very short,
    they get only some."""
    observers: list[str] | None = None
    """Installed observers to load."""
    verify_saved: bool = True
    """Load the saved model again as other programs do and compare it with the trained one; a difference is an error
    that keeps the checkpoints."""
    push_to_hub: str | None = None
    """Hub id to upload the final model to."""

    def check(self) -> None:
        """Raise SettingsError for values that no run can have."""
        at_least("save-total", self.save_total, 1)
        at_least("save-minutes", self.save_minutes, 0)
