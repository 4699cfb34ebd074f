"""vLLM servers as a generator: completions distributed over them, weights sent to each, lost servers recovered."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.contract.generation import Abilities, Completion, Health, Sampling, Weights
from posttrain.errors import GeneratorLost, RunFailed, SettingsError
from posttrain.generation.local.hf import refuse_images
from posttrain.generation.vllm.http import Gone
from posttrain.generation.vllm.requests import Limits, check_sampling, completion
from posttrain.generation.vllm.server import ADAPTER, RolloutServer
from posttrain.generation.vllm.weight_host import Store, WeightHost, config_text
from posttrain.generation.vllm.weights import adapter_config, adapter_rank, base_pairs, pairs_of, parts
from posttrain.servers.endpoint import Refused

if TYPE_CHECKING:
    from posttrain.network.token_model import TokenModel

#: Seconds between probes of a lost server.
LOOK = 1.0
#: Reports to the run: code, severity, message.
Tell = Callable[[str, str, str], Any]


@dataclass
class Group:
    """The completions of one prompt; they go to one server while it lives."""

    index: int
    prompt: Tensor
    sampling: Sampling
    server: RolloutServer | None = None


class VllmServers:
    """A generator of servers. ``generate`` and ``accept`` may run at the same time, from any threads.

    A lost server is probed every second. When it is back, or another has taken its place at the same address, it gets
    the weights again. Without any server for ``patience`` seconds GeneratorLost ends the run.
    """

    def __init__(
        self,
        urls: list[str],
        policy: TokenModel,
        tokenizer: Any,
        limits: Limits,
        patience: Callable[[], float],
        sends: bool,
        tell: Tell,
        own: Any = None,
    ):
        """Probe every server. Raises SettingsError, DependencyError and GeneratorLost.

        ``sends``: this process sends the servers their weights; other ranks only request completions. ``own``: the
        process of a server that ends with this generator.
        """
        self.tokenizer, self.limits, self.patience = tokenizer, limits, patience
        self._model, self._sends, self._tell = policy.inner, sends, tell
        self._servers = [RolloutServer(url) for url in urls]
        self._own = own
        self._session = first_rank(secrets.token_hex(4))
        self._version, self._adapter = -1, ""
        self._state = threading.Condition()
        self._closed = False
        self._failure: RunFailed | None = None
        self._silent_since = time.monotonic()
        """Time at which the last server was lost."""
        self._sending = threading.Lock()
        rank = adapter_rank(policy)
        self.abilities = Abilities(
            own_weights=True, ahead=True, mid_sequence=True, merged=True, adapters=rank is not None
        )
        for server in self._servers:
            self._probe(server)
            _check(server, limits, rank)
        seats = sum(server.facts.seats for server in self._servers if server.facts)
        self._pool = ThreadPoolExecutor(max_workers=seats, thread_name_prefix="rollouts")
        self._store = Store()
        self._hosts = {server.url: WeightHost(server.url) for server in self._servers} if sends else {}
        if rank is not None:
            base = base_pairs(policy)
            self._store.put(parts(self._model, base, self._dtype), 0) if sends else deque(base, maxlen=0)
        threading.Thread(target=self._look_after, daemon=True, name="rollout-servers").start()

    @property
    def sent_bytes(self) -> int:
        """Bytes of weights that servers have fetched."""
        return sum(host.sent for host in self._hosts.values())

    def generate(
        self, prompts: list[Tensor], sampling: Sampling, seeds: list[list[int]], images: list[list[Any]] | None = None
    ) -> list[list[Completion]]:
        """Complete each prompt once per seed; those of one prompt go to one server, which reads it once."""
        refuse_images(images)
        for server in self._servers:
            check_sampling(sampling, server.facts.mode)  # type: ignore[union-attr]  # probed at the start
        asked: list[list[Future[Completion]]] = []
        for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
            group = Group(index, prompt, sampling)
            asked.append([self._pool.submit(self._complete, group, seed) for seed in own])
        everything = [future for row in asked for future in row]
        try:
            wait(everything, return_when=FIRST_EXCEPTION)
            failed = [f for f in everything if f.done() and f.exception()]
            if failed:
                failed[0].result()
            return [[future.result() for future in row] for row in asked]
        finally:
            for future in everything:
                future.cancel()

    def accept(self, weights: Weights) -> None:
        """Send the weights to every server; a lost one gets them when it is back. Raises RunFailed, GeneratorLost.

        Other ranks than the sending one wait until a server has them.
        """
        if self._sends:
            with self._sending:
                self._keep(weights)
                with ThreadPoolExecutor(max_workers=len(self._servers)) as pool:
                    list(pool.map(self._bring_up, self._servers))
        else:
            deque(pairs_of(self._model, weights), maxlen=0)  # all ranks together gather sharded weights
            self._name(weights)
            for server in self._servers:
                server.alive = False
        self.revive()

    def pause(self) -> None:
        """Pause running completions on every server."""
        self._all("/pause?mode=keep")

    def resume(self) -> None:
        """Continue them."""
        self._all("/resume")

    def drain(self) -> None:
        """Return when no completion is running."""
        with self._state:
            self._state.wait_for(lambda: self._closed or not any(server.busy for server in self._servers))

    def health(self) -> Health:
        """Report alive while one server is."""
        alive = [server for server in self._servers if server.alive]
        facts = {server.url: "alive" if server.alive else "gone" for server in self._servers}
        return Health(self._version if alive else -1, bool(alive), sum(s.busy for s in self._servers), facts=facts)

    def revive(self) -> None:
        """Wait for a server that has the weights. Raises GeneratorLost."""
        self._choose(None)

    def close(self) -> None:
        """Stop using the servers; they keep running."""
        with self._state:
            self._closed = True
            self._state.notify_all()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for host in self._hosts.values():
            host.close()
        if self._own is not None:
            self._own.close()

    def _probe(self, server: RolloutServer) -> None:
        """Probe a server until it answers."""
        self._silent_since = time.monotonic()
        while True:
            try:
                server.probe()
                return
            except Gone as reason:
                server.reason = str(reason)
            self._check_patience()
            time.sleep(LOOK)

    def _check_patience(self) -> None:
        seconds = time.monotonic() - self._silent_since
        if seconds > self.patience():
            names = ", ".join(f"{server.url} ({server.reason or 'other weights'})" for server in self._servers)
            raise GeneratorLost(
                f"No rollout server has answered for {seconds:.0f} seconds: {names}. Start one again with: posttrain "
                "serve-rollouts MODEL; then go on with: posttrain resume RUN"
            )

    def _all(self, path: str) -> None:
        for server in self._servers:
            if server.alive:
                try:
                    server.wire.post(path)
                except Gone as reason:
                    self._lost(server, reason)

    def _keep(self, weights: Weights) -> None:
        if weights.kind == "adapter":
            copies = {name: tensor.detach().cpu().clone() for name, tensor in weights.tensors()}
            self._store.adapter = copies, config_text(adapter_config(weights.adapter or {}))
        else:
            self._store.put(parts(self._model, pairs_of(self._model, weights), self._dtype), weights.version)
        self._name(weights)

    def _name(self, weights: Weights) -> None:
        """Set the name by which the servers know these weights."""
        self._version = weights.version
        self._adapter = f"{ADAPTER}-{self._session}-{weights.version}" if weights.kind == "adapter" else ""

    @property
    def _label(self) -> str:
        return f"{self._session}:{self._version}"

    @property
    def _dtype(self) -> torch.dtype:
        """The widest compute dtype of the servers."""
        found = [getattr(torch, server.facts.dtype) for server in self._servers if server.facts]
        return max(found, key=lambda dtype: dtype.itemsize)

    def _bring_up(self, server: RolloutServer) -> None:
        """Send a server the weights that it lacks and mark it alive; one that does not answer is lost."""
        try:
            found = server.version()
            if self._sends and found != self._label:
                session, _, version = found.partition(":")
                known = int(version) if session == self._session else -1
                server.update(self._hosts[server.url], self._store, known, self._label, self._adapter)
            elif found != self._label:
                return
        except Gone as reason:
            self._lost(server, reason)
        except Refused as error:
            raise RunFailed(
                f"The rollout server at {server.url} does not take the weights: {error}. Start it from the run's "
                "model; its own log says more."
            ) from None
        else:
            self._found(server)

    def _look_after(self) -> None:
        """Recover lost servers, as long as the run lasts."""
        while not self._closed:
            time.sleep(LOOK)
            for server in [server for server in self._servers if not server.alive]:
                with self._sending:
                    if self._version >= 0 and not self._closed:
                        try:
                            self._bring_up(server)
                        except RunFailed as error:
                            self._failure = error

    def _lost(self, server: RolloutServer, reason: object) -> None:
        with self._state:
            if server.alive:
                server.alive = False
                self._silent_since = time.monotonic()
                self._tell("rollout-server-lost", "warning", f"the rollout server at {server.url} is gone: {reason}")
            server.reason = str(reason)
            self._state.notify_all()

    def _found(self, server: RolloutServer) -> None:
        with self._state:
            if not server.alive and server.reason:
                message = f"the rollout server at {server.url} is back, with version {self._version}"
                self._tell("rollout-server-back", "info", message)
            server.alive, server.reason, server.has = True, "", (self._version, self._adapter)
            self._state.notify_all()

    def _choose(self, group: Group | None) -> RolloutServer:
        """Return the server of a group, or the idlest; wait while there is none. Raises GeneratorLost."""
        with self._state:
            while True:
                if self._closed or self._failure is not None:
                    raise self._failure or GeneratorLost("The run let go of its rollout servers.")
                alive = [server for server in self._servers if server.alive]
                if alive:
                    chosen = group.server if group and group.server in alive else min(alive, key=lambda s: s.busy)
                    if group is not None:
                        group.server = chosen
                        chosen.busy += 1
                    return chosen
                self._check_patience()
                self._state.wait(LOOK)

    def _complete(self, group: Group, seed: int) -> Completion:
        parameters = self.limits.parameters(group.index, group.prompt, group.sampling, seed)
        ids = group.prompt.tolist()
        while True:
            server = self._choose(group)
            version, adapter = server.has
            try:
                return self._answer(group, server.complete(ids, parameters, adapter), version, adapter)
            except Gone as reason:
                self._lost(server, reason)
            except Refused as error:
                if not (adapter and error.status == 404):
                    raise RunFailed(f"The rollout server at {server.url} refuses a prompt: {error}") from None
                if adapter == server.has[1]:
                    self._lost(server, f"it has no adapter of version {version}")
            finally:
                with self._state:
                    server.busy -= 1
                    self._state.notify_all()

    def _answer(self, group: Group, choice: dict[str, Any], version: int, adapter: str) -> Completion:
        """Convert an answer. Raises Gone where a server made tokens with weights that are not this run's."""
        ids = choice["token_ids"]
        logps = [row["logprob"] for row in choice["logprobs"]["content"]]
        versions = torch.full((len(ids),), version, dtype=torch.int32)  # (t,)
        for span in choice.get("weight_versions") or [] if not adapter else []:
            session, _, number = span["version"].partition(":")
            if session != self._session:
                raise Gone(f"it has the weights '{span['version']}'")
            versions[span["start"] : span["end"]] = int(number)
        return completion(group.index, ids, logps, choice["finish_reason"], group.sampling, self.tokenizer, versions)


def first_rank(value: Any) -> Any:
    """Return the first rank's value, on every rank."""
    box = [value]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(box, 0)
    return box[0]


def _check(server: RolloutServer, limits: Limits, rank: int | None) -> None:
    """Raise SettingsError for a server that cannot take what this run has."""
    facts = server.facts
    assert facts is not None
    start = f"Start it with: posttrain serve-rollouts {facts.model}"
    if rank is not None and facts.adapter_rank < rank:
        raise SettingsError(
            f"The rollout server at {server.url} takes adapters up to rank {facts.adapter_rank}, the run's has {rank}. "
            f"{start} --lora-rank {rank}"
        )
    if facts.positions < limits.positions:
        raise SettingsError(
            f"The rollout server at {server.url} takes texts of {facts.positions} tokens, those of this run may have "
            f"{limits.positions}. {start} --max-length {limits.positions}; or lower max-length or max-new-tokens."
        )
