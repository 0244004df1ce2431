"""Test files run on other kernels: ``python -m tests.guests``, or ``make test-kernels``.

A guest is a Debian kernel in qemu, without KVM, over this machine's own files: only the kernel
differs. What is downloaded and made stays in ``.guests/`` of the checkout.
"""
