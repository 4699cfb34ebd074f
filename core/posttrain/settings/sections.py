"""The options that every run shares, in sections. A method adds its own: the fields of its ``Config``.

Flags, configuration files and ``posttrain.train`` name options without their section: a name occurs once over all
sections. The method's card may have another default. ``None`` means the value in brackets. The string under a field
is its help text. Nothing here imports torch.
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
    """Model the policy is compared with. [the model as it was at the start]"""
    reference_every: int | None = None
    """Steps after which the reference becomes the policy as it then is. [never: it stays as it was at the start]"""
    reference_rate: float = 1.0
    """How far the reference goes towards the policy each time: 1 makes it a copy, less a moving average."""
    reference_cache: bool = True
    """Run a frozen reference once for each row of a fixed dataset: its log-probs are kept for later epochs and, in the
    cache folder, for later runs."""

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
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
    """Model the policy learns from: a folder, a Hub id, the address of a vLLM server (http://HOST:PORT/v1#MODEL); or
    itself: base (as it was at the start), live (as it is), average (a moving average)."""
    teacher_average_rate: float = 0.05
    """How far a moving average follows the policy in each step."""
    teacher_top_k: int = 20
    """Likeliest tokens that a teacher's server is asked for; what they leave of the probability is spread evenly."""


@dataclass(frozen=True)
class DataSettings:
    """Rows, and what becomes of them as tokens."""

    data: list[str] | None = None
    """Training data: a file (JSONL, JSON, CSV, Parquet, Arrow), a Hub id, reasoning-gym:TASK, or example: a small
    task with rows for every method. May be repeated; after '=' follows how often its rows are read (a.jsonl=2)."""
    eval_data: list[str] | None = None
    """Held-out data in the same forms. Several sets get names, and metrics of their own: math=a.jsonl, chat=b.jsonl
    (eval_math_loss); without a name stands then the mean over them."""
    exhausted: Literal["leave", "repeat", "stop"] = "leave"
    """What a set of a mixture does once all its rows were read: leave (a weight says how often its rows are read in an
    epoch), or with weights as shares: repeat until every set was read, or stop the epoch there."""
    columns: dict[str, str] | None = None
    """Columns under other names: prompt=question,completion=answer."""
    split: str = "train"
    """Split of a Hub dataset."""
    eval_fraction: float = 0.0
    """Share of the rows held out for evaluation when there is no eval-data."""
    max_length: int | None = 1024
    """Longest row in tokens, prompt and completion together; none: 1024, or the model's own limit if that is less."""
    max_new_tokens: int = 256
    """Longest completion in tokens."""
    truncation: Literal["keep-prompt-end", "drop", "error"] = "keep-prompt-end"
    """What happens to longer rows: cut (the prompt from its start, then the completion from its end), drop, or stop."""
    end_of_sequence: bool = True
    """Add the end-of-sequence token to plain-text completions."""
    train_on: Literal["completion", "assistant", "each-turn", "all"] | None = None
    """Tokens that are learnt: the completion, every assistant turn, the same with one example for each turn as the
    model would have written it, or the whole row. [completion; assistant for messages; all for text]"""
    learn_scaffold: bool = False
    """Also learn what the chat template writes whatever the answer is, such as an empty thought before it."""
    max_lost: float = 0.01
    """Share of rows of whose answers, system prompt or tools the chat template leaves something out. They are dropped
    and counted; more of them end the run, because the template then does not suit the data."""
    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's chat template."""
    chat_template_kwargs: dict[str, str] | None = None
    """Variables of the chat template: enable_thinking=false. Values are JSON where they can be; a column of this name
    sets them for one row."""
    chat: bool = False
    """Put prompts and answers that are plain text into the model's chat template, as a user's and an assistant's
    message."""
    system_prompt: str | None = None
    """System message put before prompts that have none (chat models)."""
    shuffle: bool = True
    """Shuffle the rows anew in each epoch."""
    seed: int = 0
    """Seed of everything random: order, initial adapters, sampling."""
    image_folder: str | None = None
    """Folder in which the paths of images begin. [the working folder]"""
    image_urls: bool = False
    """Fetch images that rows name by an address (http, https)."""
    streaming: bool = False
    """Read rows while training instead of before; needs steps."""
    limit: int | None = None
    """Use only the first N rows."""

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
        at_least("max-length", self.max_length, 2)
        if not 0 <= self.eval_fraction < 1:
            raise SettingsError(f"eval-fraction is {self.eval_fraction}, expected a number from 0 to below 1.")
        if not 0 <= self.max_lost <= 1:
            raise SettingsError(f"max-lost is {self.max_lost:g}, expected a share from 0 to 1.")


@dataclass(frozen=True)
class LengthSettings:
    """How long a run is, in steps or passes over the data."""

    steps: int | None = None
    """Optimiser steps. Overrides epochs."""
    epochs: float = 1.0
    """Passes over the data."""
    batch_size: int = 8
    """Examples per optimiser step over all devices; for online methods prompts per step."""

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
        at_least("batch-size", self.batch_size, 1)
        at_least("steps", self.steps, 1)
        if self.epochs <= 0:
            raise SettingsError(f"epochs is {self.epochs}, expected a larger number.")


@dataclass(frozen=True)
class MemorySettings:
    """How much of a batch is computed at one time."""

    micro_batch_size: int | None = None
    """Examples per forward pass. [as many as micro-batch-tokens allow]"""
    micro_batch_tokens: int | None = None
    """Tokens per forward pass, padding included. [512 on a CPU, 1024 for online
    methods, 16384 on a GPU]"""
    offload_activations: bool = False
    """Keep what the backward pass needs in the main memory until then: less GPU memory, more time."""
    head_chunk_tokens: int | None = None
    """Tokens whose logits exist at one time. [256 on a CPU; on a GPU as many as make 256 MiB]"""

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
        at_least("micro-batch-size", self.micro_batch_size, 1)
        at_least("head-chunk-tokens", self.head_chunk_tokens, 1)


@dataclass(frozen=True)
class DistributedSettings:
    """How the work is spread over processes, devices and machines."""

    strategy: Literal["single", "qlora", "ddp", "fsdp", "deepspeed"] | None = None
    """How the work is spread over devices; posttrain doctor says what each needs. [single, or ddp for several
    processes]"""
    tensor_parallel: int = 1
    """Processes over which the matrices of each layer are split (fsdp); they see the same rows."""
    cpu_offload: bool = False
    """Keep weights, gradients and the optimiser's state in the computer's memory instead of the GPU's (fsdp,
    deepspeed)."""
    nproc: int = 1
    """Processes to start on this machine."""
    nnodes: str = "1"
    """Machines that train together: the same command is started on each. A number, or a range such as 1:4 of which
    any number will do."""
    node_rank: int | None = None
    """Place of this machine among them; the one with 0 writes the run directory. [found by the machines themselves]"""
    rdzv_endpoint: str | None = None
    """HOST:PORT at which the machines meet; HOST is one of them."""
    max_restarts: int = 0
    """How often all processes are started again when one fails; they go on from the last checkpoint, as does the same
    command given again."""
    deepspeed_config: str | None = None
    """DeepSpeed's own JSON file; what it leaves out, and what the run decides, is filled in."""
    zero_stage: int | None = None
    """What the strategy deepspeed divides among the processes: 1 the optimiser, 2 the gradients too, 3 the weights
    too. [that of deepspeed-config; else 2]"""


@dataclass(frozen=True)
class RolloutsSettings:
    """Completions of online methods: how many, how they are scored, how they are used."""

    group_size: int = 8
    """Completions per prompt."""
    reward: list[str] | None = None
    """Rewards: an installed name, file.py:function, the folder of a reward model, or the address of a reward worker
    (http://HOST:PORT). May be repeated; a weight follows after '='."""
    reward_options: dict[str, str] | None = None
    """Options of the rewards, as NAME.OPTION=VALUE. One named like a secret (key, token, secret, password) is written
    nowhere; NAME.api_key=env:VARIABLE takes it from the environment."""
    judge: str | None = None
    """Compares two answers where a method learns from preferences: a folder or Hub id (chat model or reward model),
    file.py:function, or the address of an OpenAI-compatible server (http://HOST:PORT/v1#MODEL)."""
    judge_options: dict[str, str] | None = None
    """Options of the judge, as NAME=VALUE: both_orders=false, template=FILE, key_env=NAME."""
    reward_timeout: float = 1200.0
    """Seconds that a reward or judge function may take for one batch; 0 sets no limit. Other ranks wait 30 minutes."""
    reward_process: bool = False
    """Run rewards that are named or in files in processes of their own, all at the same time: one that hangs is killed,
    one that ends its process ends no other. Columns go there as JSON."""
    modifier: list[str] | None = None
    """Modifiers of an online method, applied in the order given: NAME, or
    NAME:OPTION=VALUE,OPTION=VALUE. May be repeated."""
    generation_rounds: int = 10
    """Batches of prompts that may be generated for one step where the method drops prompts and refills."""
    updates_per_rollout: int = 1
    """Passes over each batch of rollouts (mu in the GRPO paper)."""
    minibatches_per_rollout: int = 1
    """Optimiser steps into which one pass over the rollouts is cut."""
    max_staleness: int = 0
    """How many batches of rollouts the sampler may run ahead of the trainer: no token is learnt from that was made by
    weights more than so many batches old. 0 samples and trains in turn."""
    mask_truncated: bool = False
    """Do not learn from completions that reached max-new-tokens."""

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
        at_least("group-size", self.group_size, 1)
        at_least("max-staleness", self.max_staleness, 0)


@dataclass(frozen=True)
class SamplingSettings:
    """From which distribution completions are sampled."""

    temperature: float = 1.0
    """Sampling temperature; log-probs are taken at the same temperature."""
    top_p: float = 1.0
    """Nucleus sampling; below 1 the sampler's distribution is no longer the policy's."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0 is all."""
    stop: list[str] | None = None
    """Strings that end a completion."""


@dataclass(frozen=True)
class GenerationSettings:
    """The engine that samples."""

    generation: str = "hf"
    """Engine that samples: hf; vllm, in this process; vllm-server, started on this machine for the run; or addresses
    of servers that posttrain serve-rollouts has started: http://HOST:PORT,http://HOST:PORT"""
    generation_process: bool | None = None
    """Sample with hf in a process of its own, which has a copy of the weights. [where rollouts run ahead]"""
    generation_device: str | None = None
    """Device of that process. [the same as the trainer's]"""
    generation_dtype: Literal["float32", "bfloat16"] | None = None
    """Type in which vLLM computes. [the one in which the policy computes]"""
    generation_gpu_memory: float = 0.4
    """Share of the GPU's memory for a vLLM that this run starts: its weights, keys and values."""
    generation_patience: float = 45.0
    """Seconds without any rollout server after which the run ends."""
    generation_batch_size: int = 64
    """Completions sampled at the same time."""
    generation_cache_tokens: int | None = None
    """Tokens of prompts and completions, padding included, whose keys and values are kept while sampling. [as many as a
    quarter of the memory holds]"""
    generation_prefix_tokens: int | None = None
    """Tokens of episodes whose keys and values are kept between turns, with hf; 0 reads every turn's whole text anew.
    [as many as an eighth of the memory holds]"""


@dataclass(frozen=True)
class CorrectionSettings:
    """Importance weights where the sampler is not the trainer's policy."""

    correction: Literal["off", "truncated-token", "truncated-sequence", "masked-token", "masked-sequence"] | None = None
    """Importance weights where the sampler was not the trainer's policy: ratios of tokens or of whole answers, cut off
    at correction-high, or counted as 0 outside of both bounds. [truncated-token where rollouts run ahead or another
    engine samples, else off]"""
    correction_low: float = 0.5
    """Ratios below are masked."""
    correction_high: float = 2.0
    """Ratios above are cut off, or masked."""


@dataclass(frozen=True)
class WatchSettings:
    """What a run writes, shows, keeps and evaluates."""

    output: str = ""
    """Run directory to write. [runs/METHOD-DATE]"""
    overwrite: bool = False
    """Replace an existing run directory."""
    log_every: int = 1
    """Steps between lines of the progress output; metrics.jsonl has every step."""
    eval_every: int | None = None
    """Steps between evaluations. [only at the start and the end]"""
    eval_batches: int | None = None
    """At most this many batches per evaluation."""
    save_every: int | None = None
    """Steps between checkpoints. [by time alone, and at the end]"""
    save_minutes: float | None = 10.0
    """Minutes between checkpoints, whatever the steps; longer where writing one takes more than a twentieth of that.
    0 saves none by time."""
    save_total: int = 2
    """Checkpoints to keep, the best one apart."""
    best_metric: str | None = None
    """Metric that decides which checkpoint is best, lower is better; higher is with '-' before the name.
    [eval_loss; -eval_reward for online methods]"""
    save_best: bool = False
    """Make the best checkpoint the final model; needs eval-data."""
    early_stopping: int | None = None
    """Stop after this many evaluations without a better best-metric."""
    samples_per_step: int = 4
    """Completions written to samples.jsonl per step (online)."""
    rules: dict[str, str] | None = None
    """What a run does about what looks wrong, as CODE=off, CODE=warn or CODE=stop (exit code 3); all=off for every
    rule. docs/rules.md lists them. [all=warn]"""
    rule_options: dict[str, str] | None = None
    """Thresholds of rules, as CODE.THRESHOLD=NUMBER."""
    progress: Literal["bar", "plain", "notebook", "quiet", "json"] = "bar"
    """What is shown: a bar (in a file plain lines, in a notebook its own form), lines, an output of a notebook,
    nothing, or one JSON line a step."""
    show_completion: bool = False
    """Show the newest completion and its reward beside the progress (online)."""
    report: bool | None = None
    """Keep report.html in the run directory: one page with curves, alerts and completions. [for runs of more than a
    minute]"""
    track: list[str] | None = None
    """Trackers that get metrics, alerts and completions: tensorboard, trackio, wandb, mlflow. Of very short steps they
    get some, of others every one."""
    observers: list[str] | None = None
    """Installed observers to load."""
    verify_saved: bool = True
    """Load the saved model again as others do and compare it with the one that was trained; a difference is an
    error that keeps the checkpoints."""
    push_to_hub: str | None = None
    """Hub id to which the final model is uploaded."""

    def check(self) -> None:
        """Raise SettingsError for a value that no run can have."""
        at_least("save-total", self.save_total, 1)
        at_least("save-minutes", self.save_minutes, 0)
