"""Test files run on other kernels: ``python -m tests.guests``, or ``make test-kernels``.

A guest is a Debian kernel in qemu, without KVM, over this machine's own files: only the kernel
differs. Leave the checkout alone while it runs: it goes on with the sizes that the files had. What
is downloaded and made stays in ``.guests/`` of the checkout.
"""
