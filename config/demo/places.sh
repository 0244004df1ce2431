# SPDX-License-Identifier: GPL-2.0-or-later OR BSD-2-Clause
# shellcheck shell=bash disable=SC2034
#
# What belongs to the demonstration and to nothing else; `run` makes it, `clean` removes it.

bpffs=/sys/fs/bpf
pin_root=$bpffs/bpfkeeperd-demo # as in bpfkeeperd.yaml
demo=bpfkeeperd-demo            # a network namespace, with demo0 in it
peer=bpfkeeperd-demo-peer       # another one, with demo1, the other end
cgroup=bpfkeeperd-demo          # below the cgroup2 mount
own_cgroup2=/run/bpfkeeperd-demo/cgroup2 # a mount, where the machine has none
state_file='/var/lib/bpfkeeperd/sys-fs-bpf-bpfkeeperd\x2ddemo.json' # the daemon's, for this pin root

keeper=.venv/bin/bpfkeeperd
manifest=config/demo/bpfkeeperd.yaml

# Root takes nobody else's files unless told to: this checkout is taken, whose ever it is.
owner=$(stat --format %U .)
[[ $owner =~ ^[a-z_][a-z0-9_-]*$ ]] || owner=$(stat --format %u .) # no name, or a strange one
options="--config $manifest"
[ "$owner" = root ] || options+=" --trust $owner"

# The machine's cgroup2 mount, nothing where there is none.
cgroup2_mount() {
	findmnt --list --noheadings --output TARGET --types cgroup2 --first-only || true
}

# The daemon holds a lock on its pin root for as long as it lives.
daemon_runs() {
	[ -d "$pin_root" ] && ! flock --nonblock "$pin_root" true
}

fail() {
	echo "$*" >&2
	exit 1
}
