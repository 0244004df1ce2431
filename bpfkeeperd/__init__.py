"""bpfkeeperd keeps pinned eBPF maps alive while the programs around them are reloaded."""

__version__ = "0.1.0"
