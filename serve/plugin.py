"""Entry point `vllm.general_plugins`: makes vLLM's processes know the `interpolation` weight-transfer backend."""

BACKEND = "interpolation"
CONFIG_KEY = "lambdasweep"  # under vLLM's additional_config
WORKER_EXTENSION = "serve.backend.WorkerExtension"
RESIDENT = "resident"


def register() -> None:
    """Register the backend with vLLM's factory. vLLM calls this in every process, and may call it again."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:  # register_engine refuses a second call
        WeightTransferEngineFactory.register_engine(BACKEND, "serve.backend", "InterpolationEngine")
