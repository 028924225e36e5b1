"""What a model completes of its configuration."""

from __future__ import annotations

import json


class ModelConfig:
    """A model's configuration, to be completed by `auto_complete_config`."""

    def __init__(self, model_config: str):
        self._model_config = json.loads(model_config)

    def as_dict(self) -> dict:
        """The configuration, to be read."""
        return self._model_config

    def _name(self) -> str:
        return self._model_config["name"]

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Sets the largest batch, which must not be smaller than the one that the configuration has."""
        configured = self._model_config["max_batch_size"]
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function for "
                f"model '{self._name()}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Has requests batched, if the configuration says nothing of how they are scheduled."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{other}', but auto-complete-config function for "
                    f"model '{self._name()}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def add_input(self, input: dict) -> None:
        """Adds an input, or completes that of its name."""
        self._add("input", input, ("name", "data_type", "dims", "optional"))

    def add_output(self, output: dict) -> None:
        """Adds an output, or completes that of its name."""
        self._add("output", output, ("name", "data_type", "dims"))

    def _add(self, kind: str, tensor: dict, known: tuple) -> None:
        where = f"in auto-complete-config function for model '{self._name()}'"
        quoted = [f"'{each}'" for each in known]
        listed = f"{', '.join(quoted[:-1])} and {quoted[-1]}"
        for unknown in (each for each in tensor if each not in known):
            raise ValueError(f"{kind} '{tensor['name']}' {where} contains property other than {listed}.")
        for needed in ("name", "data_type", "dims"):
            if needed not in tensor:
                of_name = "" if needed == "name" else f" '{tensor['name']}'"
                raise ValueError(f"{kind}{of_name} {where} is missing '{needed}' property.")
        for configured in self._model_config[kind]:
            if configured["name"] == tensor["name"]:
                self._agree(kind, configured, tensor)
                configured.update(tensor)
                return
        self._model_config[kind].append(tensor)

    def _agree(self, kind: str, configured: dict, tensor: dict) -> None:
        name = tensor["name"]
        if configured["data_type"] not in ("TYPE_INVALID", tensor["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name()}', configuration expects datatype {configured['data_type']} for "
                f"{kind} '{name}', model provides {tensor['data_type']}"
            )
        for field in ("dims", "optional"):
            mine = configured.get(field)
            # Dimensions that are left empty are to be completed.
            is_told = bool(mine) if field == "dims" else field in configured
            if is_told and field in tensor and mine != tensor[field]:
                raise ValueError(
                    f"model '{self._name()}', tensor '{name}': the model expects {field} {tensor[field]} but the model "
                    f"configuration specifies {field} {mine}"
                )

    def set_model_transaction_policy(self, transaction_policy_dict: dict) -> None:
        """Says whether the model is decoupled."""
        if any(each != "decoupled" for each in transaction_policy_dict):
            raise ValueError(
                "model transaction property in auto-complete-config function for model "
                f"'{self._name()}' contains property other than 'decoupled'."
            )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if "decoupled" in transaction_policy_dict:
            wanted = transaction_policy_dict["decoupled"]
            if policy.get("decoupled", wanted) != wanted:
                raise ValueError(
                    "trying to change decoupled property in auto-complete-config for model "
                    f"'{self._name()}', which is already set to '{policy['decoupled']}'."
                )
            policy["decoupled"] = wanted
