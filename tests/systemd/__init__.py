"""The service in a systemd that was booted for it: ``python -m tests.systemd``, or
``make test-systemd``.

The guest (systemd-nspawn) has this machine's kernel and files; what it changes of those is gone
with it, and its bpffs, network and cgroups are its own. The tests here run in it, as a unit beside
the service's. Leave the checkout alone meanwhile.
"""
