"""Client of one vLLM server: its abilities, its weights' version, completions, and weight updates."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from posttrain.errors import SettingsError
from posttrain.generation.vllm.http import CONNECT_TIMEOUT, Gone, Wire
from posttrain.generation.vllm.requests import LogprobsMode
from posttrain.generation.vllm.versions import check_server
from posttrain.generation.vllm.weight_host import Store, WeightHost
from posttrain.servers.endpoint import Refused

#: First word of the adapter names of runs; the run's own word and the version follow.
ADAPTER = "posttrain"
#: Time limit of one step of an update, in seconds.
UPDATE_TIMEOUT = 600.0


@dataclass(frozen=True)
class Facts:
    """Facts that a server reports."""

    model: str
    dtype: str
    positions: int
    mode: LogprobsMode
    adapter_rank: int
    """Largest rank of an adapter; 0 where it takes none."""
    seats: int
    """Completions that it runs at one time."""


class RolloutServer:
    """A server at ``url``; its callers keep ``alive`` and ``busy``."""

    def __init__(self, url: str):
        self.wire = Wire(url)
        self.url = url
        self.alive = True
        self.reason = ""
        """Why it is not alive."""
        self.has: tuple[int, str] = (-1, "")
        """Version of its weights of this run, and the name of the adapter; empty for full weights."""
        self.busy = 0
        """Number of completions requested from it and not yet returned."""
        self.facts: Facts | None = None
        self._update = threading.Lock()

    def probe(self) -> Facts:
        """Ask for its facts. Raises Gone; SettingsError or DependencyError for a server that cannot serve a run."""
        try:
            version = self.wire.get("/version")["version"]
            check_server(version, self.url)
            found = self.wire.get("/server_info?config_format=json", timeout=6 * CONNECT_TIMEOUT)["vllm_config"]
        except (Refused, KeyError, TypeError) as error:
            raise SettingsError(
                f"{self.url} is no rollout server: it answers {error}. Start one with: posttrain serve-rollouts MODEL"
            ) from None
        model, transfer, lora = found["model_config"], found.get("weight_transfer_config"), found.get("lora_config")
        if (transfer or {}).get("backend") != "posttrain":
            raise SettingsError(
                f"The vLLM server at {self.url} takes no weights from a trainer. Start it with: posttrain "
                f"serve-rollouts {model['model']}"
            )
        self.facts = Facts(
            model=str(model["model"]),
            dtype=str(model["dtype"]).removeprefix("torch."),
            positions=int(model["max_model_len"]),
            mode=model["logprobs_mode"],
            adapter_rank=int((lora or {}).get("max_lora_rank", 0)),
            seats=int(found["scheduler_config"]["max_num_seqs"]),
        )
        return self.facts

    def version(self) -> str:
        """Return the label of its weights. Raises Gone."""
        return str(self.wire.get("/weight_info")["weight_version"])

    def complete(self, ids: list[int], parameters: dict[str, Any], adapter: str) -> dict[str, Any]:
        """Complete token ids; return vLLM's choice, with ids, log-probs, the reason and spans of versions.

        Raises Gone also where vLLM aborted the completion.
        """
        asked: dict[str, Any] = {"token_ids": ids, "sampling_params": parameters}
        if adapter:
            asked["model"] = adapter
        choice = self.wire.post("/inference/v1/generate", asked)["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise Gone(f"it ended a completion with '{choice['finish_reason']}'")
        return choice

    def update(self, host: WeightHost, store: Store, known: int, label: str, adapter: str) -> None:
        """Send all of ``store`` that is newer than ``known``, and label the result ``label``.

        Running completions pause meanwhile and continue with the new weights, their keys and values computed anew; with
        adapters they continue with the old one. Raises Gone and Refused.
        """
        with self._update:
            parts = store.newer(known)
            first = next(parts, None)
            if first is not None:
                self._tell("/pause?mode=keep")
                self._tell("/init_weight_transfer_engine", {"init_info": {}})
                self._tell("/start_weight_update")
                number = 0
                while first is not None:
                    self._send(host, f"{label}-{number}", first)
                    first, number = next(parts, None), number + 1
                self._tell("/finish_weight_update", {"weight_version": label})  # before any token is made with them
                self._tell("/reset_prefix_cache?reset_running_requests=true")
                self._tell("/resume")
            if adapter:
                self._send_adapter(host, store, adapter)
                self._forget_adapters(adapter)
            self._tell("/update_weight_version", {"new_version": label})

    def _forget_adapters(self, keep: str) -> None:
        """Unload older adapters, and other runs'; running completions keep theirs."""
        names = [row["id"] for row in self.wire.get("/v1/models")["data"]]
        for name in names:
            if name.startswith(ADAPTER + "-") and name != keep:
                self._tell("/v1/unload_lora_adapter", {"lora_name": name})

    def _tell(self, path: str, payload: dict[str, Any] | None = None) -> Any:
        return self.wire.post(path, payload, UPDATE_TIMEOUT)

    def _send(self, host: WeightHost, name: str, part: dict[str, Any]) -> None:
        url = host.offer(name, part)
        try:
            self._tell("/update_weights", {"update_info": {"url": url}})
        finally:
            host.withdraw(name)

    def _send_adapter(self, host: WeightHost, store: Store, name: str) -> None:
        assert store.adapter is not None
        tensors, config = store.adapter
        url = host.offer(name, tensors, config)
        try:
            found = self._tell("/collective_rpc", {"method": "receive_adapter", "args": [url, name]})
        finally:
            host.withdraw(name)
        path = found["results"][0]
        self._tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
